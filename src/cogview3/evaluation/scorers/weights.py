"""Published weights of scorers: the source of each file, how it is found, and strict loading."""

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import init_empty_weights
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file
from torch import Tensor, nn

from cogview3.config import UserError
from cogview3.errors import as_user_error, one_line

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Asset:
    """A file or folder of weights that a scorer needs.

    Attributes:
        name: what `--weights NAME=PATH` calls it.
        source: a hub name (owner/name), or the address of a file that is on no hub.
        file: None where the whole folder is needed, or of it `patterns`.
        sha256: the published file's hash begins with this; empty where it is not known.
    """

    name: str
    source: str
    file: str | None = None
    patterns: tuple[str, ...] = ("*.json", "*.txt", "*.model", "model*.safetensors")
    sha256: str = ""

    @property
    def where(self) -> str:
        """The file or folder and its source, in words."""
        return f"{self.file} of {self.source}" if self.file else self.source


CLIP_L14 = Asset("clip-l14", "openai/clip-vit-large-patch14")
CLIP_H14 = Asset("clip-h14", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", patterns=("*.json", "*.txt"))


@dataclass
class Weights:
    """Weights as given, and scorers already loaded from them.

    Args:
        given: paths or hub names by asset.
        device: where the networks run.
        local: never ask the hub; what is in its cache is used.
    """

    given: Mapping[str, str] = field(default_factory=dict)
    device: str = "cpu"
    local: bool = False
    _loaded: dict[Any, Any] = field(default_factory=dict, repr=False)

    def find(self, asset: Asset) -> Path:
        """The asset on disk: the path given, else from the hub or its cache.

        Raises:
            UserError: it is not there; names the file, its source and the option.
        """
        given = self.given.get(asset.name)
        if given is not None and (Path(given).exists() or "/" not in given.strip("/") or given.startswith((".", "/"))):
            path = Path(given)
            if path.is_dir() and asset.file and (path / asset.file).is_file():
                path /= asset.file
            if not path.exists() or path.is_dir() != (asset.file is None):
                kind = "file" if asset.file else "folder"
                raise UserError(f"--weights {asset.name}={given}: no such {kind}; give {asset.where}")
            return path
        source = given or asset.source
        try:
            if source.startswith("https://"):
                raise OSError("it is on no hub: fetch it")
            if asset.file:
                return Path(hf_hub_download(source, asset.file, local_files_only=self.local))
            return Path(snapshot_download(source, allow_patterns=list(asset.patterns), local_files_only=self.local))
        except (OSError, ValueError) as error:
            found = "neither in the hub's cache nor to be had from the hub"
            reason = found if isinstance(error, LocalEntryNotFoundError) else one_line(error, 120)
            what = f"{asset.file} from {source}" if asset.file else source
            raise UserError(
                f"weights {asset.name} are missing: {what} ({reason}); give --weights {asset.name}=PATH. "
                "Metrics scene and frechet need none"
            ) from None

    def once(self, key: Any, load: Callable[[], T]) -> T:
        """What `load` gives, loaded once a key."""
        if key not in self._loaded:
            self._loaded[key] = load()
        loaded: T = self._loaded[key]
        return loaded


@lru_cache(maxsize=32)
def sha256(path: Path) -> str:
    """SHA-256 of a file; of a folder, that of its weights' names and sizes."""
    digest = hashlib.sha256()
    if path.is_dir():
        for each in sorted(path.iterdir()):
            digest.update(f"{each.name} {os.path.getsize(each)}\n".encode())
        return digest.hexdigest()
    with path.open("rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()


def describe(asset: Asset, path: Path) -> dict[str, Any]:
    """What a result says of weights: name, hash, and whether it is the published file; None where that is unknown."""
    found = sha256(path)
    published = found.startswith(asset.sha256) if asset.sha256 else None
    return {"name": asset.name, "source": asset.where, "sha256": found[:16], "published": published}


def load_tensors(path: Path, key: str | None = None) -> dict[str, Tensor]:
    """Tensors of a .safetensors file or of a pickle of tensors alone, as float32; of `key` where the file has that.

    Raises:
        UserError: the file holds other things, or is damaged.
    """
    with as_user_error(f"{path} is damaged or holds more than tensors", "download it again"):
        pickled = path.suffix != ".safetensors"
        found: Any = torch.load(path, map_location="cpu", weights_only=True) if pickled else load_file(path)
        found = found[key] if key is not None and key in found else found
        return {name: tensor.float() for name, tensor in found.items()}


def fill(network: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Put tensors into a network, all of them and nothing else.

    Raises:
        UserError: names that are missing or too many, or other shapes; lists the first of them.
    """
    own = network.state_dict()
    wrong = [f"{name} is missing" for name in own.keys() - tensors.keys()]
    wrong += [f"{name} is unknown" for name in tensors.keys() - own.keys()]
    wrong += [
        f"{name} is {tuple(tensors[name].shape)}, not {tuple(own[name].shape)}"
        for name in own.keys() & tensors.keys()
        if own[name].shape != tensors[name].shape
    ]
    if wrong:
        shown = ", ".join(sorted(wrong)[:3])
        raise UserError(
            f"{path} does not fit {type(network).__name__}: {shown} ({len(wrong)} in all); give other weights"
        )
    network.load_state_dict(dict(tensors), assign=True)


def unfilled(make: Callable[[], M]) -> M:
    """A network without values, for inference once `fill` gives them: a large one is made at once, and held once."""
    with init_empty_weights(include_buffers=False):
        return make().eval().requires_grad_(False)


def load_pretrained(kind: Any, path: Path, device: str) -> Any:
    """A transformers model from a folder, float32, for inference; every tensor of it must be there.

    Raises:
        UserError: no such model there, or tensors are missing, too many or misshapen.
    """
    with as_user_error(f"{path} holds no {kind.__name__}", "give another folder"):
        model, info = kind.from_pretrained(path, output_loading_info=True, dtype=torch.float32, local_files_only=True)
    for name in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if found := sorted(map(str, info.get(name) or ())):
            what = name.partition("_")[0]
            raise UserError(f"{path} does not fit {kind.__name__}: {what} {', '.join(found[:3])} ({len(found)} in all)")
    return model.to(device).eval().requires_grad_(False)


def load_tokenizer(kind: Any, path: Path) -> Any:
    """A tokenizer or processor from a folder. Raises UserError where there is none."""
    with as_user_error(f"{path} holds no {kind.__name__}", "give another folder"):
        return kind.from_pretrained(path, local_files_only=True)
