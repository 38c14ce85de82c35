r"""What text encoders trained on captions of one's own hold: things and their places, read out by linear classifiers.

Captions of two things of `own_pictures.py`, drawn anew: `a badger left of a kite on a red background`. From the
embedding of a thing's last token, a classifier reads whether it is the left or the right one ("place"; half of the
captions name the right one first); from the mean embedding, others read the left thing, the right thing, the ground.

    python benchmarks/own_text.py lobehub-fluent-emoji-3d/package/assets emojibase-data/package/en/data.json \
        --text runs/a --text runs/b
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from own_pictures import GROUNDS, TWO, choose, with_article
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from cogview3.prompts.encode import embed_text
from cogview3.prompts.text_models import load_text_encoder, load_tokenizer
from cogview3.references import weights_folder

TRAIN, TEST = 4000, 1000


def captions(names: Sequence[str], count: int, rng: np.random.Generator) -> list[tuple[str, int, int, int]]:
    """Captions that say who is left and who is right, with the numbers of left thing, right thing and ground."""
    found = []
    for _ in range(count):
        left, right = (int(each) for each in rng.choice(len(names), 2, replace=False))
        ground = int(rng.integers(len(GROUNDS)))
        said = list(GROUNDS)[ground]
        form = TWO[int(rng.integers(2))]  # the third tells no places
        things = with_article(names[left]), with_article(names[right])
        found.append((form.format(*things, ground=said, a_ground=with_article(said)), left, right, ground))
    return found


def last_token(tokenizer: PreTrainedTokenizerBase, caption: str, name: str) -> int:
    """Where the tokens of `name` in `caption` end."""
    end = caption.index(name) + len(name)
    return len(tokenizer(caption[:end], add_special_tokens=False).input_ids) - 1


def embed(
    tokenizer: PreTrainedTokenizerBase, encoder: T5EncoderModel, texts: Sequence[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings (B, L, C) and their mean over each caption's own tokens (B, C)."""
    embeddings = torch.cat([embed_text(tokenizer, encoder, texts[i : i + 200]) for i in range(0, len(texts), 200)])
    mask = tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt").attention_mask[..., None]
    return embeddings, (embeddings * mask).sum(1) / mask.sum(1)


def read(features: torch.Tensor, labels: torch.Tensor, train: int) -> float:
    """Share of features (N, C), but for the first `train`, read right by a linear classifier fitted on those."""
    features = (features - features[:train].mean(0)) / features[:train].std(0).clamp(min=1e-6)
    weight = torch.zeros(features.shape[1] + 1, int(labels.max()) + 1, requires_grad=True)
    ones = torch.cat([features, torch.ones(len(features), 1)], 1)
    optimizer = torch.optim.LBFGS([weight], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = cross_entropy(ones[:train] @ weight, labels[:train]) + 1e-4 * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[arg-type]
    return float(((ones[train:] @ weight).argmax(1) == labels[train:]).float().mean())


def main() -> None:
    """Print a line for each text encoder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("drawings", type=Path, help="folder of the drawings, package/assets")
    parser.add_argument("names", type=Path, help="emojibase's en/data.json")
    parser.add_argument("--text", action="append", required=True, help="run or model; several times for several")
    given = parser.parse_args()
    names = sorted(choose(given.drawings, given.names, np.random.default_rng(0)))
    drawn = captions(names, TRAIN + TEST, np.random.default_rng(1))
    texts, left, right, ground = zip(*drawn, strict=True)
    for source in given.text:
        tokenizer = load_tokenizer(weights_folder(source, "tokenizer"))
        encoder = load_text_encoder(weights_folder(source, "text_encoder")).eval()
        embeddings, mean = embed(tokenizer, encoder, texts)
        ends = [
            [last_token(tokenizer, t, with_article(names[k])) for t, k in zip(texts, which, strict=True)]
            for which in (left, right)
        ]
        places = torch.stack([embeddings[torch.arange(len(texts)), torch.tensor(at)] for at in ends], 1).flatten(0, 1)
        figures = {"place": read(places, torch.tensor([0, 1] * len(texts)), 2 * TRAIN)}
        for name, labels in (("left", left), ("right", right), ("ground", ground)):
            figures[name] = read(mean, torch.tensor(labels), TRAIN)
        print(source, *(f"{name} {value:.3f}" for name, value in figures.items()), sep="  ")


if __name__ == "__main__":
    main()
