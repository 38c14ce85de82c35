"""Light parts in the pipelines: what they replace, and what they leave alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cogview3 import CogView3Pipeline, CogView3UpscalePipeline
from cogview3.config import UserError
from cogview3.diffusion.relay import enlarge
from cogview3.models.light import LatentEnlarger, LightDecoder
from cogview3.models.modes import Mode, Sampling, write_sampling

CALL = {"prompt": "a red star", "num_inference_steps": 2, "relay_steps": 2, "output_type": "pt"}


def light_parts(names: tuple[str, ...] = ("latent_enlarger", "light_decoder")) -> dict[str, torch.nn.Module]:
    torch.manual_seed(7)
    parts = {
        "latent_enlarger": LatentEnlarger(width=8, num_blocks=1).eval(),
        "light_decoder": LightDecoder(width=8, num_blocks=1).eval(),
    }
    return {name: parts[name] for name in names}


def pipeline(components: dict[str, Any], *names: str) -> CogView3Pipeline:
    pipe = CogView3Pipeline(**components, **light_parts(names or ("latent_enlarger", "light_decoder")))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: Any, **changes: Any) -> torch.Tensor:
    return pipe(**{**CALL, "generator": torch.Generator().manual_seed(0), **changes}).images


def watch(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what is called: the VAE's halves, the light parts, and the UNets once for each of their steps."""
    calls: list[str] = []

    def watched(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            calls.append(name)
            return function(*arguments, **options)

        return call

    for name in ("encode", "decode"):
        monkeypatch.setattr(pipe.vae, name, watched(name, getattr(pipe.vae, name)))
    for name in ("unet", "relay_unet", "latent_enlarger", "light_decoder"):
        if getattr(pipe, name, None) is not None:
            monkeypatch.setattr(getattr(pipe, name), "forward", watched(name, getattr(pipe, name).forward))
    return calls


@pytest.mark.parametrize(
    ("names", "light", "relays", "expected"),
    [
        (("latent_enlarger", "light_decoder"), True, 1, "unet latent_enlarger relay_unet light_decoder"),
        (("latent_enlarger",), True, 1, "unet latent_enlarger relay_unet decode"),
        (("light_decoder",), True, 1, "unet decode encode relay_unet light_decoder"),
        (("latent_enlarger", "light_decoder"), False, 1, "unet decode encode relay_unet decode"),
        (("latent_enlarger", "light_decoder"), None, 1, "unet decode encode relay_unet decode"),
        (("latent_enlarger", "light_decoder"), True, 0, "unet light_decoder"),
        (
            ("latent_enlarger", "light_decoder"),
            True,
            2,
            "unet latent_enlarger relay_unet latent_enlarger relay_unet light_decoder",
        ),
    ],
)
def test_the_vae_is_called_only_where_nothing_stands_in_for_it(
    components: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    names: tuple[str, ...],
    light: bool | None,
    relays: int,
    expected: str,
) -> None:
    pipe = pipeline(components, *names)
    calls = watch(pipe, monkeypatch)
    images = draw(pipe, light=light, num_relays=relays, num_inference_steps=1, relay_steps=1)
    assert calls == expected.split()
    assert images.shape == (1, 3, 32 * 2**relays, 32 * 2**relays)


def test_latents_need_no_decoder(components: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = pipeline(components)
    calls = watch(pipe, monkeypatch)
    draw(pipe, light=True, output_type="latent")
    assert not {"encode", "decode", "light_decoder"} & set(calls)


def test_exact_substitutes_draw_the_same_picture(components: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts that do just what the VAE does change nothing: they are given, and give, scaled latents and -1..1."""
    pipe = pipeline(components)
    exact = draw(pipe, light=False)
    scale = pipe.vae.config.scaling_factor

    def decoded(latents: torch.Tensor) -> torch.Tensor:
        return pipe.vae.decode(latents / scale).sample

    def enlarged(latents: torch.Tensor) -> torch.Tensor:
        return pipe.vae.encode(enlarge(decoded(latents).clamp(-1, 1))).latent_dist.mode() * scale

    monkeypatch.setattr(pipe.light_decoder, "forward", decoded)
    monkeypatch.setattr(pipe.latent_enlarger, "forward", enlarged)
    torch.testing.assert_close(draw(pipe, light=True), exact, rtol=0, atol=1e-5)  # float32, other order of operations


def test_without_light_parts_light_is_refused_before_any_work(
    components: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = CogView3Pipeline(**components)
    calls = watch(pipe, monkeypatch)
    with pytest.raises(UserError, match=r"no tiny autoencoder.*--light-decoder"):
        draw(pipe, light=True)
    upscale = CogView3UpscalePipeline(**pipe.components)
    with pytest.raises(UserError, match="--light-decoder"):
        upscale(torch.rand(3, 16, 16), light=True)
    assert not calls


def test_enlarging_begins_with_the_vae_and_goes_on_without(
    components: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = CogView3UpscalePipeline(**pipeline(components).components)
    pipe.set_progress_bar_config(disable=True)
    calls = watch(pipe, monkeypatch)
    images = pipe(torch.rand(3, 20, 12), num_relays=2, num_inference_steps=1, light=True, output_type="pt").images
    assert calls == ["encode", "relay_unet", "latent_enlarger", "relay_unet", "light_decoder"]
    assert images.shape == (1, 3, 80, 48)


def test_tiles_of_light_parts_equal_the_whole_away_from_borders(components: dict[str, Any]) -> None:
    pipe = pipeline(components)
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    whole, tiles = pipe._to_pixels(latents, light=True), pipe._to_pixels(latents, 64, light=True)
    assert whole.shape == tiles.shape == (1, 3, 128, 128)
    assert (whole - tiles).abs().mean() < 0.05 * whole.std()
    assert pipe._enlarge(latents, 64, True).shape == (1, 4, 32, 32)


def test_undefined_numbers_name_the_light_decoder(components: dict[str, Any]) -> None:
    pipe = pipeline(components)
    torch.nn.init.constant_(pipe.light_decoder.conv_in.bias, float("nan"))
    with pytest.raises(FloatingPointError, match="tiny decoder"):
        draw(pipe, light=True)


def test_a_saved_model_keeps_parts_and_light_mode(components: dict[str, Any], tmp_path: Path) -> None:
    pipe = pipeline(components)
    drawn = draw(pipe, light=True)
    pipe.save_pretrained(tmp_path)
    modes = {"2+2": Mode(steps=2, relay_steps=2), "2+2-light": Mode(steps=2, relay_steps=2, light=True)}
    write_sampling(Sampling(default="2+2", modes=modes), tmp_path)
    loaded = CogView3Pipeline.from_pretrained(tmp_path, mode="2+2-light")
    loaded.set_progress_bar_config(disable=True)
    assert isinstance(loaded.latent_enlarger, LatentEnlarger)
    # guidance comes from the mode in one and from the default one in the other, and both are 7.5
    torch.testing.assert_close(draw(loaded), drawn, rtol=0, atol=1e-5)
    assert not torch.equal(draw(loaded, light=False), drawn)
    plain = CogView3Pipeline.from_pretrained(tmp_path, latent_enlarger=None, light_decoder=None)
    assert plain.latent_enlarger is None
    shared = CogView3UpscalePipeline.from_pretrained(tmp_path, mode="2+2-light")
    assert shared.mode.light
    assert isinstance(shared.light_decoder, LightDecoder)
