"""Text models and tokenizers from other people's folders: none of their code runs, and damage is one line.

What libraries read is read here first, with limits. They are then told to run no code of the folder's or of the hub's,
and never to ask whether they may; whatever they, or the compiled code behind them, make of a damaged file leaves as a
`UserError`.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cogview3.checkpoints import read_json, regular
from cogview3.config import UserError
from cogview3.errors import as_user_error

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase, T5EncoderModel

SAFE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""What `from_pretrained` of transformers' Auto classes is told."""

_READ = re.compile(
    r"((generation_|scheduler_|tokenizer_|(video_|audio_)?preprocessor_|processor_|adapter_)?config|special_tokens_map"
    r"|added_tokens|tokenizer|vocab|chat_template|.*\.index(\.\w+)?)\.json"
)
_LARGE = re.compile(r"(tokenizer|vocab|.*\.index(\.\w+)?)\.json")
_SHARDS = re.compile(r".*\.safetensors\.index(\.\w+)?\.json")
_SHARD = re.compile(r"[^/\\\0]+\.safetensors")
_MOST_BYTES = {True: 2**27, False: 2**22}
"""Of a JSON file: of those that hold a vocabulary or name tensors, and of the others."""

_MOST_LAYERS = 1000
_MOST_LEVELS = 10**6
"""Of noise, in a scheduler."""
_MOST_NUMBER = 2**40
_MOST_TOKENS = 2**20
_MOST_GROWTH = 10_000
_LAYERS = re.compile(
    r"(n|num)_(\w+_)?(layers?|blocks)|(\w+_)?layers_per_\w*block|block_out_channels|\w+_block_types|depth"
)
_CODE_CHOICES = re.compile(r"_?(attn|attention|experts)_implementation(_internal)?")
_NATIVE = (None, "eager", "sdpa", "flex_attention", "grouped_mm", "batched_mm")
_PROBE = "A red ring, 3 of them — ☃ \N{DROMEDARY CAMEL} Жук\n"

Loaded = TypeVar("Loaded")


def check_folder(folder: Path) -> None:
    """Refuse a folder whose JSON files cannot be what libraries expect; reads nothing else.

    Raises:
        UserError: names the file: not JSON of moderate size and depth, no object, more layers or larger numbers than
            any network has, a choice of code (`_attn_implementation`) that would be looked for elsewhere, or an index
            that names other files than safetensors of this folder; weights that are no file.
    """
    for path in sorted(folder.glob("*.safetensors")):
        with as_user_error(f"{path} is damaged", "copy or export it again"):
            regular(path)
    for path in sorted(path for path in folder.glob("*.json") if _READ.fullmatch(path.name)):
        held = read_json(path, "copy or export it again", _MOST_BYTES[bool(_LARGE.fullmatch(path.name))])
        if not held and path.name in ("config.json", "scheduler_config.json"):  # libraries would fill in their own
            raise UserError(f"{path} is damaged: copy or export it again (it holds no entries)")
        if path.name == "tokenizer.json":
            _check_tokenizer(path, held)
        if _SHARDS.fullmatch(path.name):
            _check_shards(path, held)
        if path.name in ("vocab.json", "tokenizer.json", "added_tokens.json"):
            continue
        for key, value in _entries(held):
            if _CODE_CHOICES.fullmatch(key) and not _is_native(value):
                raise UserError(f"{path}: {key} {value!r} would take code from elsewhere; remove the entry")
            if isinstance(value, int | float) and abs(value) > _MOST_NUMBER and path.name == "config.json":
                raise UserError(f"{path}: {key} {value!r} is too large for any network; copy or export it again")
            if key == "num_train_timesteps" and not (isinstance(value, int) and 0 < value <= _MOST_LEVELS):
                raise UserError(f"{path}: {key} {str(value)[:80]}: no scheduler has such; copy or export it again")
            if key == "num_labels" and not (isinstance(value, int) and 0 <= value <= _MOST_TOKENS):
                raise UserError(f"{path}: {key} {str(value)[:80]}: no network has so many; copy or export it again")
            if _LAYERS.fullmatch(key) and _most(key, value) > _MOST_LAYERS:
                raise UserError(f"{path}: {key}: no network has so many; copy or export it again")


def _check_shards(path: Path, held: Mapping[str, Any]) -> None:
    """Refuse an index by which libraries would read what is no safetensors file, or lies outside the folder."""
    files = held.get("weight_map")
    if not isinstance(files, dict) or not files or not isinstance(held.get("metadata", {}), dict):
        raise UserError(f"{path} is damaged: it has no weight_map; copy or export it again")
    for tensor, file in files.items():
        if not (isinstance(file, str) and _SHARD.fullmatch(file)):
            raise UserError(
                f"{path}: {tensor} in {str(file)[:80]!r}, no safetensors file of this folder; copy it again"
            )


