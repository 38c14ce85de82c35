"""The benchmark of the reader holds together. How long anything takes is not tested."""

import json

import pytest

from cogview3.bench.data import describe, run
from cogview3.config import UserError


def test_a_report_holds_together() -> None:
    result = run(pictures=33, size=64, shards=12, repeats=1)
    assert (result["pictures"], result["size"], result["shards"]) == (32, 64, 12)
    rates = result["images_a_second_and_core"]
    for kind in ("bare", "loader", "many"):
        assert rates[kind] == 32 / result["runs"][kind][0]
    assert result["ratios"]["loader / bare"] == rates["loader"] / rates["bare"]
    assert result["ratios"]["many / loader"] == rates["many"] / rates["loader"]
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert "loader, 12 shards" in describe(result)


def test_bad_counts_are_refused() -> None:
    for options in ({"pictures": 15}, {"shards": 9}, {"repeats": 0}, {"size": 100}):
        with pytest.raises(UserError):
            run(**options)
