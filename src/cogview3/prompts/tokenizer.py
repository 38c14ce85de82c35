"""A T5-like tokenizer of our own: whole words of a small world, lower case, characters and bytes for the rest."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from cogview3.config import UserError

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
_BYTES = [f"<0x{value:02X}>" for value in range(256)]
_CHARACTERS = [*"abcdefghijklmnopqrstuvwxyz0123456789", "▁"]
_CLOSING = ".,:;?!"  # stand without a space before them; each is a word of its own
_CHARACTER_SCORE, _BYTE_SCORE = -20.0, -40.0  # words first, then characters, bytes last


def build_tokenizer(
    texts: Iterable[str], vocab_size: int, max_length: int, ends_texts: bool = True
) -> PreTrainedTokenizerFast:
    """Make a Unigram tokenizer of the most frequent words. As in T5: pad 0, end 1, unknown 2, the end token appended.

    Words are scored by their frequency. Unigram training, made for open text, splits the words of a small closed
    world into three pieces on average; here each is one token.

    Args:
        texts: captions to count words in.
        vocab_size: tokens in all, with 3 special ones, 37 characters and 256 bytes; ids that no word fills stay free.
        max_length: `model_max_length`, tokens that every prompt is padded or cut to.
        ends_texts: append the end token, and pad on the right; not for a causal model, whose texts go on.

    Raises:
        UserError: a vocabulary too small for words.
    """
    fixed = 3 + len(_CHARACTERS) + len(_BYTES)
    if vocab_size <= fixed:
        raise UserError(f"a vocabulary of {vocab_size} has no room for words; give more than {fixed}")
    splitter = _backend([(UNKNOWN, 0.0)], unknown=0)
    counts: Counter[str] = Counter()
    for text in texts:
        normal = splitter.normalizer.normalize_str(text)
        counts.update(piece for piece, _ in splitter.pre_tokenizer.pre_tokenize_str(normal))
    total = max(1, counts.total())
    # ties go by the alphabet, so that the vocabulary does not depend on the order of the texts
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[: vocab_size - fixed]
    words = [(word, math.log(count / total)) for word, count in ranked]
    special = [(name, 0.0) for name in (PAD, END, UNKNOWN)]
    characters = [(name, _CHARACTER_SCORE) for name in _CHARACTERS if name not in dict(words)]
    backend = _backend(special + words + characters + [(name, _BYTE_SCORE) for name in _BYTES], unknown=2)
    backend.decoder = _decoder()
    if ends_texts:
        backend.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        model_max_length=max_length,
        padding_side="right" if ends_texts else "left",
    )


def writes_text(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The same tokenizer, made by an earlier `build_tokenizer`, with the decoder of today's; changed in place."""
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    tokenizer.backend_tokenizer.decoder = _decoder()
    return tokenizer


def vocabulary_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """64 hexadecimal digits that tell apart vocabularies: their words and the numbers of these."""
    return hashlib.sha256(repr(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()


def _decoder() -> decoders.Decoder:
    """Tokens to text; punctuation, a token of its own, loses the space before it."""
    no_space = [decoders.Replace(f" {mark}", mark) for mark in _CLOSING]
    return decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse(), *no_space])


def _backend(vocabulary: list[tuple[str, float]], unknown: int) -> Tokenizer:
    backend = Tokenizer(Unigram(vocabulary, unk_id=unknown, byte_fallback=unknown > 0))
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(), pre_tokenizers.Metaspace()]
    )
    return backend