def _most(key: str, value: Any) -> float:
    """How many layers or blocks an entry is about: a number, the largest of a list, or the list's length."""
    held = value if isinstance(value, list) else [value]
    counts = [each for each in held if isinstance(each, int | float) and "channels" not in key]
    return max([len(held), *counts])


def _check_tokenizer(path: Path, held: Mapping[str, Any]) -> None:
    """Refuse padding and replacements that would fill the memory, on which compiled code ends the process."""
    growth = 1.0
    for part in ("padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"):
        for key, value in _entries(held.get(part)):
            if key in ("Fixed", "pad_to_multiple_of") and isinstance(value, int) and value > _MOST_TOKENS:
                raise UserError(f"{path}: padding to {value} tokens; at most {_MOST_TOKENS} are accepted")
            if key in ("content", "prepend") and isinstance(value, str):
                growth *= max(1, len(value))
    if growth > _MOST_GROWTH:
        raise UserError(f"{path}: its replacements make texts more than {_MOST_GROWTH} times as long; copy it again")


def _entries(held: Any) -> Iterator[tuple[str, Any]]:
    """(key, value) of all objects in some JSON, those within too."""
    waiting = [held]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield from value.items()
            waiting += value.values()
        elif isinstance(value, list):
            waiting += [each for each in value if isinstance(each, dict | list)]


def _is_native(value: Any) -> bool:
    return all(each in _NATIVE for each in value.values()) if isinstance(value, Mapping) else value in _NATIVE


def load_tokenizer(folder: str | Path, **options: Any) -> "PreTrainedTokenizerBase":
    """A tokenizer, tried on a text: some damage shows with the first one. `options` are of transformers.

    Raises:
        UserError: it cannot be loaded or does not work.
    """
    from transformers import AutoTokenizer

    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"{path} is missing: give a folder with a tokenizer")
    check_folder(path)
    with as_user_error(f"{path}: no tokenizer that works"):
        tokenizer = AutoTokenizer.from_pretrained(path, **SAFE, **options)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        for text in ("", _PROBE):  # by the backend, as its settings of padding and truncation then stay
            tokens = backend.encode(text).ids if backend else tokenizer(text).input_ids
            backend.decode(tokens) if backend else tokenizer.decode(tokens)
        if not len(tokenizer):
            raise ValueError("its vocabulary is empty")
        if not set(tokens) - set(tokenizer.all_special_ids):
            raise ValueError(f"it has no token for anything in {_PROBE.strip()!r}")
    return tokenizer


def load_text_encoder(folder: str | Path, **options: Any) -> "T5EncoderModel":
    """A T5 encoder, as of `load_network`."""
    from transformers import T5EncoderModel

    encoder: T5EncoderModel = load_network(T5EncoderModel, folder, **options)
    return encoder


def load_network(kind: Any, folder: str | Path, **options: Any) -> Any:
    """A network of diffusers or transformers in evaluation mode, of safetensors alone, all of whose tensors are there.

    Args:
        kind: its class.
        folder: holds config.json and the weights.
        options: of its `from_pretrained`, such as the number format.

    Raises:
        UserError: it cannot be loaded, tensors are missing, or it cannot compute.
    """
    check_folder(Path(folder))
    with as_user_error(f"{folder}: no {kind.__name__} that can be loaded"), _no_bars():
        network, info = kind.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True, **options
        )
        if missing := sorted(info["missing_keys"]):
            raise ValueError(f"{len(missing)} tensors are missing, such as {missing[0]}")
        if unused := sorted(name for name in info["unexpected_keys"] if not name.startswith("lm_head.")):
            raise ValueError(f"its config.json has no place for {len(unused)} tensors, such as {unused[0]}")
    from cogview3.models.trial import try_network

    try_network(network, folder)
    return network.eval()


def check_vocabulary(tokenizer: "PreTrainedTokenizerBase", model: "torch.nn.Module", source: str | Path) -> None:
    """Refuse a tokenizer with numbers of tokens that its model has no embedding for. Raises UserError."""
    room = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    last = max([*tokenizer.get_vocab().values(), *tokenizer(_PROBE, verbose=False).input_ids], default=0)
    if last >= room:
        raise UserError(
            f"{source}: its tokenizer gives tokens up to number {last}, its text model knows {room}; they do not "
            "belong together, copy or export the model again"
        )


def load_auto(kind: Any, folder: Path, **options: Any) -> Any:
    """What an Auto class of transformers makes of a folder, by `SAFE` rules and quietly. Raises what it raises."""
    with _no_bars():
        return kind.from_pretrained(folder, **SAFE, **options)


@contextmanager
def _no_bars() -> Iterator[None]:
    """Transformers' progress bars are off within this, whichever command or program loads."""
    from transformers.utils import logging

    shows_bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shows_bars:
            logging.enable_progress_bar()
