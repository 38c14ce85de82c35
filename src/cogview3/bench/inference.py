"""The time that the relay saves: base and relay stages against one stage at the full size, prompt to picture.

The paper's comparison of speed in small: the same UNet, the same guidance, text encoder and VAE included. Both runs
alternate in one process, so that whatever else the machine does touches both.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from transformers import T5EncoderModel

from cogview3.bench.machine import hardware, versions
from cogview3.bench.stopwatch import stopwatch, wait
from cogview3.config import UserError, load_recipe
from cogview3.data.scenes import captions
from cogview3.data.scenes.scene import sample_scene
from cogview3.evaluation.progress import Counter, silent
from cogview3.evaluation.prompt_sets import load_prompts
from cogview3.generation.pipeline import CogView3Pipeline
from cogview3.generation.scheduler import RelayScheduler, base_scheduler
from cogview3.prompts.tokenizer import build_tokenizer
from cogview3.references import bundled_models
from cogview3.training.measure import count_flops
from cogview3.training.objectives.diffusion import build_unet
from cogview3.training.objectives.language import t5_config
from cogview3.training.objectives.vae import build_vae

IMPORTS = """
import PIL.Image, numpy, rich.console, safetensors.torch, torch, typer
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from transformers import PreTrainedTokenizerFast, T5EncoderModel
"""
"""What `cogview3 generate` needs of others' code."""


@dataclass(frozen=True)
class Settings:
    """How both runs sample: the paper's 50 + 10 steps against 50, guidance alike."""

    steps: int = 50
    relay_steps: int = 10
    guidance: float = 7.5


Draw = Callable[[int], Any]
"""Draws a batch of that many pictures."""


def run(
    model: str | None = None,
    *,
    repeats: int = 3,
    batches: Sequence[int] = (1, 8),
    settings: Settings = Settings(),
    cold: bool = True,
    device: str = "cpu",
    counter: Counter = silent,
) -> dict[str, Any]:
    """Measure the relay pipeline against a single stage of its base UNet at the final size.

    Args:
        model: bundled name, folder or hub name, with a relay; scenes by default. Where that one is not bundled, its
            networks get random weights, which are as fast; the result says so.
        repeats: runs of each kind and batch size, after one short run to warm up.
        batches: batch sizes.
        settings: steps and guidance.
        cold: also time fresh processes.
        device: where the networks run.
        counter: progress bar.

    Returns:
        "batches": for each batch size the median seconds of both kinds of run, their ratio and each run's seconds,
        and the "parts" of the relay run's time (shares); "flops" of a batch of one, and their ratio;
        "warm_seconds" of one picture; "cold_start"; settings, hardware and versions.

    Raises:
        UserError: an unknown model, no relay, or counts below 1.
    """
    if repeats < 1 or not batches or min(batches) < 1:
        raise UserError(f"repeats {repeats}, batches {list(batches)}: give 1 or more of each")
    name = model or "scenes"
    drawn_at_random = model is None and name not in bundled_models()
    pipe = random_pipeline() if drawn_at_random else CogView3Pipeline.from_pretrained(name)
    if pipe.relay_unet is None:
        raise UserError(f"model {name} has no relay: give one with a relay UNet")
    pipe.to(device).set_progress_bar_config(disable=True)
    with counter("benchmark", len(batches) * (repeats + 1) + 2) as progress:
        figures = measure(pipe, repeats, batches, settings, progress)
        if cold:
            figures["cold_start"] = cold_start(pipe, None if drawn_at_random else name, repeats, device)
    side = final_side(pipe)
    return {
        "scale": "small",
        "model": name,
        "weights": "random, of the same sizes" if drawn_at_random else "as saved",
        "size": [side, side],
        "settings": {"steps": settings.steps, "relay_steps": settings.relay_steps, "guidance": settings.guidance},
        **figures,
        "hardware": hardware(device),
        "versions": versions(),
    }


