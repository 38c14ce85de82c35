"""Rules of a caption."""

import pytest

from cogview3.captions.rules import violations

LONG = " A gray cat lies on a red cushion beside a window, and the light is warm and soft."


@pytest.mark.parametrize(
    ("caption", "broken"),
    [
        ("Two cats." + LONG, []),
        ("A painting by Monet of the sea at dawn." + LONG, []),
        ("Image sensors lie on a table." + LONG, []),
        ("The word “perhaps” stands on a wall." + LONG, []),
        ("The image shows two cats." + LONG, ["opening"]),
        ("In this black-and-white photo, two cats." + LONG, ["opening"]),
        ("This picture depicts a cat." + LONG, ["opening"]),
        ("A photo of a cat." + LONG, ["opening"]),
        ("A close-up photo of a cat." + LONG, ["opening"]),
        ("The black and white photograph shows a cat." + LONG, ["opening"]),
        ("In this faded black and white photo, a cat." + LONG, ["opening"]),
        ("Here's a cat." + LONG, ["opening"]),
        ("The drawing room holds a cat." + LONG, []),
        ("Here is a cat." + LONG, ["opening"]),
        ("A cat, perhaps asleep." + LONG, ["hedging"]),
        ("A man who appears to be tired." + LONG, ["hedging"]),
        ("It may be a wolf." + LONG, ["hedging"]),
        ("A cat in May." + LONG, []),
        ("See www.example.com for more." + LONG, ["link"]),
        ("Mugs from coolmugs.shop here." + LONG, ["link"]),
        ("A mug, free shipping." + LONG, ["advertising"]),
        ("**A cat**" + LONG, ["markup"]),
        ("A cat.\n" + LONG, ["markup"]),
        ("A cat.", ["too short"]),
        ("A cat." + LONG * 11, ["too long"]),
        ("Eine Katze liegt auf dem Sofa und der Hund ist neben einer alten Lampe im Haus.", ["language"]),
        ('A sign "der Hund und die Katze sind mit einem Ball auf der Wiese" stands there.' + LONG, []),
        ("一只猫躺在红色的垫子上", ["too short", "language"]),
    ],
)
def test_rules(caption: str, broken: list[str]) -> None:
    assert violations(caption) == broken
