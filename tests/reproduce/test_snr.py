"""Spectra against waves and noise of known power; the command on a folder of pictures."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from cogview3.cli.app import app
from cogview3.cli.reproduce import parse_sides
from cogview3.config import UserError
from cogview3.diffusion import pixel_relay, schedule
from cogview3.reproduce import snr


def wave(side: int, cycles: float) -> np.ndarray:
    """A picture of one frequency: a cosine across, uint8."""
    across = np.cos(2 * math.pi * cycles * (np.arange(side) + 0.5) / side)
    return np.broadcast_to((127.5 * (1 + across)).round()[None, :, None], (side, side, 3)).astype(np.uint8)


def test_a_wave_lies_in_its_band_and_has_four_times_the_power_at_twice_the_side() -> None:
    result = snr.measure([wave(128, 3.0)], [32, 64, 128])
    for spectrum in result["spectra"]:
        assert np.argmax(spectrum.signal) == 2  # 2 to 4 cycles a picture
        rest = np.delete(spectrum.signal, 2)
        assert rest.max() < 1e-3 * spectrum.signal[2]  # rounding to 8 bits
    powers = [spectrum.signal[2] for spectrum in result["spectra"]]
    # means over patches dampen 3 of 16 cycles a little: (sin(x)/x)^2 of x = 3 pi / 32 and half of that
    assert powers[1] / powers[0] == pytest.approx(4, rel=0.03)
    assert powers[2] / powers[1] == pytest.approx(4, rel=0.01)
    ratio = snr.low_snr(result["spectra"], 2.0)
    assert ratio[128] / ratio[64] == pytest.approx(4, rel=0.01)
    assert result["spectra"][0].snr(0.5)[2] == pytest.approx(4 * powers[0])


def test_detail_is_what_half_the_side_cannot_hold() -> None:
    coarse, fine = (snr.measure([wave(64, cycles)], [32, 64])["spectra"][1] for cycles in (1.0, 30.0))
    assert sum(coarse.detail) < 0.02 * sum(coarse.signal)
    assert fine.detail[-1] == pytest.approx(fine.signal[-1], rel=0.1)


@pytest.mark.parametrize("s", [2, 4])
def test_block_noises_power_is_that_of_its_transform(s: int) -> None:
    side = 16
    units = torch.eye(side**2, dtype=torch.float64).view(-1, 1, side, side)
    noise = pixel_relay.block_noise(units, s)
    expected = pixel_relay.patch_dct(noise, side).square().sum(0)[0]  # one patch: the whole picture
    np.testing.assert_allclose(snr.block_noise_power(side, s), expected.numpy(), atol=1e-12)


def test_block_noise_leaves_what_white_noise_leaves_of_the_small_picture() -> None:
    result = snr.measure([wave(128, 1.0)], [32, 64, 128])["spectra"]
    white = result[0].snr(0.9)[1]
    for spectrum in result[1:]:
        assert spectrum.snr(0.9, "block")[1] == pytest.approx(white, rel=0.05)


def test_starts_are_the_times_of_their_noise_levels() -> None:
    sigmas = schedule.make_sigmas()
    assert snr.nearest_start(1.6129, sigmas) == 500
    assert snr.nearest_start(0.5693, sigmas) == 200
    # a quarter of the side, a quarter of the level: 0.40, time about 130
    assert snr.nearest_start(1.6129 / 4, sigmas) == pytest.approx(130, abs=5)


def test_pictures_of_a_folder_are_central_squares(tmp_path: Path) -> None:
    wide = np.zeros((64, 128, 3), np.uint8)
    wide[:, 32:96] = 200
    Image.fromarray(wide).save(tmp_path / "a.png")
    Image.fromarray(wave(32, 1.0)).save(tmp_path / "small.png")
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    (tmp_path / "notes.txt").write_text("none either")
    found = snr.folder_pictures(tmp_path, 5, 64)
    assert len(found) == 1
    assert (found[0] == 200).all()
    with pytest.raises(UserError, match="256 x 256"):
        snr.folder_pictures(tmp_path, 5, 256)
    with pytest.raises(UserError, match="nowhere"):
        snr.folder_pictures(tmp_path / "nowhere", 5, 64)


def test_the_command_writes_figures_and_numbers(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    pictures.mkdir()
    for number in range(2):
        Image.fromarray(wave(128, 1.0 + number)).save(pictures / f"{number}.png")
    result = CliRunner().invoke(
        app, ["reproduce", "snr", "--images", str(pictures), "--sizes", "64,128", "-o", str(out), "--json"]
    )
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["count"] == 2
    assert {(spectrum["kind"], spectrum["side"]) for spectrum in told["spectra"]} == {
        ("pixels", 64),
        ("pixels", 128),
        ("latents", 8),
        ("latents", 16),
    }
    assert json.loads((out / "snr.json").read_text()) == {key: value for key, value in told.items() if key != "files"}
    for path in told["files"][1:]:
        with Image.open(path) as figure:
            assert figure.height > 300


@pytest.mark.parametrize("sizes", ["64", "64,256", "48,96", "16,32", "64,x", "4096,8192", ""])
def test_bad_sizes_are_refused(sizes: str) -> None:
    with pytest.raises(UserError, match="--sizes"):
        parse_sides(sizes)
    assert parse_sides("32,64,128") == [32, 64, 128]


def test_plain_pictures_have_no_ratio_to_compare() -> None:
    spectra = snr.measure([np.full((64, 64, 3), 255, np.uint8)], [32, 64])["spectra"]
    plain = [replace(spectrum, signal=np.zeros_like(spectrum.signal)) for spectrum in spectra]
    found = snr.lines({"spectra": plain, "starts": []})
    assert found[1].endswith("ratio of low frequencies 0 at noise level 1, 1 times that at 32")
