"""From pictures and old captions to the inputs of an image-text-to-text model of transformers, for all uses.

The text is the model's own chat template around the request, or, where the processor has none, the request after the
picture's token: `<IMAGE> Original caption: <OLD_CAPTION>. Can you provide ...? <NEW_CAPTION>`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from cogview3.captions.rows import request
from cogview3.config import UserError
from cogview3.errors import as_user_error
from cogview3.prompts.text_models import check_folder, load_auto
from cogview3.references import FETCHED, fetch, find, weights_folder

IGNORED = -100
"""Label of a token that is not learned."""


def find_model(reference: str) -> Path:
    """The folder of a recaptioner: a folder of transformers, a run, a bundled model's name, or a name on the hub.

    Raises UserError where there is none.
    """
    folder = Path(reference)
    if (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file():
        return folder
    try:
        found = find(reference)
        return Path(fetch(found.source, FETCHED)) if found.on_hub else weights_folder(reference, "recaptioner")
    except UserError as error:
        raise UserError(
            f"--model {reference}: no image-text-to-text model; give a folder with a config.json, a run of "
            f"`captions finetune`, or a name on the hub ({error})"
        ) from None


def load_model(folder: Path, dtype: str) -> Any:
    """The model in a folder, in evaluation mode on the CPU. Raises UserError where it is no image-text-to-text one."""
    from transformers import AutoModelForImageTextToText

    check_folder(folder)
    with as_user_error(
        f"--model {folder}: not an image-text-to-text model", "code of its own is never run; copy it again"
    ):
        model = load_auto(AutoModelForImageTextToText, folder, use_safetensors=True, dtype=getattr(torch, dtype))
        return model.eval()


def load_processor(folder: Path) -> "Asker":
    """What makes the inputs of the model in a folder. Raises UserError where it lacks an image processor."""
    from transformers import AutoProcessor

    check_folder(folder)
    with as_user_error(f"--model {folder}: its processor cannot be loaded"):
        processor = load_auto(AutoProcessor, folder)
    if getattr(processor, "image_processor", None) is None or getattr(processor, "tokenizer", None) is None:
        raise UserError(f"--model {folder}: no image processor beside its tokenizer; save the model's processor there")
    return Asker(processor)


class Asker:
    """Makes inputs of requests.

    Args:
        processor: of transformers, with an image processor and a tokenizer; its tokenizer is set to pad on the left.
    """

    def __init__(self, processor: Any) -> None:
        self.processor, self.tokenizer = processor, processor.tokenizer
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.image_token = getattr(processor, "image_token", None)
        self.has_template = bool(getattr(processor, "chat_template", None))
        marks = {token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        marks |= {getattr(processor, f"{kind}_token", None) or "" for kind in ("image", "video", "audio")}
        self._marks = sorted(marks - {""}, key=len, reverse=True)

    def prompt(self, old: str) -> str:
        """The text up to where the new caption begins. What the model takes for more than text is cut out of `old`."""
        asked = self._asked(old)
        if self.has_template:
            return str(self.processor.apply_chat_template([_user(asked)], tokenize=False, add_generation_prompt=True))
        return f"{self.image_token} {asked}" if self.image_token else asked

    def answer(self, old: str, new: str) -> str:
        """The text that follows `prompt(old)` in training: the new caption and what ends it."""
        end = self.tokenizer.eos_token or ""
        if self.has_template:
            reply = {"role": "assistant", "content": [{"type": "text", "text": new}]}
            prompt = self.prompt(old)
            whole: str = self.processor.apply_chat_template([_user(self._asked(old)), reply], tokenize=False)
            rest = whole[len(prompt) :].rstrip()
            if not whole.startswith(prompt) or new not in rest:
                return new + end  # the template knows no answers
            return rest if rest.strip() != new else rest + end
        alone, spaced = (self.tokenizer(text, add_special_tokens=False).input_ids for text in ("a", " a"))
        return ("" if alone == spaced else " ") + new + end  # some tokenizers put the space there by themselves

    def _asked(self, old: str) -> str:
        for mark in self._marks:
            old = old.replace(mark, " ")
        return request(old)

    def inputs(self, images: Sequence[Image.Image], olds: Sequence[str]) -> Any:
        """A batch of what the model reads, padded on the left, as `generate` wants it."""
        texts = [self.prompt(old) for old in olds]
        begin = self.tokenizer.bos_token
        begun = bool(begin) and all(text.startswith(begin) for text in texts)  # by the chat template: once is enough
        return self.processor(
            images=[[image] for image in images],
            text=texts,
            padding=True,
            return_tensors="pt",
            **({"add_special_tokens": False} if begun else {}),
        )

    def lesson(self, images: Sequence[Image.Image], olds: Sequence[str], news: Sequence[str]) -> dict[str, Any]:
        """A batch to learn from: the inputs, then the answers; labels are of the answers alone.

        Tensors that have a value for each token are (B, L): padding, prompt, answer, padding.
        """
        inputs = dict(self.inputs(images, olds))
        tokens = inputs["input_ids"]
        answers = [
            self.tokenizer(self.answer(old, new), add_special_tokens=False).input_ids
            for old, new in zip(olds, news, strict=True)
        ]
        longest = max(map(len, answers))
        pad = self.tokenizer.pad_token_id

        def after(lists: list[list[int]], filler: int) -> torch.Tensor:
            return torch.tensor([[*each, *[filler] * (longest - len(each))] for each in lists])

        added = {
            "input_ids": after(answers, pad),
            "attention_mask": after([[1] * len(each) for each in answers], 0),
        }
        nothing = torch.zeros_like(added["input_ids"])
        for name, value in inputs.items():
            if isinstance(value, torch.Tensor) and value.shape == tokens.shape:
                inputs[name] = torch.cat([value, added.get(name, nothing).to(value.dtype)], 1)
        labels = torch.cat([torch.full_like(tokens, IGNORED), after(answers, IGNORED)], 1)
        return {**inputs, "labels": labels}


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}
