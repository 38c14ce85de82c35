"""The report of re-captioning a set: figures of all sidecars, and a page with pictures and both captions."""

import heapq
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from cogview3.captions.instruction import data_url
from cogview3.captions.rows import OK, admitted
from cogview3.captions.rules import violations
from cogview3.checkpoints import write_text
from cogview3.data import draws
from cogview3.data.groups import Shard
from cogview3.data.report import Skipped, listed
from cogview3.data.sidecars import CAPTIONS, read_columns, read_notes

PICTURES = 24
"""On the page."""

_THUMBNAIL = 320


@dataclass(frozen=True)
class Shown:
    """A picture on the page: where it is, and its captions."""

    shard: Shard
    key: str
    old: str
    new: str


def summarize(
    shards: Sequence[Shard], pictures: int = PICTURES, progress: Callable[[int], None] = lambda done: None
) -> tuple[dict[str, Any], list[Shown]]:
    """Figures of the sidecars of shards, and pictures picked by chance, the same ones each time.

    The figures are plain types; "rewritten" are images with a new caption that is not the old one, "words" the
    minimum, quartiles and maximum of captions. Raises UserError for a damaged sidecar.
    """
    counts: dict[str, Counter[str]] = {
        name: Counter() for name in ("statuses", "failures", "faults", "filtered", "models", "old", "new")
    }
    words: dict[str, Counter[int]] = {"old": Counter(), "new": Counter()}  # of so many words, so many captions
    rewritten = found = 0
    best: list[tuple[float, int, Shown]] = []
    for number, shard in enumerate(shards):
        address = shard.sidecar("captions")
        if (notes := read_notes(address)) is not None:
            found += 1
            counts["faults"].update(notes.get("faults", {}))
            counts["filtered"].update(notes.get("filtered", {}))
            columns = read_columns(address, CAPTIONS.names)
            for key, old, new, model, version, status, error in zip(*columns.values(), strict=True):
                counts["statuses"][str(status)] += 1
                counts["models"][f"{model} {version}"] += 1
                if status != OK or not new:
                    counts["failures"][error or str(status)] += 1
                    continue
                rewritten += new != old
                for name, text in (("old", old), ("new", new)):
                    if text:
                        words[name][len(text.split())] += 1
                        counts[name].update(violations(text))
                chance = draws.chance("page", address.rpartition("/")[2], key)
                entry = (-chance, len(best) + number, Shown(shard, key, old, new))
                if pictures and len(best) < pictures:
                    heapq.heappush(best, entry)
                elif pictures and entry[0] > best[0][0]:
                    heapq.heapreplace(best, entry)
        progress(number + 1)
    images = counts["statuses"].total()
    figures = {
        "shards": len(shards),
        "captioned_shards": found,
        "images": images,
        "rewritten": rewritten,
        "rewritten_share": rewritten / images if images else 0.0,
        "words": {name: _spread(values) for name, values in words.items()},
        "rules": {name: dict(counts[name].most_common()) for name in ("old", "new")},
        **{name: dict(counts[name].most_common()) for name in ("statuses", "failures", "faults", "filtered", "models")},
    }
    return figures, [shown for _, _, shown in sorted(best, key=lambda each: (each[2].shard.address, each[2].key))]


def _spread(counts: Counter[int]) -> dict[str, float]:
    """Minimum, quartiles and maximum of numbers that came so often each; {} of nothing.

    A quartile between two numbers is on the straight line from one to the other, as `statistics.quantiles` has it.
    """
    if not counts:
        return {}
    values = np.array(sorted(counts))
    up_to = np.cumsum([counts[value] for value in values.tolist()])
    places = (up_to[-1] - 1) * np.linspace(0, 1, 5)
    below, above = (values[np.searchsorted(up_to, place, "right")] for place in (np.floor(places), np.ceil(places)))
    spread = (below + (above - below) * (places % 1)).tolist()
    return dict(zip(("min", "25 %", "50 %", "75 %", "max"), spread, strict=True))


def describe(figures: Mapping[str, Any]) -> str:
    """The figures in lines."""
    lines = [
        f"{figures['images']} images of {figures['captioned_shards']} shards of {figures['shards']}: "
        f"{figures['rewritten']} rewritten ({figures['rewritten_share']:.1%})"
    ]
    for name, when in (("old", "before"), ("new", "after")):
        spread = figures["words"][name]
        middle = f"{spread['50 %']:g} (from {spread['min']:g} to {spread['max']:g})" if spread else "none"
        lines.append(f"words {when}: {middle}; rules broken: {listed(figures['rules'][name])}")
    lines += [f"{name}: {listed(figures[name])}" for name in ("failures", "faults", "filtered") if figures[name]]
    return "\n".join(lines)


def write_page(path: Path, figures: Mapping[str, Any], shown: Sequence[Shown]) -> int:
    """Write a page of HTML that needs nothing else, and give the number of pictures on it.

    Those whose shard lost them in the meantime are left out.
    """
    thumbnails = _thumbnails(shown)
    cards = [_card(each, thumbnails[id(each)]) for each in shown if id(each) in thumbnails]
    body = (
        f"<h1>Captions before and after</h1>\n<pre>{escape(describe(figures))}</pre>\n"
        f"<p>{escape(', '.join(figures['models']))}</p>\n<main>\n" + "\n".join(cards) + "\n</main>"
    )
    write_text(path, _PAGE.format(body=body))
    return len(cards)


def _thumbnails(shown: Sequence[Shown]) -> dict[int, str]:
    """Data URLs of the pictures that are still there, by id of `shown`."""
    found = {}
    for shard in {each.shard.address: each.shard for each in shown}.values():
        wanted = {each.key: each for each in shown if each.shard.address == shard.address}
        for group in shard.groups():
            if not wanted:
                break
            if (each := wanted.pop(group.key, None)) is not None:
                try:
                    image = admitted(group, None).decode().image
                except Skipped:
                    continue
                found[id(each)] = data_url(image, _THUMBNAIL)
    return found


def _card(shown: Shown, source: str) -> str:
    broken = violations(shown.new)
    note = f'<p class="broken">{escape(", ".join(broken))}</p>' if broken else ""
    place = f"{shown.shard.address.rpartition('/')[2]} {shown.key}"
    return (
        f'<article><img src="{source}" alt=""><h2>{escape(place)}</h2>'
        f'<p class="old">{escape(shown.old) or "<i>none</i>"}</p><p>{escape(shown.new)}</p>{note}</article>'
    )


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Captions before and after</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1280px; padding: 0 1rem; color: #222 }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(270px, 1fr)); gap: 1.5rem }}
article {{ border: 1px solid #ddd; border-radius: 6px; padding: .8rem; overflow-wrap: anywhere }}
img {{ width: 100%; height: auto; image-rendering: auto; background: #eee }}
h2 {{ font-size: .75rem; font-weight: normal; color: #777; margin: .4rem 0 }}
.old {{ color: #777; border-left: 3px solid #ccc; padding-left: .6rem }}
.broken {{ color: #b00020; font-size: .85rem }}
pre {{ white-space: pre-wrap; background: #f6f6f6; padding: .8rem }}
</style>
{body}
</html>
"""
