"""What type checkers see of the pipelines: mypy and pyright check these lines in `make types`; nothing runs them."""

from typing import Any, assert_type

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from PIL import Image
from transformers import PreTrainedTokenizerBase, T5EncoderModel

import cogview3
from cogview3 import CogView3Pipeline, CogView3UpscalePipeline, PixelRelayPipeline, RelayScheduler
from cogview3.generation.calls import RelayPipelineOutput
from cogview3.generation.pixel_relay import PixelRelayScheduler
from cogview3.models.light import LatentEnlarger, LightDecoder
from cogview3.models.modes import Mode


def readme() -> None:
    """The README's snippets, line by line."""
    pipe = CogView3Pipeline.from_pretrained("scenes")  # a bundled model, a folder, or a name on the hub
    assert_type(pipe, CogView3Pipeline)
    image = pipe("a large red star left of a small blue ring", generator=torch.Generator().manual_seed(0)).images[0]
    assert_type(image, Image.Image)
    image.save("star.png")  # 256 x 256: base 128 x 128, one relay

    enlarge = CogView3UpscalePipeline.from_pipe(pipe)  # the same networks, in the same mode
    assert_type(enlarge, CogView3UpscalePipeline)
    enlarge(image, prompt="a large red star left of a small blue ring").images[0]  # 512 x 512
    assert_type(enlarge(image).images[0], Image.Image)
    CogView3Pipeline.from_pretrained("scenes@4+1").save_pretrained("fast")
    assert_type(cogview3.__version__, str)


def components(pipe: CogView3Pipeline, enlarge: CogView3UpscalePipeline, pixels: PixelRelayPipeline) -> None:
    """Attributes of the pipelines."""
    assert_type(pipe.tokenizer, PreTrainedTokenizerBase | None)
    assert_type(pipe.text_encoder, T5EncoderModel | None)
    assert_type(pipe.vae, AutoencoderKL)
    assert_type(pipe.unet, UNet2DConditionModel)
    assert_type(pipe.scheduler, EulerDiscreteScheduler)
    assert_type(pipe.relay_unet, UNet2DConditionModel | None)
    assert_type(pipe.relay_scheduler, RelayScheduler | None)
    assert_type(pipe.latent_enlarger, LatentEnlarger | None)
    assert_type(pipe.light_decoder, LightDecoder | None)
    assert_type(pipe.image_processor, VaeImageProcessor)
    assert_type(pipe.mode, Mode)
    assert_type(pipe.guidance_scale, float)
    assert_type(pipe.encode_prompt("a ring"), tuple[torch.Tensor, torch.Tensor])
    assert_type(enlarge.vae, AutoencoderKL)
    assert_type(enlarge.unet, UNet2DConditionModel | None)
    assert_type(enlarge.relay_unet, UNet2DConditionModel)
    assert_type(enlarge.relay_scheduler, RelayScheduler)
    assert_type(pixels.unet, UNet2DModel)
    assert_type(pixels.scheduler, PixelRelayScheduler)
    assert_type(pixels.base_unet, UNet2DModel | None)


def outputs(pipe: CogView3Pipeline, enlarge: CogView3UpscalePipeline, pixels: PixelRelayPipeline) -> None:
    """What calls return, by `output_type` and `return_dict`."""
    assert_type(pipe("a ring"), RelayPipelineOutput[list[Image.Image]])
    assert_type(pipe("a ring", output_type="pil", num_relays=0).images, list[Image.Image])
    assert_type(pipe("a ring", output_type="np", light=True).images, np.ndarray)
    assert_type(pipe("a ring", "", 64, 64, output_type="pt").images, torch.Tensor)
    latents = pipe("a ring", output_type="latent", eta=0.5).images
    assert_type(latents, torch.Tensor)
    assert_type(pipe("a ring", return_dict=False), Any)
    assert_type(enlarge(latents=latents, keep_colors=True).images, list[Image.Image])
    assert_type(enlarge(latents=latents, output_type="pt").images, torch.Tensor)
    assert_type(pixels(batch_size=2).images, list[Image.Image])
    assert_type(pixels(output_type="np").images, np.ndarray)


def callbacks(pipe: CogView3Pipeline) -> None:
    """A callback may name the pipeline that it is for."""

    def stop(pipe: CogView3Pipeline, step: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = step == 3
        return tensors

    assert_type(pipe("a ring", callback_on_step_end=stop).images, list[Image.Image])
