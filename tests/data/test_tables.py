"""Tables as Hugging Face's datasets writes them, read back."""

import errno
import io
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import ipc, parquet

from cogview3.config import UserError
from cogview3.data import addresses
from cogview3.data.filters import Filters
from cogview3.data.formats import find_shards
from cogview3.data.keep import write_keep
from cogview3.data.shards import CaptionedImages
from cogview3.data.tables import TableShard
from tests.data.conftest import encoded, keys, picture, resumed

PICTURES = [picture(number, 16 + 8 * (number % 2), 16) for number in range(7)]


def rows() -> dict[str, list]:
    return {
        "image": [{"bytes": encoded(image, "PNG"), "path": None} for image in PICTURES],
        "caption": [f"picture {number}" for number in range(7)],
        "aesthetic": [float(number) for number in range(7)],
    }


@pytest.fixture
def table(tmp_path: Path) -> str:
    """A parquet file of seven rows, three in a group, with a sidecar beside."""
    parquet.write_table(pyarrow.table(rows()), tmp_path / "a.parquet", row_group_size=3)
    sidecar = pyarrow.table({"key": ["000000002"], "new": ["told anew"], "status": ["ok"]})
    parquet.write_table(sidecar, tmp_path / "a.captions.parquet")
    return str(tmp_path / "a.parquet")


def test_rows_are_samples(table: str) -> None:
    for address in (table, str(Path(table).parent), f"{Path(table).parent}/*.parquet"):
        assert [shard.address for shard in find_shards([address])] == [table]
    samples = list(CaptionedImages([table], epochs=1, buffer=0, new_share=1.0))
    assert [sample.key for sample in samples] == [f"{number:09}" for number in range(7)]
    told = [f"picture {number}" for number in range(7)]
    assert [sample.old for sample in samples] == told
    assert samples[2].caption == "told anew"
    assert [sample.metadata for sample in samples] == [{"aesthetic": float(number)} for number in range(7)]
    for sample, image in zip(samples, PICTURES, strict=True):
        assert np.array_equal(np.asarray(sample.image), np.asarray(image))


@pytest.mark.parametrize("before", [0, 2, 5, 11])
def test_a_position_is_taken_up(table: str, before: int) -> None:
    went_on, took_up = resumed(lambda: CaptionedImages([table], buffer=3, part=1, parts=2), before, 9)
    assert went_on == took_up


def test_what_datasets_saves_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    content = {"image": PICTURES, "text": [f"picture {number}" for number in range(7)]}
    data = datasets.Dataset.from_dict(content, features=features)
    data.save_to_disk(str(tmp_path / "saved"))
    data.to_parquet(str(tmp_path / "data.parquet"))
    for place in ("saved", "data.parquet"):
        samples = list(CaptionedImages([str(tmp_path / place)], epochs=1, buffer=0))
        assert [sample.caption for sample in samples] == content["text"]
        for sample, row in zip(samples, data, strict=True):
            assert np.array_equal(np.asarray(sample.image), np.asarray(row["image"].convert("RGB")))
    reader = CaptionedImages([str(tmp_path / "saved")], buffer=0)
    third = [next(reader) for _ in range(3)][2]
    assert reader.read(third.place).caption == "picture 2"


def test_bare_bytes_in_any_format_are_pictures_too(tmp_path: Path) -> None:
    kinds = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "GIF": "gif", "BMP": "bmp"}
    table = pyarrow.table({"JPG": [encoded(PICTURES[0], kind) for kind in kinds], "Prompt": list(kinds)})
    parquet.write_table(table, tmp_path / "a.parquet")
    reader = CaptionedImages([str(tmp_path / "a.parquet")], epochs=1, buffer=0)
    assert [sample.caption for sample in reader] == list(kinds)
    assert not reader.report.corrected, "no wrong suffix"


