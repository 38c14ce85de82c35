"""Ways of drawing side by side on the same prompts and base pictures; kept on disk, so a stopped run resumes."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers.models import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cogview3 import checkpoints
from cogview3.config import UserError
from cogview3.data.latents import to_uint8
from cogview3.data.scenes.score import Score, ScoredFact, score
from cogview3.errors import as_user_error
from cogview3.evaluation import frechet
from cogview3.evaluation.drawing import generators
from cogview3.evaluation.prompt import Prompt
from cogview3.evaluation.store import claim
from cogview3.generation.pipeline import CogView3Pipeline
from cogview3.generation.scheduler import RelayScheduler
from cogview3.generation.upscale import CogView3UpscalePipeline
from cogview3.prompts.expand import Expander

_AGAIN = "delete it to measure it again"


@dataclass(frozen=True)
class Way:
    """One way of drawing, whatever tables call it.

    Attributes:
        stage: "relay" finishes the shared base pictures, "draw" begins with noise.
        prompts: "comprehensive", "brief", or "expanded" of the brief ones.
        unet: folder of a network in place of the stage's own.
        settings, scheduler: arguments of the pipeline, and what is other in the relay's scheduler.
    """

    stage: str = "relay"
    mode: str | None = None
    prompts: str = "comprehensive"
    unet: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    scheduler: Mapping[str, Any] = field(default_factory=dict)

    def key(self) -> str:
        """The same text for the same way."""
        return json.dumps(asdict(self), sort_keys=True, default=str)


@dataclass
class Measured:
    """What a way gave: a score a picture, features (N, 64), and seconds a picture of each batch."""

    scores: list[Score] = field(default_factory=list)
    features: list[Tensor] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def add(self, record: Mapping[str, Any]) -> None:
        """Take in a batch."""
        self.scores += [Score(tuple(ScoredFact(*fact) for fact in facts)) for facts in record["facts"]]
        self.features.append(torch.tensor(record["features"], dtype=torch.float64))
        self.seconds.append(record["seconds"])


class Bench:
    """A model, prompts, and the base pictures that ways share.

    `prompts` are comprehensive, `brief` ones of the same scenes; a `folder` keeps what is measured.

    Raises:
        UserError: the model has no relay, or the folder is another run's.
    """

    def __init__(
        self,
        model: str,
        prompts: Sequence[Prompt],
        brief: Sequence[Prompt],
        *,
        seed: int = 0,
        device: str = "cpu",
        expander: Expander | None = None,
        folder: Path | None = None,
    ) -> None:
        self.model, self.seed, self.device, self.expander, self.folder = model, seed, device, expander, folder
        self.prompts = {"comprehensive": prompts, "brief": brief, "expanded": brief}
        self.spent = 0.0  # seconds of drawing and scoring, earlier runs' included
        self._bases: dict[range, tuple[Tensor, float]] = {}  # of the batch at hand
        self._pipes: dict[str | None, CogView3Pipeline] = {}
        self._unets: dict[Path, UNet2DConditionModel] = {}
        self.pipe = self._pipe(None)
        if self.pipe.relay_unet is None or self.pipe.relay_scheduler is None:
            raise UserError(f"model {model} has no relay: give one that has, such as scenes")
        self.upscale = CogView3UpscalePipeline.from_pipe(self.pipe)
        self.upscale.set_progress_bar_config(disable=True)
        self.relay_config = dict(self.pipe.relay_scheduler.config)
        networks = [self.pipe.unet, self.pipe.relay_unet, self.pipe.vae, self.pipe.text_encoder]
        self.weights = weights_hash(*(network for network in networks if network is not None))
        if folder is not None:
            claim(folder / "run.json", {"weights": self.weights, "seed": seed})

    batch = 4
    """Pictures at once. All ways draw a batch before any draws the next, so that a busy machine slows all alike."""

    @property
    def side(self) -> int:
        """Of the finished pictures, in pixels."""
        return int(self.pipe.unet.config["sample_size"]) * self.pipe.vae_scale_factor * 2

    def measure(self, ways: Sequence[Way], progress: Callable[[int], None]) -> dict[str, Measured]:
        """What each way gives, by `Way.key`; ways that are the same are drawn once."""
        unique = {way.key(): way for way in ways}
        found: dict[str, Measured] = {key: Measured() for key in unique}
        done = 0
        for part in self.batches:
            base = 0.0  # of the base pictures, which all relays share
            for key, way in unique.items():
                record = self._record(key, way, part)
                found[key].add(record)
                self.spent += record["spent"]
                base = max(base, record["base_seconds"])
                done += 1
                progress(done)
            self.spent += base
        return found

    @property
    def batches(self) -> list[range]:
        """The numbers of each batch's prompts."""
        count = len(self.prompts["comprehensive"])
        return [range(first, min(first + self.batch, count)) for first in range(0, count, self.batch)]

    def _record(self, key: str, way: Way, part: range) -> dict[str, Any]:
        prompts = [self.prompts[way.prompts][index] for index in part]
        path = self._path(key + self._networks(way), prompts, part, ".json")
        if path is not None and path.exists():
            return _read_record(path, len(part))
        base = self._base(part) if way.stage == "relay" else None  # drawn before the clock starts
        start = time.perf_counter()
        pictures, seconds = self._draw(way, part) if base is None else self._relay(way, part, *base)
        scores = [score(prompt.facts, each) for prompt, each in zip(prompts, to_uint8(pictures), strict=True)]
        record = {
            "way": json.loads(key),
            "facts": [[list(astuple(fact)) for fact in each.facts] for each in scores],
            "features": frechet.features(pictures).tolist(),
            "seconds": seconds / len(part),
            "spent": time.perf_counter() - start,
            "base_seconds": 0.0 if base is None else base[1],
        }
        if path is not None:
            checkpoints.write_text(path, json.dumps(record))
        return record

    def _path(self, what: str, prompts: Sequence[Prompt], part: range, suffix: str) -> Path | None:
        """Where a batch's outcome is kept."""
        if self.folder is None:
            return None
        asked = "\n".join([what, *(prompt.text for prompt in prompts)])
        digest = hashlib.sha256(asked.encode()).hexdigest()[:16]
        return self.folder / "measured" / f"{digest}-{part.start}-{part.stop}{suffix}"

    def _networks(self, way: Way) -> str:
        """A hash of the networks that are not the default mode's."""
        own = [] if way.mode is None else [self._pipe(way.mode).unet, self._pipe(way.mode).relay_unet]
        own += [] if way.unet is None else [self._unet(way.unet)]
        return weights_hash(*(network for network in own if network is not None))

    def _draw(self, way: Way, part: range) -> tuple[Tensor, float]:
        """From the start: pictures (B, 3, H, W) in [-1, 1], and seconds, expansion included."""
        pipe, own = self._pipe(way.mode), self._pipe(way.mode).unet
        if way.unet is not None:
            pipe.register_modules(unet=self._unet(way.unet))
        start = time.perf_counter()
        texts = [self.prompts[way.prompts][index].text for index in part]
        if way.prompts == "expanded" and self.expander is not None:
            texts = [each.text for each in self.expander.expand_all(texts)]
        try:
            how = {"generator": generators(self.seed, part), "output_type": "pt", **way.settings}
            pictures = pipe(texts, **how).images.float().cpu()
        finally:
            pipe.register_modules(unet=own)
        return pictures * 2 - 1, time.perf_counter() - start

    def _relay(self, way: Way, part: range, base: Tensor, seconds: float) -> tuple[Tensor, float]:
        """The shared base pictures, finished; seconds count theirs too."""
        own = self.upscale.relay_unet
        changed = RelayScheduler.from_config(self.relay_config | dict(way.scheduler))
        self.upscale.register_modules(relay_scheduler=changed)
        if way.unet is not None:
            self.upscale.register_modules(relay_unet=self._unet(way.unet))
        texts = [self.prompts[way.prompts][index].text for index in part]
        start = time.perf_counter()
        try:
            how = {"generator": generators(self.seed + 1, part), "output_type": "pt", **way.settings}
            pictures = self.upscale(base.to(self.device), texts, **how).images.float().cpu()
        finally:
            self.upscale.register_modules(relay_unet=own)
        return pictures * 2 - 1, time.perf_counter() - start + seconds

    def _base(self, part: range) -> tuple[Tensor, float]:
        """Base pictures (B, 3, h, w) in [0, 1], and the seconds that they took."""
        if part not in self._bases:
            self._bases = {part: self._drawn_base(part)}
        return self._bases[part]

    def _drawn_base(self, part: range) -> tuple[Tensor, float]:
        prompts = [self.prompts["comprehensive"][index] for index in part]
        path = self._path("base", prompts, part, ".safetensors")
        if path is not None and path.exists():
            with as_user_error(f"{path} is damaged", _AGAIN):
                kept = load_file(path)
                return kept["pictures"].reshape(len(part), 3, self.side // 2, -1), float(kept["seconds"])
        pictures, seconds = self._draw(Way("draw", settings={"num_relays": 0}), part)
        pictures = ((pictures + 1) / 2).contiguous()
        if path is not None:
            with checkpoints.whole_file(path) as temporary:
                save_file({"pictures": pictures, "seconds": torch.tensor(seconds, dtype=torch.float64)}, temporary)
        return pictures, seconds

    def _pipe(self, mode: str | None) -> CogView3Pipeline:
        if mode not in self._pipes:
            pipe = CogView3Pipeline.from_pretrained(self.model, mode=mode).to(self.device)
            pipe.set_progress_bar_config(disable=True)
            self._pipes[mode] = pipe
        return self._pipes[mode]

    def _unet(self, folder: Path) -> UNet2DConditionModel:
        if folder not in self._unets:
            self._unets[folder] = UNet2DConditionModel.from_pretrained(folder).to(self.device).eval()
        return self._unets[folder]


def _read_record(path: Path, count: int) -> dict[str, Any]:
    """What was measured of `count` pictures. Raises UserError where it is damaged."""
    record, found = checkpoints.read_json(path, _AGAIN), Measured()
    with as_user_error(f"{path} is damaged", _AGAIN):
        found.add(record)
        found.features[0].reshape(count, 64)
        if len(found.scores) != count or not all(record[name] >= 0 for name in ("seconds", "spent", "base_seconds")):
            raise ValueError(f"{len(found.scores)} scores of {count}, or negative seconds")
    return record


def weights_hash(*networks: nn.Module) -> str:
    """12 hexadecimal digits of SHA-256 over names and values of networks' tensors; "" of none."""
    digest = hashlib.sha256()
    for network in networks:
        for name, tensor in network.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12] if networks else ""
