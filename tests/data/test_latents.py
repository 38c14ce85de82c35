"""Latents: the VAE's own numbers, and a cache that is neither stale nor half-written."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from cogview3.config import UserError
from cogview3.data import latents
from cogview3.data.latents import SceneLatents, cached_latents, encode_scene_batch

KIND = SceneLatents(size=64, pictures=5, seed=3, low=(0.5, 0.3))
NAMES = {"z0", "zL"}


@pytest.fixture
def vae(make_vae: Callable[..., AutoencoderKL]) -> AutoencoderKL:
    return make_vae(scaling_factor=0.5, shift_factor=0.3).requires_grad_(False)


@pytest.fixture
def saved(vae: AutoencoderKL, tmp_path: Path) -> Path:
    vae.save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


@pytest.fixture(autouse=True)
def two_pictures_a_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latents, "SHARD", 2)


@pytest.fixture
def pictures() -> torch.Tensor:
    return torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_pictures_to_numbers_and_back() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, -1)
    batch = latents.to_tensor(list(levels))
    assert batch.shape == (1, 3, 16, 16)
    assert (batch.min(), batch.max()) == (-1, 1)
    assert np.array_equal(latents.to_uint8(batch), levels)
    assert np.array_equal(latents.to_uint8(batch * 1.5), np.clip(levels * 1.5 - 63.75, 0, 255).round().astype(np.uint8))


def test_latents_are_shifted_and_scaled(vae: AutoencoderKL, pictures: torch.Tensor) -> None:
    mean = vae.encode(pictures).latent_dist.mean
    assert torch.equal(latents.encode(vae, pictures), (mean - 0.3) * 0.5)
    decoded = vae.decode(mean).sample.clamp(-1, 1)
    # undoing the shift and scale costs a rounding or two of float32
    torch.testing.assert_close(latents.decode(vae, (mean - 0.3) * 0.5), decoded, atol=1e-5, rtol=0)
    torch.testing.assert_close(latents.reconstruct(vae, pictures), decoded, atol=1e-5, rtol=0)


def test_without_a_shift_latents_are_only_scaled(
    make_vae: Callable[..., AutoencoderKL], pictures: torch.Tensor
) -> None:
    plain = make_vae(scaling_factor=0.25, shift_factor=None)
    assert torch.equal(latents.encode(plain, pictures), plain.encode(pictures).latent_dist.mean.detach() * 0.25)


@pytest.mark.parametrize("through_the_vae", [False, True])
def test_z_l_encodes_what_is_left_of_half_the_resolution(
    vae: AutoencoderKL, monkeypatch: pytest.MonkeyPatch, through_the_vae: bool
) -> None:
    monkeypatch.setattr(latents, "computes_bfloat16", lambda device: False)  # in float32, to compare closely
    batch = encode_scene_batch(vae, replace(KIND, low=(float(through_the_vae), 0.0)), range(3))
    x0 = torch.stack([torch.from_numpy(latents.drawing.render(KIND.scene(i), 64)) for i in range(3)])
    x0 = (x0.permute(0, 3, 1, 2) / 127.5 - 1).contiguous(memory_format=torch.channels_last)
    half = F.interpolate(x0, scale_factor=0.5, mode="bilinear", align_corners=False)
    small = latents.reconstruct(vae, half) if through_the_vae else half
    x_l = F.interpolate(small, scale_factor=2, mode="bilinear", align_corners=False)
    expected = {"z0": latents.encode(vae, x0), "zL": latents.encode(vae, x_l)}
    assert batch.keys() == NAMES
    for name, values in expected.items():
        torch.testing.assert_close(batch[name], values, atol=1e-5, rtol=0)
    difference = (batch["z0"] - batch["zL"]).square().mean().sqrt()
    assert difference > 0.06 * batch["z0"].std(), "too much alike for this test to tell"


def test_bfloat16_is_near_enough(vae: AutoencoderKL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latents, "computes_bfloat16", lambda device: True)
    x0 = latents.to_tensor([latents.drawing.render(KIND.scene(i), 64) for i in range(3)])
    exact, given = latents.encode(vae, x0), encode_scene_batch(vae, KIND, range(3))["z0"]
    # eight bits an operation, some dozens of operations
    assert (given - exact).square().mean().sqrt() < 0.03 * exact.square().mean().sqrt()


def test_blur_is_scipys(pictures: torch.Tensor) -> None:
    deviations = [0.0, 1.7]
    given = latents.gaussian_blur(pictures, torch.tensor(deviations))
    for picture, deviation, blurred in zip(pictures.double().numpy(), deviations, given, strict=True):
        # scipy's "mirror" is torch's "reflect"; both cut the kernel at six pixels; float32
        expected = [scipy.ndimage.gaussian_filter(plane, deviation, mode="mirror", radius=6) for plane in picture]
        np.testing.assert_allclose(blurred.numpy(), np.stack(expected), atol=2e-6)


def rngs(count: int, seed: int = 0) -> list[np.random.Generator]:
    return [np.random.default_rng([seed, index]) for index in range(count)]


def test_small_pictures_are_handed_over_in_three_kinds(vae: AutoencoderKL, pictures: torch.Tensor) -> None:
    many = pictures[:1].repeat(400, 1, 1, 1)
    given = latents.hand_over(vae, many, 0.5, 0.3, rngs(400))
    clean = (given == many).flatten(1).all(1)
    through = (given - latents.reconstruct(vae, many)).abs().flatten(1).amax(1) < 1e-5  # float32
    others = given[~clean & ~through]
    for share, count in ((0.2, clean.sum()), (0.5, through.sum()), (0.3, len(others))):
        assert int(count) / 400 == pytest.approx(share, abs=0.1)  # 4 sd
    assert len(others.flatten(1).unique(dim=0)) == len(others), "each has faults of its own"


def test_faults_are_a_blur_and_noise_on_the_latents(
    vae: AutoencoderKL, pictures: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def degraded(seed: int) -> torch.Tensor:
        return latents.hand_over(vae, pictures, 0.0, 1.0, rngs(2, seed))

    noisy = degraded(0)
    assert torch.equal(degraded(0), noisy)
    assert not torch.equal(degraded(1), noisy)
    monkeypatch.setattr(latents, "MAX_LATENT_NOISE", 0.0)
    blurred = degraded(0)
    assert not torch.equal(blurred, noisy)
    deviations = []
    for rng in rngs(2):
        rng.random()  # the kind
        deviations.append(rng.uniform(0, latents.MAX_BLUR))
    expected = latents.reconstruct(vae, latents.gaussian_blur(pictures, torch.tensor(deviations)))
    torch.testing.assert_close(blurred, expected, atol=1e-5, rtol=0)  # float32


def test_only_what_is_asked_for_is_encoded(vae: AutoencoderKL) -> None:
    plain = SceneLatents(size=64, pictures=5, seed=3)
    assert encode_scene_batch(vae, plain, [1]).keys() == {"z0"}
    assert plain.scene(1) == KIND.scene(1) != KIND.scene(2)


def stamps(cache: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(cache)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in cache.rglob("*.*")
        if path.is_file()
    }


def test_the_cache_is_used_again(
    vae: AutoencoderKL, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = cached_latents(vae, saved, KIND, tmp_path / "cache")
    before = stamps(tmp_path / "cache")
    assert [Path(name).name for name in sorted(before)] == [
        "00000000-2.safetensors",
        "00000002-2.safetensors",
        "00000004-1.safetensors",
    ]
    monkeypatch.setattr(latents, "encode_scene_batch", None)
    second = cached_latents(vae, saved, KIND, tmp_path / "cache")
    assert stamps(tmp_path / "cache") == before
    assert first.keys() == second.keys() == NAMES
    for name, values in first.items():
        assert values.shape == (5, 4, 8, 8)
        assert values.dtype == torch.float16
        assert torch.equal(values, second[name])


def test_cached_latents_are_in_the_order_of_the_scenes(vae: AutoencoderKL, saved: Path, tmp_path: Path) -> None:
    cached = cached_latents(vae, saved, KIND, tmp_path / "cache")
    for index in range(5):
        alone = encode_scene_batch(vae, KIND, [index])
        for name, values in alone.items():
            distances = (cached[name].float() - values).square().mean((1, 2, 3)).sqrt()
            own, others = distances[index], torch.cat([distances[:index], distances[index + 1 :]])
            # what bfloat16 loses depends on the batch's size and the processor, but is nothing beside another scene
            assert own < 0.2 * others.min(), name


@pytest.mark.parametrize("changes", [{"size": 32}, {"seed": 4}, {"low": (0.5, 0.4)}, {"low": None}])
def test_another_kind_has_another_folder(
    vae: AutoencoderKL, saved: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    small = {**vars(replace(KIND, pictures=1))}
    cached_latents(vae, saved, SceneLatents(**small), tmp_path / "cache")
    cached_latents(vae, saved, SceneLatents(**{**small, **changes}), tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_another_vae_has_another_folder(vae: AutoencoderKL, saved: Path, tmp_path: Path) -> None:
    one = cached_latents(vae, saved, SceneLatents(64, 1, 3), tmp_path / "cache")["z0"]
    vae.quant_conv.bias += 1
    vae.save_pretrained(saved)
    other = cached_latents(vae, saved, SceneLatents(64, 1, 3), tmp_path / "cache")["z0"]
    assert len(list((tmp_path / "cache").iterdir())) == 2
    # scaled by 0.5; float16 holds three digits
    torch.testing.assert_close(other.float(), one.float() + 0.5, atol=0.02, rtol=0)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_call_goes_on_by_shards(
    vae: AutoencoderKL, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    whole = cached_latents(vae, saved, KIND, tmp_path / "undisturbed")
    render, drawn = latents.drawing.render, []

    def render_three(scene: object, size: int) -> np.ndarray:
        drawn.append(scene)
        if len(drawn) == 4:
            raise error
        return render(scene, size)

    monkeypatch.setattr(latents.drawing, "render", render_three)
    with pytest.raises(error, match="^2 of 5 pictures" if error is KeyboardInterrupt else None):
        cached_latents(vae, saved, KIND, tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").rglob("*.*")] == ["00000000-2.safetensors"]
    resumed = cached_latents(vae, saved, KIND, tmp_path / "cache")
    assert drawn[4:] == [KIND.scene(index) for index in (2, 3, 4)]
    assert all(torch.equal(values, resumed[name]) for name, values in whole.items())


def test_a_damaged_shard_is_reported(vae: AutoencoderKL, saved: Path, tmp_path: Path) -> None:
    cached_latents(vae, saved, SceneLatents(64, 1, 3), tmp_path)
    shard = next(path for path in tmp_path.rglob("0*.safetensors"))
    whole = load_file(shard)
    shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(UserError, match=rf"{shard} is damaged: delete it"):
        cached_latents(vae, saved, SceneLatents(64, 1, 3), tmp_path)
    save_file({name: torch.cat([value, value]) for name, value in whole.items()}, shard)
    with pytest.raises(UserError, match=rf"{shard} is damaged: delete it"):
        cached_latents(vae, saved, SceneLatents(64, 1, 3), tmp_path)
