"""Prompt embeddings kept on disk, so that a text encoder larger than the rest of the model need not be loaded again."""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from typing_extensions import override

from cogview3.checkpoints import whole_file
from cogview3.config import UserError


class PromptCache:
    """A folder of embeddings, one file a prompt, named by the hash of encoder, number format and text.

    Several processes may share it: files are written whole. `encoder` is what the embeddings depend on beside the text
    and `dtype`, such as `fingerprints.encoder_fingerprint` of the model.
    """

    def __init__(self, folder: str | os.PathLike[str], encoder: str, dtype: torch.dtype) -> None:
        self.folder, self._prefix = Path(folder), f"{encoder}\0{dtype}\0"

    def has(self, prompts: Sequence[str]) -> bool:
        """Whether all prompts' embeddings are there."""
        return all(map(self._holds, prompts))

    def encode(self, prompts: Sequence[str], encoder: Callable[[list[str]], torch.Tensor]) -> torch.Tensor:
        """Embeddings of B prompts, (B, L, C), on the CPU; `encoder` makes those that are not there yet.

        Raises UserError for a damaged file.
        """
        missing = [prompt for prompt in dict.fromkeys(prompts) if not self._holds(prompt)]
        if missing:
            for prompt, embeds in zip(missing, encoder(missing).cpu(), strict=True):
                self._keep(prompt, embeds)
        return torch.stack([self._read(prompt) for prompt in prompts])

    def _path(self, prompt: str) -> Path:
        return self.folder / f"{hashlib.sha256((self._prefix + prompt).encode()).hexdigest()[:40]}.safetensors"

    def _holds(self, prompt: str) -> bool:
        return self._path(prompt).is_file()

    def _keep(self, prompt: str, embeds: torch.Tensor) -> None:
        with whole_file(self._path(prompt)) as temporary:
            save_file({"embeds": embeds.contiguous()}, temporary, metadata={"prompt": prompt})

    def _read(self, prompt: str) -> torch.Tensor:
        path = self._path(prompt)
        try:
            return load_file(path)["embeds"]
        except (SafetensorError, KeyError) as error:
            raise UserError(f"{path} is damaged ({error}); delete it to make it again") from None


class HeldPrompts(PromptCache):
    """Embeddings held in memory, so that the text encoder may go once it has made them."""

    def __init__(self) -> None:
        self.folder = Path("held in memory")
        self._held: dict[str, torch.Tensor] = {}

    @override
    def _holds(self, prompt: str) -> bool:
        return prompt in self._held

    @override
    def _keep(self, prompt: str, embeds: torch.Tensor) -> None:
        self._held[prompt] = embeds

    @override
    def _read(self, prompt: str) -> torch.Tensor:
        return self._held[prompt]