def test_what_is_wrong_is_counted_or_refused(tmp_path: Path, table: str) -> None:
    columns = rows()
    columns["image"][1] = {"bytes": None, "path": "elsewhere.png"}
    columns["caption"][3] = None
    parquet.write_table(pyarrow.table(columns), tmp_path / "b.parquet")
    reader = CaptionedImages([str(tmp_path / "b.parquet")], epochs=1)
    assert len(keys(reader)) == 5
    assert reader.report.broken == {"picture not in the table": 1, "missing caption": 1}
    (tmp_path / "c.parquet").write_bytes(Path(table).read_bytes()[:-20])
    reader = CaptionedImages([table, str(tmp_path / "c.parquet")], epochs=1)
    assert len(keys(reader)) == 7
    assert reader.report.broken == {"damaged table": 1}
    parquet.write_table(pyarrow.table({"pixels": ["x"]}), tmp_path / "d.parquet")
    with pytest.raises(UserError, match=r"d.parquet: no column image, .* among pixels; rename"):
        keys(CaptionedImages([str(tmp_path / "d.parquet")], epochs=1))
    shard = find_shards([table])[0]
    with pytest.raises(UserError, match="no row 9 any more"):
        shard.at(9)


def test_a_table_that_cannot_be_read_is_told_from_a_damaged_one(table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrow gives an OSError for both."""

    class Failing(io.BytesIO):
        def read(self, *size: int) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

    def last(address: str) -> tuple[str, str]:
        *_, group = TableShard(address).groups()
        return group.fault, group.error

    with pyarrow.OSFile(table.replace("parquet", "arrow"), "wb") as file:
        whole = parquet.read_table(table)
        with ipc.new_stream(file, whole.schema) as stream:
            stream.write_table(whole)
    for address in (table, table.replace("parquet", "arrow")):
        content = Path(address).read_bytes()
        Path(address).write_bytes(content[: len(content) // 2])
        assert last(address) == ("damaged table", ""), address
        with monkeypatch.context() as patch:
            patch.setattr(addresses, "open_address", lambda address, content=content: Failing(content))
            assert last(address) == ("unreadable table", "Input/output error"), address
        Path(address).unlink()
        assert last(address) == ("missing table", "No such file or directory"), address
    shard = TableShard(table)
    with pytest.raises(UserError, match=r"a\.parquet: missing table .*nothing was written .*run the command again"):
        write_keep([shard], Filters())
    assert not Path(shard.sidecar("keep")).exists()


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "dictionary"])
@pytest.mark.parametrize("end", ["parquet", "arrow"])
def test_text_of_every_type_is_metadata(tmp_path: Path, kind: str, end: str) -> None:
    links = pyarrow.array(["https://spam.org/1", "https://ham.org/2"])
    safe = pyarrow.array(["UNLIKELY", "NSFW"])
    cast = (
        pyarrow.dictionary(pyarrow.int32(), pyarrow.large_string())
        if kind == "dictionary"
        else getattr(pyarrow, kind)()
    )
    columns = {"image": [encoded(image, "PNG") for image in PICTURES[:2]], "text": pyarrow.array(["a", "b"]).cast(cast)}
    whole = pyarrow.table({**columns, "url": links.cast(cast), "nsfw": safe.cast(cast)})
    path = tmp_path / f"a.{end}"
    if end == "parquet":
        parquet.write_table(whole, path)
    else:
        with pyarrow.OSFile(str(path), "wb") as file, ipc.new_stream(file, whole.schema) as stream:
            stream.write_table(whole)
    samples = list(CaptionedImages([str(path)], epochs=1, buffer=0))
    assert [sample.metadata for sample in samples] == whole.select(["url", "nsfw"]).to_pylist()
    assert [sample.caption for sample in samples] == ["a", "b"]
    blocked, _ = write_keep(find_shards([str(path)]), Filters(block=("spam",), max_nsfw=0.5))
    assert blocked.filtered == {"blocked link": 1, "high nsfw score": 1}


def test_pictures_in_a_folder_come_before_tables(tmp_path: Path, table: str) -> None:
    content = io.BytesIO()
    Image.new("RGB", (16, 16)).save(content, "PNG")
    (tmp_path / "x.png").write_bytes(content.getvalue())
    (tmp_path / "x.txt").write_text("black")
    assert keys(CaptionedImages([str(tmp_path)], epochs=1)) == ["x"]
