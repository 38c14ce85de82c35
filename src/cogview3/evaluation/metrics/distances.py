"""Fréchet distances: to the first model's pictures by features of our own, and to real ones by InceptionV3."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from typing_extensions import override

from cogview3.config import UserError
from cogview3.data.images import open_image, pictures_below
from cogview3.data.latents import to_tensor, to_uint8
from cogview3.data.scenes.render import render
from cogview3.errors import as_user_error
from cogview3.evaluation import frechet
from cogview3.evaluation.frechet import distance_of_statistics, frechet_distance
from cogview3.evaluation.metrics.base import Drawn, Metric, Setting
from cogview3.evaluation.prompt import Prompt
from cogview3.evaluation.scorers.inception import INCEPTION, InceptionV3, inception_features, load_inception
from cogview3.evaluation.scorers.weights import describe

_BATCH = 16
PARTS = 20
"""Of the jackknife."""
BIAS = "grows as pictures get fewer: compare at equal counts alone"


class FrechetMetric(Metric):
    """Distance of a model's pictures to the first model's of the same prompts, and to renders of their scenes."""

    has_floor = needs_one_size = True

    def __init__(self, prompts: Sequence[Prompt], seed: int, setting: Setting | None = None) -> None:
        super().__init__(prompts, seed, setting)
        if len(self.prompts) < 2:
            raise UserError("metric frechet needs 2 prompts or more, and says little of fewer than some hundred")
        self._features: dict[int, Tensor] = {}
        self._renders: dict[int, Tensor] = {}
        self._has_renders = all(prompt.scene is not None for prompt in self.prompts)

    @override
    def update(self, drawn: Drawn) -> list[dict[str, Any]]:
        self._features |= dict(zip(drawn.indices, frechet.features(drawn.pictures), strict=True))
        if self._has_renders:
            size = drawn.pictures.shape[-1]
            scenes = [self.prompts[index].scene for index in drawn.indices]
            renders = [render(scene, size) for scene in scenes if scene is not None]
            self._renders |= dict(zip(drawn.indices, frechet.features(to_tensor(renders)), strict=True))
        return [{} for _ in drawn.indices]

    @override
    def result(self) -> dict[str, Any]:
        """Number of "pictures", and where all prompts have a scene, `frechet.compare` with their "renders"."""
        figures: dict[str, Any] = {"pictures": len(self._features), "bias": BIAS}
        if self._has_renders:
            figures["renders"] = self._distance(self._renders)
        return figures

    @override
    def compare(self, reference: Self) -> dict[str, Any]:
        """`frechet.compare` with the reference's pictures of the same prompts."""
        return self._distance(reference._features)

    def _distance(self, others: Mapping[int, Tensor]) -> dict[str, Any]:
        both = sorted(self._features.keys() & others.keys())
        if len(both) < 2:
            return {"distance": None, "extrapolated": None, "interval": None}
        own, other = (torch.stack([found[index] for index in both]) for found in (self._features, others))
        return frechet.compare(own, other, self.seed)


