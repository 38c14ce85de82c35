"""Scorers of pictures: published heads on transformers' models, each with its protocol in the result.

None of the scorers' own packages imports beside torch 2.13 and transformers 5 without torchvision; their weights do.
"""

from cogview3.evaluation.scorers.aesthetic import Aesthetic
from cogview3.evaluation.scorers.base import Scorer
from cogview3.evaluation.scorers.clip import ClipScore, PickScore
from cogview3.evaluation.scorers.geneval import GenEval
from cogview3.evaluation.scorers.hps import Hps20, Hps21
from cogview3.evaluation.scorers.image_reward import ImageReward
from cogview3.evaluation.scorers.vqa import VqaScore

SCORERS: dict[str, type[Scorer]] = {
    scorer.name: scorer for scorer in (Aesthetic, Hps20, Hps21, ImageReward, PickScore, ClipScore, GenEval, VqaScore)
}
"""All scorers by the name of their metric."""

__all__ = ["SCORERS", "Scorer"]
