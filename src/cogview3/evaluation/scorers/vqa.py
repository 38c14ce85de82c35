"""VQAScore (Lin et al. 2024, arXiv 2404.01291) with any image-text-to-text model of transformers."""

from collections.abc import Sequence
from typing import Any, Self

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from typing_extensions import override

from cogview3.config import UserError
from cogview3.evaluation.prompt import Prompt
from cogview3.evaluation.scorers.base import Scorer
from cogview3.evaluation.scorers.weights import Asset, Weights, load_pretrained, load_tokenizer

QUESTION = 'Does this figure show "{}"? Please answer yes or no.'


class VqaScore(Scorer):
    """The probability that a vision-language model answers "Yes" when asked whether the picture shows the prompt."""

    name = "vqascore"
    protocol = f"P(first token of Yes) after {QUESTION!r}, by the model's chat template; mean"
    version = "the model given as vqa"
    assets = (
        Asset("vqa", "llava-hf/llava-1.5-7b-hf", patterns=("*.json", "*.jinja", "*.txt", "*.model", "*.safetensors")),
    )

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model, processor
        ids = processor.tokenizer.encode("Yes", add_special_tokens=False)
        if not ids:
            raise UserError("the model given as vqa has no token for Yes: give another")
        self.yes = ids[0]

    @classmethod
    @override
    def load(cls, weights: Weights) -> Self:
        folder = weights.find(cls.assets[0])
        model = load_pretrained(AutoModelForImageTextToText, folder, weights.device)
        return cls(model, load_tokenizer(AutoProcessor, folder))

    @torch.inference_mode()
    @override
    def score(self, pictures: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[float]:
        return [self._one(picture, prompt.text) for picture, prompt in zip(pictures, prompts, strict=True)]

    def _one(self, picture: Image.Image, text: str) -> float:
        question = [{"type": "image"}, {"type": "text", "text": QUESTION.format(text)}]
        asked = self.processor.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
        )
        inputs = self.processor(images=picture, text=asked, return_tensors="pt").to(self.model.device)
        logits = self.model(**inputs).logits[0, -1].float()
        return float(logits.softmax(0)[self.yes])
