"""Captions written by an image-text-to-text model of transformers.

Batches are the same ones however often a shard was taken up again, so that with one batch size texts do not depend on
interruptions, engines or workers. With another one, sums are taken in another order: greedy texts then differ only
where two tokens are equally likely to within rounding, about 1e-6 in float32 (but 1e-2 in bfloat16).
"""

import copy
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from cogview3.captions.inputs import Asker, find_model, load_model, load_processor
from cogview3.captions.rows import FAILED, Row, Sample, request, written
from cogview3.config import UserError
from cogview3.data import draws
from cogview3.data.entries import Entry
from cogview3.data.report import Skipped
from cogview3.errors import one_line
from cogview3.fingerprints import folder_fingerprint

MAX_NEW_TOKENS = 256
"""Of a caption, unless the model's own configuration tells."""

MOST_FAILED = 16
"""Pictures that may fail before the first succeeds; after that the model is to blame."""


@dataclass(frozen=True)
class ModelJob:
    """A model to load. Raises UserError for a value out of range."""

    model: str  # folder, run, bundled name or name on the hub, as `inputs.find_model` takes them
    device: str = "cpu"  # "cpu", "mps" or "cuda"; worker n takes CUDA device n, modulo their number
    dtype: str = "float32"  # of the weights, such as "float32"
    batch: int = 8  # pictures at once
    seed: int = 0  # of samples; without effect at temperature 0
    temperature: float = 0.0  # 0 takes the likeliest token, 1 draws as the model's probabilities tell
    max_new_tokens: int | None = None  # of a caption; None takes the model's own, else `MAX_NEW_TOKENS`
    has_budget: ClassVar[bool] = False  # a local model has no limits of spending

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise UserError(f"batch {self.batch}: give 1 or more")
        if not 0 <= self.temperature <= 10:
            raise UserError(f"temperature {self.temperature}: give 0 (the likeliest) to 10")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens {self.max_new_tokens}: give 1 or more")

    @property
    def name(self) -> str:
        """The model as it was given, without the folders above it."""
        return self.model.rstrip("/") if self.model.count("/") == 1 else Path(self.model).resolve().name

    @property
    def settings(self) -> dict[str, Any]:
        """What the texts depend on. Raises UserError where the model is not there."""
        return {
            "weights": folder_fingerprint(find_model(self.model))[:12],
            "request": request(""),
            "dtype": self.dtype,
            "seed": self.seed if self.temperature else None,
            "temperature": self.temperature,
            "max_new_tokens": self.max_new_tokens,
        }

    def load(self, place: int) -> "ModelWriter":
        """The model on the device of worker `place`."""
        device = f"cuda:{place % torch.cuda.device_count()}" if self.device == "cuda" else self.device
        folder = find_model(self.model)
        return ModelWriter(load_model(folder, self.dtype).to(device), load_processor(folder), self)


@dataclass(frozen=True)
class _Batch:
    """Pictures ready for the model, with rows of those that are not."""

    entries: list[Entry]
    images: list[Any]
    inputs: Any
    rows: list[Row]


