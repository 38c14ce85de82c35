"""Networks as the release publishes them, shrunk: names and shapes from a list, run by their names alone."""

import re
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path

import torch
from torch.nn import functional as F

PREFIX = "model.diffusion_model."
TEXT_WIDTH = 16
LABEL_WIDTH = 48


@cache
def _full_shapes() -> dict[str, tuple[int, ...]]:
    shapes = {}
    for line in (Path(__file__).parent / "released_unet.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        name, *shape = line.split()
        count = re.search(r"\{0-(\d)\}", name)
        for number in range(int(count[1]) + 1) if count else (0,):
            shapes[name.replace(count[0], str(number)) if count else name] = tuple(int(side) for side in shape)
    return shapes


def full_shapes(distilled: bool = True) -> dict[str, list[int]]:
    """Shapes of the released base UNet by its names, without their prefix."""
    shapes = {name: list(shape) for name, shape in _full_shapes().items()}
    if not distilled:
        del shapes["w_proj.weight"]
    return shapes


def tiny_shapes(distilled: bool = False, blocks: int = 3) -> dict[str, list[int]]:
    """The same network at a tenth of its widths, its transformers of so many blocks at most instead of 10."""
    sizes = {4096: TEXT_WIDTH, 1536: LABEL_WIDTH, 512: 8}
    return {
        name: [sizes.get(side, side // 10 if side % 320 == 0 else side) for side in shape]
        for name, shape in full_shapes(distilled).items()
        if not (block := re.search(r"transformer_blocks\.(\d+)\.", name)) or int(block[1]) < blocks
    }


def tiny_tensors(seed: int, distilled: bool = False, blocks: int = 3) -> dict[str, torch.Tensor]:
    """Random weights for `tiny_shapes`, by the names in the file; float16. To be replaced, not changed."""
    return dict(_tiny_tensors(seed, distilled, blocks))


@lru_cache(2)
def _tiny_tensors(seed: int, distilled: bool, blocks: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in tiny_shapes(distilled, blocks).items():
        noise = torch.randn(shape, generator=generator)
        if len(shape) > 1:
            noise /= noise[0].numel() ** 0.5
        elif name.endswith("weight"):
            noise = 1 + 0.2 * noise
        else:
            noise *= 0.2
        tensors[PREFIX + name] = noise.half()
    return tensors


def write_release(folder: Path, tensors: dict[str, torch.Tensor], iteration: str = "1") -> Path:
    """The published layout."""
    (folder / iteration).mkdir(parents=True)
    torch.save({"module": tensors}, folder / iteration / "mp_rank_00_model_states.pt")
    (folder / "latest").write_text(iteration)
    return folder


def _sinusoids(times: torch.Tensor, width: int) -> torch.Tensor:
    angles = times[:, None] * 10000 ** (-torch.arange(width // 2) / (width // 2))
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def published_forward(
    tensors: dict[str, torch.Tensor],
    latents: torch.Tensor,
    times: torch.Tensor,
    text: torch.Tensor,
    labels: torch.Tensor,
    guidance: torch.Tensor | None = None,
    head_dim: int = 64,
) -> torch.Tensor:
    """What the published network computes, in plain functions on its own names.

    Each part is known by the tensors that it has; nothing is known of diffusers.
    """
    w = {name.removeprefix(PREFIX): tensor.float() for name, tensor in tensors.items()}

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

    def conv(name: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
        weight = w[f"{name}.weight"]
        return F.conv2d(x, weight, w[f"{name}.bias"], stride, padding=weight.shape[-1] // 2)

    def norm(name: str, x: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
        return F.group_norm(x, 32, w[f"{name}.weight"], w[f"{name}.bias"], eps)

    def layer_norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])

    def resnet(name: str, x: torch.Tensor) -> torch.Tensor:
        h = conv(f"{name}.in_layers.2", F.silu(norm(f"{name}.in_layers.0", x)))
        h = h + linear(f"{name}.emb_layers.1", F.silu(embedding))[:, :, None, None]
        h = conv(f"{name}.out_layers.3", F.silu(norm(f"{name}.out_layers.0", h)))
        return h + (conv(f"{name}.skip_connection", x) if f"{name}.skip_connection.weight" in w else x)

    def attention(name: str, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        def heads(y: torch.Tensor) -> torch.Tensor:
            return y.unflatten(-1, (-1, head_dim)).transpose(1, 2)

        q, k, v = linear(f"{name}.to_q", x), linear(f"{name}.to_k", context), linear(f"{name}.to_v", context)
        q, k, v = heads(q), heads(k), heads(v)
        weights = (q @ k.transpose(-1, -2) / head_dim**0.5).softmax(-1)
        return linear(f"{name}.to_out.0", (weights @ v).transpose(1, 2).flatten(2))

    def transformer(name: str, x: torch.Tensor) -> torch.Tensor:
        h = linear(f"{name}.proj_in", norm(f"{name}.norm", x, 1e-6).flatten(2).transpose(1, 2))
        number = 0
        while f"{(block := f'{name}.transformer_blocks.{number}')}.norm1.weight" in w:
            own = layer_norm(f"{block}.norm1", h)
            h = h + attention(f"{block}.attn1", own, own)
            h = h + attention(f"{block}.attn2", layer_norm(f"{block}.norm2", h), text)
            value, gate = linear(f"{block}.ff.net.0.proj", layer_norm(f"{block}.norm3", h)).chunk(2, -1)
            h = h + linear(f"{block}.ff.net.2", value * F.gelu(gate))
            number += 1
        return x + linear(f"{name}.proj_out", h).transpose(1, 2).unflatten(2, x.shape[2:])

    kinds: dict[str, Callable[[str, torch.Tensor], torch.Tensor]] = {
        "in_layers.0.weight": resnet,
        "proj_in.weight": transformer,
        "op.weight": lambda name, x: conv(f"{name}.op", x, stride=2),
        "conv.weight": lambda name, x: conv(f"{name}.conv", F.interpolate(x, scale_factor=2.0)),
        "weight": conv,
    }

    def parts(name: str, x: torch.Tensor) -> torch.Tensor:
        number = 0
        while found := [kind for key, kind in kinds.items() if f"{name}.{number}.{key}" in w]:
            x = found[0](f"{name}.{number}", x)
            number += 1
        return x

    embedding = _sinusoids(times, w["time_embed.0.weight"].shape[1])
    if guidance is not None:
        embedding = embedding + linear("w_proj", guidance)
    embedding = linear("time_embed.2", F.silu(linear("time_embed.0", embedding)))
    embedding = embedding + linear("label_emb.0.2", F.silu(linear("label_emb.0.0", labels)))
    count = 1 + max(int(name.split(".")[1]) for name in w if name.startswith("input_blocks."))
    kept = []
    for number in range(count):
        latents = parts(f"input_blocks.{number}", latents)
        kept.append(latents)
    latents = parts("middle_block", latents)
    for number in range(count):
        latents = parts(f"output_blocks.{number}", torch.cat([latents, kept.pop()], dim=1))
    return conv("out.2", F.silu(norm("out.0", latents)))
