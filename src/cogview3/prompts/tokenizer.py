"""A T5-like tokenizer of our own: Unigram pieces, lower case, bytes for whatever is unknown."""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import Unigram
from transformers import PreTrainedTokenizerFast

from cogview3.config import UserError

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
_BYTES = [f"<0x{value:02X}>" for value in range(256)]
_BYTE_SCORE = -20.0  # below every learned piece, so that bytes are the last resort


def train_tokenizer(texts: Iterable[str], vocab_size: int, max_length: int) -> PreTrainedTokenizerFast:
    """Learn a Unigram vocabulary from texts. As in T5: pad 0, end 1, unknown 2, the end token appended.

    Args:
        texts: captions to learn from.
        vocab_size: pieces in all, among them the 256 bytes and three special tokens.
        max_length: `model_max_length`, tokens that every prompt is padded or cut to.

    Raises:
        UserError: a vocabulary too small for the bytes and some pieces.
    """
    special = [PAD, END, UNKNOWN]
    room = vocab_size - len(_BYTES)
    if room < 2 * len(special):
        raise UserError(f"a vocabulary of {vocab_size} has no room for pieces; give {len(_BYTES) + 256} or more")
    learned = _backend(Unigram())
    learned.train_from_iterator(
        texts,
        trainers.UnigramTrainer(vocab_size=room, special_tokens=special, unk_token=UNKNOWN, show_progress=False),
    )
    pieces = learned.to_str()
    backend = _backend(Unigram(_scored(pieces), unk_id=2, byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    backend.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=PAD, eos_token=END, unk_token=UNKNOWN, model_max_length=max_length
    )


def _backend(model: Unigram) -> Tokenizer:
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(), pre_tokenizers.Metaspace()]
    )
    return backend


def _scored(serialized: str) -> list[tuple[str, float]]:
    import json

    learned = [(piece, float(score)) for piece, score in json.loads(serialized)["model"]["vocab"]]
    return learned + [(piece, _BYTE_SCORE) for piece in _BYTES]