class FidMetric(Metric):
    """Fréchet inception distance (arXiv 1706.08500) to real pictures, at equal counts where these are pictures.

    Beside it the "floor": of one half of the real pictures to the other.
    """

    protocol = "TensorFlow 1's bilinear to 299, InceptionV3 of 2015-12-05, 2,048 features: as torch-fidelity"

    def __init__(self, prompts: Sequence[Prompt], seed: int, setting: Setting | None = None) -> None:
        super().__init__(prompts, seed, setting)
        self._path = self.setting.weights.find(INCEPTION)
        self._real = _real_pictures(prompts, self.setting.reference)
        self._features: list[Tensor] = []

    def _network(self) -> InceptionV3:
        device = self.setting.weights.device
        return self.setting.weights.once("inception", lambda: load_inception(self._path, device))

    @override
    def update(self, drawn: Drawn) -> list[dict[str, Any]]:
        pictures = [Image.fromarray(picture) for picture in to_uint8(drawn.pictures)]
        self._features.append(inception_features(self._network(), pictures))
        return [{} for _ in drawn.indices]

    @override
    def result(self) -> dict[str, Any]:
        own = torch.cat(self._features) if self._features else torch.zeros(0, 2048)
        how = {"protocol": self.protocol, "weights": [describe(INCEPTION, self._path)], "bias": BIAS}
        if len(own) < 2:
            return {"distance": None, "pictures": len(own)} | how
        if isinstance(self._real, Path):
            mean, covariance = _statistics(self._real)
            return {"distance": distance_of_statistics(own, mean, covariance), "pictures": len(own)} | how
        real = self.setting.weights.once(("real", *self._real[:2]), self._real_features)
        count = min(len(own), len(real))
        half = count // 2
        floor = frechet_distance(real[:half], real[half : 2 * half]) if half > 1 else None
        own, real = own[:count], real[:count]
        figures: dict[str, Any] = {"distance": frechet_distance(own, real), "interval": jackknife(own, real)}
        return figures | {"pictures": count, "floor": {"distance": floor, "pictures": half}} | how

    def _real_features(self) -> Tensor:
        found = []
        for first in range(0, len(self._real), _BATCH):
            pictures = []
            for path in self._real[first : first + _BATCH]:
                with as_user_error(f"real picture {path} cannot be read", "copy it again"), open_image(path) as image:
                    pictures.append(image.convert("RGB"))
            found.append(inception_features(self._network(), pictures))
        return torch.cat(found)


def _real_pictures(prompts: Sequence[Prompt], reference: Path | None) -> list[Path] | Path:
    """The real pictures' files, or the file of their statistics."""
    if reference is None:
        files = list(dict.fromkeys(prompt.reference for prompt in prompts if prompt.reference))
        if not files:
            raise UserError("metric fid needs real pictures: give --reference FOLDER, or COCO's captions as prompts")
        if missing := [file for file in files if not file.is_file()]:
            raise UserError(f"{missing[0]} is missing ({len(missing)} of {len(files)}): give --reference FOLDER")
        return files
    if reference.is_dir():
        files = pictures_below(reference)
        if len(files) < 2:
            raise UserError(f"--reference {reference} holds {len(files)} pictures: give 2 or more, better thousands")
        return files
    if reference.suffix == ".npz" and reference.is_file():
        _statistics(reference)
        return reference
    raise UserError(f"--reference {reference}: give a folder of pictures, or an .npz file with mu and sigma")


def _statistics(path: Path) -> tuple[Tensor, Tensor]:
    with (
        as_user_error(f"--reference {path} is damaged or has no mu and sigma", "make it again"),
        path.open("rb") as opened,  # np.load leaves open what it cannot read
        np.load(opened, allow_pickle=False) as file,
    ):
        mean, covariance = (torch.from_numpy(file[name]).double() for name in ("mu", "sigma"))
    if mean.shape != (2048,) or covariance.shape != (2048, 2048):
        raise UserError(f"--reference {path}: mu has {tuple(mean.shape)}; give statistics of 2,048 features")
    return mean, covariance


def jackknife(own: Tensor, real: Tensor) -> list[float] | None:
    """A 95 % interval of the distance of (N, D) to (N, D), by leaving out one of 20 parts of the first at a time.

    None of fewer than 40 pictures, and of more than 1,024, where it would take minutes.
    """
    count = len(own)
    if count < 2 * PARTS or count > 1024:
        return None
    whole = frechet_distance(own, real)
    kept = [torch.arange(count) % PARTS != part for part in range(PARTS)]
    values = torch.tensor([frechet_distance(own[rows], real[rows]) for rows in kept], dtype=torch.float64)
    error = float(((PARTS - 1) / PARTS * (values - values.mean()).square().sum()).sqrt())
    return [max(0.0, whole - 1.96 * error), whole + 1.96 * error]
