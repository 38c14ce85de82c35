"""Which size is drawn for one that is asked for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cogview3.serving.painter import Pace
from cogview3.serving.sizes import Sizes

SCENES = Sizes(128, 128, 8, 2)


@pytest.mark.parametrize(
    ("asked", "drawn", "relays"),
    [
        ((256, 256), (256, 256), 1),
        ((512, 512), (512, 512), 2),
        ((128, 128), (128, 128), 0),
        ((320, 320), (320, 320), 1),
        ((256, 128), (256, 128), 1),
        ((1024, 1024), (512, 512), 2),
    ],
)
def test_sizes_of_the_bundled_model(asked: tuple[int, int], drawn: tuple[int, int], relays: int) -> None:
    size = SCENES.nearest(*asked)
    assert ((size.width, size.height), size.relays) == (drawn, relays)


def test_the_own_size_has_one_relay_where_there_is_one() -> None:
    assert str(SCENES.own) == "256x256"
    assert str(Sizes(512, 768, 8, 0).own) == "512x768"


@given(st.integers(1, 99999), st.integers(1, 99999))
def test_every_size_is_drawable_and_its_own_nearest(width: int, height: int) -> None:
    size = SCENES.nearest(width, height)
    multiple = 8 << size.relays
    assert size.width % multiple == size.height % multiple == 0
    base = size.width * size.height / 4**size.relays
    assert 0.4 <= base / 128**2 <= 2
    assert 0.29 <= size.width / size.height <= 3.4
    if width == height and 128 <= width <= 512:
        assert size.width == size.height
        assert abs(size.width - width) <= 16


@pytest.mark.parametrize(("steps", "relays", "relay_steps"), [(5, 1, 1), (60, 1, 10), (14, 2, 2), (4, 1, 2)])
@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_partials_are_spread_and_never_after_the_last_step(
    steps: int, relays: int, relay_steps: int, count: int
) -> None:
    pace = Pace(count)
    pace.begin(steps, relays, relay_steps)
    due = [(step, number) for step in range(1, steps + 1) if (number := pace.due(step)) is not None]
    assert [number for _, number in due] == list(range(count))
    costs = [1] * (steps - relays * relay_steps) + [4**r for r in range(1, relays + 1) for _ in range(relay_steps)]
    if count:
        assert due[-1][0] < steps
        assert sum(costs[: due[0][0]]) <= 0.3 * sum(costs) + max(costs[: due[0][0]])