class ModelWriter:
    """A model, in evaluation mode on its device, that writes captions by batches while the next one is made ready."""

    def __init__(self, model: Any, asker: Asker, job: ModelJob) -> None:
        self.model, self.asker, self.job = model, asker, job
        config = copy.deepcopy(model.generation_config)
        limit = job.max_new_tokens or config.max_new_tokens or MAX_NEW_TOKENS
        config.update(do_sample=False, num_beams=1, temperature=None, top_p=None, top_k=None, max_length=None)
        config.update(max_new_tokens=limit, return_dict_in_generate=False)
        config.pad_token_id = asker.tokenizer.pad_token_id
        if config.eos_token_id is None:
            config.eos_token_id = asker.tokenizer.eos_token_id
        self.config = config
        ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
        self._ends = {int(end) for end in ends if end is not None}
        self._failed = self._succeeded = 0

    def run(self, samples: Iterable[Sample]) -> Iterator[list[Row]]:
        """As `rows.Writer.run`, a batch at a time."""
        waiting = iter(samples)
        with ThreadPoolExecutor(1) as pool:

            def following() -> Future[_Batch | None]:
                return pool.submit(lambda: self._prepare(list(islice(waiting, self.job.batch))))

            ahead = following()
            while (batch := ahead.result()) is not None:
                ahead = following()
                rows = [*batch.rows, *self._write(batch)] if batch.entries else batch.rows
                self._judge(rows)
                yield rows

    def _prepare(self, samples: Sequence[Sample]) -> _Batch | None:
        """Decode a batch's pictures and make inputs of them; an empty one where all are done, None at the end."""
        if not samples:
            return None
        batch = _Batch([], [], None, [])
        self._succeeded += sum(sample.done for sample in samples)  # in an earlier run
        if all(sample.done for sample in samples):
            return batch
        for entry in (sample.entry for sample in samples):
            try:
                batch.images.append(entry.decode().image)
                batch.entries.append(entry)
            except Skipped as reason:
                batch.rows.append(Row(entry.key, entry.old, None, FAILED, str(reason)))
        if batch.entries:
            with suppress(Exception):  # processors raise nearly anything; `_write` finds out which picture it is
                return replace(batch, inputs=self._inputs(batch))
        return batch

    def _inputs(self, batch: _Batch) -> Any:
        return self.asker.inputs(batch.images, [entry.old for entry in batch.entries])

    def _write(self, batch: _Batch) -> list[Row]:
        """Rows of a batch. Where that fails, halves of it are tried, down to the picture that is to blame."""
        try:
            inputs = self._inputs(batch) if batch.inputs is None else batch.inputs
            return self.generate(inputs, [each.key for each in batch.entries], [each.old for each in batch.entries])
        except torch.AcceleratorError:
            raise  # the device is lost, and the worker with it
        except Exception as error:
            full = isinstance(error, MemoryError | torch.OutOfMemoryError)
            reason = "out of memory" if full else one_line(error, 200, typed=True)
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(batch.entries) == 1:
            return [Row(batch.entries[0].key, batch.entries[0].old, None, FAILED, reason)]
        half = len(batch.entries) // 2
        parts = [_Batch(batch.entries[part], batch.images[part], None, []) for part in (slice(half), slice(half, None))]
        return [row for part in parts for row in self._write(part)]

    @torch.inference_mode()
    def generate(self, inputs: Any, keys: Sequence[str], olds: Sequence[str]) -> list[Row]:
        """Rows of prepared inputs."""
        inputs = inputs.to(self.model.device, dtype=self.model.dtype)  # whole numbers stay what they are
        start = 1 if self.model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
        drawing = [Draw(keys, self.job.seed, self.job.temperature, start)] if self.job.temperature else []
        tokens = self.model.generate(
            **inputs, generation_config=self.config, logits_processor=LogitsProcessorList(drawing)
        )
        return [self._row(key, old, line[start:]) for key, old, line in zip(keys, olds, tokens.tolist(), strict=True)]

    def _row(self, key: str, old: str, tokens: list[int]) -> Row:
        end = next((place for place, token in enumerate(tokens) if token in self._ends), None)
        used = tokens if end is None else tokens[: end + 1]
        text = self.asker.tokenizer.decode(used, skip_special_tokens=True)
        return written(key, old, text, len(used), end is not None)

    def _judge(self, rows: Sequence[Row]) -> None:
        """Raise UserError where nothing but failures came so far, as then the model is to blame, not the pictures."""
        failed = [row for row in rows if row.status == FAILED]
        self._failed, self._succeeded = self._failed + len(failed), self._succeeded + len(rows) - len(failed)
        if failed and not self._succeeded and self._failed >= MOST_FAILED:
            raise UserError(
                f"none of the first {self._failed} pictures could be captioned ({failed[-1].key}: {failed[-1].error}); "
                f"check the model {self.job.model} and the pictures"
            )


class Draw(LogitsProcessor):
    """Leave of each row's tokens one, drawn with their probabilities by (seed, key, place) alone.

    The chance is a hash, not a generator's next number, so that neighbors in the batch do not matter.
    """

    def __init__(self, keys: Sequence[str], seed: int, temperature: float, start: int) -> None:
        self._keys, self._seed, self._temperature, self._start = keys, seed, temperature, start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (B, V) to such with one finite value a row, by the inverse of the cumulative distribution."""
        place = input_ids.shape[1] - self._start
        chances = [draws.chance("token", self._seed, key, place) for key in self._keys]
        wide = torch.float32 if scores.device.type == "mps" else torch.float64
        total = (scores.float() / self._temperature).softmax(-1).to(wide).cumsum(-1)
        at = torch.tensor(chances, dtype=wide, device=scores.device).unsqueeze(1) * total[:, -1:]
        chosen = torch.searchsorted(total, at, right=True).clamp(max=scores.shape[1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)
