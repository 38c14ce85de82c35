"""From prompts to embeddings in the pipelines: checked, expanded, looked up in the cache or encoded."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.models import UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from cogview3.config import UserError
from cogview3.generation.inputs import check_floats
from cogview3.models.unet import takes_guidance
from cogview3.prompts.cache import PromptCache
from cogview3.prompts.encode import check_prompt, embed_text, warn_of_cuts


def _no_text_encoder(name: str) -> UserError:
    return UserError(f"this pipeline has no text encoder: give {name}_embeds instead of {name}")


class PromptsMixin(DiffusionPipeline):
    """For pipelines with a `tokenizer` and a `text_encoder`, either of which may be None.

    Attributes:
        prompt_cache: where embeddings of prompts are kept and looked up; None encodes every prompt again.
        prompt_expander: maps prompts to the texts that are encoded in their place, as
            `cogview3.prompts.expand.Expander` does; negative prompts and embeddings are left alone. None draws prompts
            as they are.
        expanded_prompts: what the newest prompts became; None where nothing expanded them.
    """

    tokenizer: PreTrainedTokenizerBase | None
    text_encoder: T5EncoderModel | None
    prompt_cache: PromptCache | None = None
    prompt_expander: Callable[[list[str]], Sequence[str]] | None = None
    expanded_prompts: list[str] | None = None

    def encode_prompt(
        self,
        prompt: str | Sequence[str] | None,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        device: torch.device | str | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings of prompts, and those of the unconditional branch.

        Args:
            prompt: one prompt or a list of them; None where `prompt_embeds` is given.
            negative_prompt: what the unconditional branch sees instead of zeros, for each prompt or for all.
            num_images_per_prompt: how often each is repeated.
            prompt_embeds: (prompts, L, C), used instead of encoding `prompt`.
            negative_prompt_embeds: alike, instead of `negative_prompt`.
            device: where the embeddings go, the pipeline's execution device by default.

        Returns:
            `prompt_embeds` and `negative_prompt_embeds`, both (prompts * num_images_per_prompt, L, C).

        Raises:
            UserError: not strings, counts or shapes that do not fit, or no text encoder.
        """
        device = torch.device(device or self._execution_device)
        network = getattr(self, "unet", None) or getattr(self, "relay_unet", None)
        if network is not None:
            embeds = (prompt_embeds, negative_prompt_embeds)
            negative_prompt, embeds = self._without_negative(negative_prompt, embeds, network)
            prompt_embeds, negative_prompt_embeds = embeds
        if prompt_embeds is None:
            prompt_embeds = self._encode("prompt", prompt, device)
        if negative_prompt_embeds is None and negative_prompt is not None:
            negative_prompt_embeds = self._encode("negative_prompt", negative_prompt, device)
        if negative_prompt_embeds is None:
            negative_prompt_embeds = torch.zeros_like(prompt_embeds)
        if len(negative_prompt_embeds) == 1:
            negative_prompt_embeds = negative_prompt_embeds.expand(len(prompt_embeds), -1, -1)
        if negative_prompt_embeds.shape != prompt_embeds.shape:
            shapes = tuple(negative_prompt_embeds.shape), tuple(prompt_embeds.shape)
            raise UserError(f"negative and positive embeddings are {shapes[0]} and {shapes[1]}: make them equal")
        prompt_embeds = prompt_embeds.to(device).repeat_interleave(num_images_per_prompt, dim=0)
        negative_prompt_embeds = negative_prompt_embeds.to(device).repeat_interleave(num_images_per_prompt, dim=0)
        return prompt_embeds, negative_prompt_embeds

    def _without_negative(
        self, negative_prompt: Any, embeds: tuple[Any, Any], unet: UNet2DConditionModel
    ) -> tuple[Any, tuple[Any, Any]]:
        """Negative prompt and (positive, negative) embeddings; of a distilled UNet no negative ones that are empty.

        It has no negative branch: an empty prompt, and the zeros that `encode_prompt` gives, ask for none.
        """
        if not takes_guidance(unet):
            return negative_prompt, embeds
        texts = [negative_prompt] if isinstance(negative_prompt, str) else negative_prompt
        if isinstance(texts, list | tuple) and all(isinstance(text, str) and not text.strip() for text in texts):
            negative_prompt = None
        negative = embeds[1]
        if isinstance(negative, torch.Tensor) and not negative.any():
            negative = None
        return negative_prompt, (embeds[0], negative)

    def _encode(self, name: str, text: Any, device: torch.device) -> torch.Tensor:
        prompts = check_prompt(name, text)
        if name == "prompt":
            prompts = self._expand(prompts)
        self._require_text_encoder(name, prompts)
        if self.tokenizer is not None:
            warn_of_cuts(self.tokenizer, prompts)

        def embed(missing: Sequence[str]) -> torch.Tensor:
            if self.tokenizer is None or self.text_encoder is None:
                raise _no_text_encoder(name)
            return embed_text(self.tokenizer, self.text_encoder, missing, device)

        return embed(prompts) if self.prompt_cache is None else self.prompt_cache.encode(prompts, embed)

    def _expand(self, prompts: list[str]) -> list[str]:
        """What is encoded instead of prompts."""
        self.expanded_prompts = None
        if self.prompt_expander is None:
            return prompts
        texts = check_prompt("the prompt expander's answer", list(self.prompt_expander(prompts)))
        if len(texts) != len(prompts):
            raise UserError(
                f"the prompt expander gave {len(texts)} texts for {len(prompts)} prompts: give one for each"
            )
        self.expanded_prompts = texts
        return texts

    def _require_text_encoder(self, name: str, prompts: Sequence[str]) -> None:
        if self.text_encoder is not None and self.tokenizer is not None:
            return
        if self.prompt_cache is None:
            raise _no_text_encoder(name)
        if not self.prompt_cache.has(prompts):
            folder = self.prompt_cache.folder
            raise UserError(f"this pipeline has no text encoder, and the prompt cache {folder} lacks a {name}: load it")

    def _check_text(
        self,
        prompt: Any,
        negative_prompt: Any,
        prompt_embeds: torch.Tensor | None,
        negative_prompt_embeds: torch.Tensor | None,
        unet: UNet2DConditionModel,
    ) -> int:
        """Refuse wrong texts before anything is encoded; returns the number of prompts, 0 without any."""
        count = self._count_texts("prompt", prompt, prompt_embeds, unet)
        negatives = self._count_texts("negative_prompt", negative_prompt, negative_prompt_embeds, unet)
        if negatives and takes_guidance(unet):
            raise UserError("a distilled model has no negative branch: leave out the negative prompt")
        if negatives > 1 and count and negatives != count:
            raise UserError(
                f"{negatives} negative prompts for {count} prompts: give one for each prompt, or one for all"
            )
        return count

    def _count_texts(self, name: str, text: Any, embeds: torch.Tensor | None, unet: UNet2DConditionModel) -> int:
        if text is not None and embeds is not None:
            raise UserError(f"both {name} and {name}_embeds are given: leave one out")
        if embeds is not None:
            width = unet.config["cross_attention_dim"]
            if not isinstance(embeds, torch.Tensor) or embeds.ndim != 3 or embeds.shape[2] != width:
                shape = tuple(embeds.shape) if isinstance(embeds, torch.Tensor) else type(embeds).__name__
                raise UserError(
                    f"{name}_embeds is {shape}: give a tensor of shape (B, tokens, {width}), as encode_prompt does"
                )
            if not len(embeds):
                raise UserError(f"{name}_embeds is {tuple(embeds.shape)}: give at least one prompt")
            check_floats(f"{name}_embeds", embeds)
            return len(embeds)
        if text is None:
            return 0
        texts = check_prompt(name, text)
        expands = name == "prompt" and self.prompt_expander is not None  # into texts that nobody knows yet
        self._require_text_encoder(name, [] if expands else texts)
        return len(texts)