def measure(
    pipe: CogView3Pipeline,
    repeats: int,
    batches: Sequence[int],
    settings: Settings,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Batches, flops and warm_seconds of what `run` returns."""
    relay, single = drawers(pipe, settings)
    brief_relay, brief_single = drawers(pipe, Settings(1, 1, settings.guidance))
    done, rows = 0, []
    for batch in batches:
        for draw in (brief_relay, brief_single):
            draw(batch)
        seconds: dict[str, list[float]] = {"relay": [], "single": []}
        for _ in range(repeats):
            seconds["relay"].append(timed(relay, batch, pipe.device))
            seconds["single"].append(timed(single, batch, pipe.device))
            progress(done := done + 1)
        middle = {name: median(values) for name, values in seconds.items()}
        rows.append(
            {
                "batch": batch,
                "relay_seconds": middle["relay"],
                "single_seconds": middle["single"],
                "ratio": middle["relay"] / middle["single"],
                "runs": seconds,
                "parts": shares_by_part(pipe, relay, batch),
            }
        )
        progress(done := done + 1)
    alone = [row["relay_seconds"] for row in rows if row["batch"] == 1]
    counts = {"relay": count_flops(lambda: relay(1)), "single": count_flops(lambda: single(1))}
    progress(done + 1)
    return {
        "batches": rows,
        "flops": counts | {"ratio": counts["relay"] / counts["single"]},
        "warm_seconds": alone[0] if alone else None,
    }


def final_side(pipe: CogView3Pipeline) -> int:
    """Side in pixels of what base and one relay draw."""
    return int(pipe.unet.config["sample_size"]) * pipe.vae_scale_factor * 2


def drawers(pipe: CogView3Pipeline, settings: Settings) -> tuple[Draw, Draw]:
    """What draws a batch in two stages, and what draws it in one: the base UNet at the final size."""
    side = final_side(pipe)

    def draw(batch: int, **how: Any) -> Any:
        texts = [prompt.text for prompt in load_prompts("scenes-heldout", batch)]
        seeds = [torch.Generator().manual_seed(index) for index in range(batch)]
        how |= {"guidance_scale": settings.guidance, "relay_guidance_scale": settings.guidance}
        return pipe(texts, height=side, width=side, num_inference_steps=settings.steps, generator=seeds, **how)

    return (
        lambda batch: draw(batch, num_relays=1, relay_steps=settings.relay_steps),
        lambda batch: draw(batch, num_relays=0),
    )


def timed(draw: Draw, batch: int, device: torch.device) -> float:
    """Seconds that a batch takes."""
    wait(device)
    start = time.perf_counter()
    draw(batch)
    wait(device)
    return time.perf_counter() - start


def shares_by_part(pipe: CogView3Pipeline, draw: Draw, batch: int) -> dict[str, float]:
    """Shares of one run's time; they add up to 1.

    "text", "base" and "relay" are the networks, "decode_encode" is the VAE between the stages, and "other" the rest:
    schedulers, tokenizer, conversions.
    """
    watched = [
        ("text", pipe.text_encoder, "forward"),
        ("base", pipe.unet, "forward"),
        ("relay", pipe.relay_unet, "forward"),
        ("decode", pipe.vae, "decode"),
        ("encode", pipe.vae, "encode"),
    ]
    with stopwatch(watched, pipe.device) as calls:
        total = timed(draw, batch, pipe.device)
    last = max(index for index, (part, _) in enumerate(calls) if part == "decode")
    calls[last] = ("final_decode", calls[last][1])
    names = {"decode": "decode_encode", "encode": "decode_encode"}
    seconds = dict.fromkeys(("text", "base", "decode_encode", "relay", "final_decode"), 0.0)
    for part, spent in calls:
        seconds[names.get(part, part)] += spent
    shares = {part: spent / total for part, spent in seconds.items()}
    return shares | {"other": 1 - sum(shares.values())}


def cold_start(pipe: CogView3Pipeline, model: str | None, repeats: int, device: str) -> dict[str, float]:
    """Seconds that fresh processes take: `cogview3 generate` of one picture, and importing the same libraries alone.

    Medians of `repeats` runs each, in turn. `model` draws in its default mode; `pipe` is saved where it is None.
    """
    prompt = load_prompts("scenes-heldout", 1)[0].text
    with TemporaryDirectory() as folder:
        if model is None:
            model = str(Path(folder) / "model")
            pipe.save_pretrained(model)
        picture = str(Path(folder) / "picture.png")
        options = ["--model", model, "--seed", "0", "--device", device, "--out", picture]
        generate = ["from cogview3.cli import main; main()", "generate", prompt, *options]
        seconds = [(_process_seconds(generate), _process_seconds([IMPORTS])) for _ in range(repeats)]
    generating, importing = (median(values) for values in zip(*seconds, strict=True))
    return {
        "generate_seconds": generating,
        "import_seconds": importing,
        "over_import_seconds": generating - importing,
    }


def _process_seconds(arguments: Sequence[str]) -> float:
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"a fresh process ended with {done.returncode}: {last}")
    return time.perf_counter() - start


def random_pipeline() -> CogView3Pipeline:
    """The networks of the packaged `scenes` recipes with random weights."""
    recipes: list[Any] = [load_recipe(f"scenes/{stage}") for stage in ("vae", "text", "base", "relay")]
    vae, text, base, relay = recipes[0].model, recipes[1].model, *recipes[2:]
    rngs = (np.random.default_rng(index) for index in range(1000))
    texts = [captions.comprehensive(sample_scene(rng), rng).text for rng in rngs]
    unets = [build_unet(each.model, text.d_model, each.data.size // 8).eval() for each in (base, relay)]
    return CogView3Pipeline(
        tokenizer=build_tokenizer(texts, text.vocab_size, text.max_length),
        text_encoder=T5EncoderModel(t5_config(text)).eval(),
        vae=build_vae(vae).eval(),
        unet=unets[0],
        scheduler=base_scheduler(base.objective.prediction),
        relay_unet=unets[1],
        relay_scheduler=RelayScheduler(
            relay_start=relay.objective.relay_start, prediction_type=relay.objective.prediction
        ),
    )


def describe(result: dict[str, Any]) -> str:
    """The result in a few lines, for people."""
    how, machine = result["settings"], result["hardware"]
    lines = [
        f"{result['model']} ({result['weights']}), {result['size'][0]} x {result['size'][1]}, guidance "
        f"{how['guidance']:g}, on {machine['processor']}, {machine['torch_threads']} threads",
    ]
    for row in result["batches"]:
        lines.append(
            f"batch {row['batch']}: {how['steps']}+{how['relay_steps']} steps {row['relay_seconds']:.2f} s, single "
            f"stage of {how['steps']} steps {row['single_seconds']:.2f} s, ratio {row['ratio']:.2f}"
        )
        lines.append("  parts: " + ", ".join(f"{part} {share:.1%}" for part, share in row["parts"].items()))
    flops = result["flops"]
    lines.append(f"FLOPs: {flops['relay']:.3g} against {flops['single']:.3g}, ratio {flops['ratio']:.2f}")
    if cold := result.get("cold_start"):
        lines.append(
            f"cold start: {cold['over_import_seconds']:.1f} s over the imports' {cold['import_seconds']:.1f} s"
        )
    return "\n".join(lines)
