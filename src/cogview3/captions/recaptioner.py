"""Fine-tuning of an image-text-to-text model of transformers into a recaptioner, by trl and peft.

It learns what `inputs.Asker` asks and answers: the loss is the new caption's alone. The held-out loss is watched, and
training ends where it does not fall any more: the paper keeps it short, 1,500 steps of 256, against overfitting.

    run/recipe.toml                settings
    run/metrics.jsonl              losses, one JSON object a line
    run/checkpoints/checkpoint-N/  after N steps, to resume from
    run/weights/recaptioner/       the best one, merged, with its processor: what `captions recaption --model run` loads
    run/result.json                written last
"""

import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from cogview3.captions.inputs import Asker, find_model, load_model, load_processor
from cogview3.captions.pairs import Pair, Pairs
from cogview3.checkpoints import append_line, open_run, read_json, whole_folder, write_text
from cogview3.config import FinetuneSettings, UserError
from cogview3.precision import computes_bfloat16

_VISION = r"(.*\.)?(vision\w*|visual\w*|image_encoder)\..*"
"""Names of layers that LoRA leaves as they are: those that see."""


def finetune(
    pairs: Pairs,
    model: str,
    run: Path,
    settings: FinetuneSettings,
    *,
    device: str = "cpu",
    micro_batch: int = 8,
    workers: int = 0,
    restart: bool = False,
    progress: Callable[[int, str], None] = lambda images, note: None,
) -> dict[str, Any]:
    """Fine-tune a model into the folder `run`, or resume there.

    Under torchrun or accelerate launch each process takes its part of every batch. `model` is as `inputs.find_model`
    takes it, `micro_batch` the pictures at once on a device, `workers` the processes that read them; `restart` moves
    an earlier run aside; `progress` is given the images seen, and the losses in words. Returns what result.json holds.

    Raises UserError where the run is another's or in another process's use, the model cannot be used, or a batch cannot
    be split as asked.
    """
    trl = _import_trl()
    from transformers.trainer_callback import PrinterCallback

    world, first = int(os.environ.get("WORLD_SIZE", "1")), os.environ.get("RANK", "0") == "0"
    if restart and world > 1:
        raise UserError("--restart is for one process; move the run aside by hand")
    micro_batch = min(micro_batch, settings.batch)
    if settings.batch % (micro_batch * world):
        raise UserError(
            f"batch {settings.batch}: not a multiple of {micro_batch} at once on {world} devices; change --at-once"
        )
    learned, apart = pairs.split(settings.held_out)
    folder = find_model(model)
    asker = load_processor(folder)
    recipe = {"kind": "captions-finetune", "model": model, "learned": len(learned), "held_out": len(apart)}
    chosen = {key: value for key, value in settings.model_dump().items() if value is not None}
    with open_run(run, {"recipe": recipe, "finetune": chosen}, restart) if first else nullcontext():
        if (run / "result.json").is_file():
            return read_json(run / "result.json", "start over with --restart")
        newest = _newest_checkpoint(run / "checkpoints")
        dtype = "bfloat16" if device == "cuda" and computes_bfloat16(device) and not settings.full else "float32"
        trainer = _trainer_class(trl, settings)(
            model=load_model(newest if newest and settings.full else folder, dtype),
            args=_arguments(trl, run, settings, device, micro_batch, world, workers, newest is None),
            data_collator=partial(_collate, asker),
            train_dataset=_dataset(pairs, learned),
            eval_dataset=_dataset(pairs, apart),
            processing_class=asker.processor,
            peft_config=None if settings.full else _lora(settings),
            callbacks=[_watch(run, settings, progress)],
        )
        trainer.remove_callback(PrinterCallback)  # `_watch` tells how it goes
        asker.tokenizer.padding_side = "left"  # trainers set it as they like
        trainer.train(resume_from_checkpoint=str(newest) if newest else None)
        state = trainer.state
        if state.best_global_step is None or not math.isfinite(state.best_metric):
            raise UserError(
                f"{run}: no held-out loss is a number; give a lower --learning-rate than {settings.rate:g}, and "
                "--restart"
            )
        result = {
            "run": str(run),
            "model": str(run / "weights" / "recaptioner"),
            "steps": state.global_step,
            "images": state.global_step * settings.batch,
            "ended_early": state.global_step < settings.steps,
            "best_step": state.best_global_step,
            "held_out_loss_before": _held_out(state)[0],
            "held_out_loss": state.best_metric,
            "learned": len(learned),
            "held_out": len(apart),
            "broken": dict(pairs.report.broken),
        }
        if trainer.is_world_process_zero():
            best = run / "checkpoints" / f"checkpoint-{state.best_global_step}"
            _save(best, folder, dtype, asker, run / "weights" / "recaptioner", settings)
            write_text(run / "result.json", json.dumps(result, indent=2) + "\n")
        return result


def _arguments(
    trl: ModuleType,
    run: Path,
    settings: FinetuneSettings,
    device: str,
    micro: int,
    world: int,
    workers: int,
    fresh: bool,
) -> Any:
    every = max(1, min(settings.check_images // settings.batch, settings.steps))
    recompute = "activation_checkpointing"  # what later versions of transformers call gradient checkpointing
    recompute = recompute if recompute in trl.SFTConfig.__dataclass_fields__ else "gradient_checkpointing"
    return trl.SFTConfig(
        output_dir=str(run / "checkpoints"),
        max_steps=settings.steps,
        per_device_train_batch_size=micro,
        per_device_eval_batch_size=micro,
        gradient_accumulation_steps=settings.batch // (micro * world),
        learning_rate=settings.rate,
        lr_scheduler_type="cosine",
        warmup_steps=round(0.03 * settings.steps),
        weight_decay=0.0,
        eval_strategy="steps",
        eval_steps=every,
        eval_on_start=fresh,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        logging_steps=max(1, every // 10),
        report_to="none",
        disable_tqdm=True,
        bf16=device == "cuda" and computes_bfloat16(device),
        use_cpu=device == "cpu",
        **{recompute: device == "cuda"},
        dataloader_num_workers=workers,
        dataloader_pin_memory=device == "cuda",
        seed=settings.seed,
        remove_unused_columns=False,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
    )


def _lora(settings: FinetuneSettings) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=settings.rank,
        lora_alpha=2 * settings.rank,
        target_modules="all-linear",
        exclude_modules=_VISION,
        task_type="CAUSAL_LM",
    )


def _collate(asker: Asker, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch of lessons: tokens, pictures, and labels that leave out all but the new captions."""
    return asker.lesson(*([row[name] for row in rows] for name in ("image", "old", "new")))


def _with_images(pairs: Pairs, rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
    images = [pairs.image(shard, offset) for shard, offset in zip(rows["shard"], rows["offset"], strict=True)]
    return {"image": images, "old": rows["old"], "new": rows["new"]}


def _dataset(pairs: Pairs, chosen: Sequence[Pair]) -> Any:
    """A data set of the library that trl wants, which reads pictures when their turn comes."""
    from datasets import Dataset

    names = ("shard", "offset", "old", "new")
    columns = {name: [getattr(pair, name) for pair in chosen] for name in names}
    return Dataset.from_dict(columns).with_transform(partial(_with_images, Pairs(pairs.shards)))


def _trainer_class(trl: ModuleType, settings: FinetuneSettings) -> type:
    """The trainer of trl; of all weights, it leaves loading a checkpoint's to us.

    It would read them by the names of the model's parameters, which differ from those in files for many models.
    """

    class Trainer(trl.SFTTrainer):
        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
            if not settings.full:
                super()._load_from_checkpoint(resume_from_checkpoint, model)

    return Trainer


def _held_out(state: Any) -> list[float]:
    """Held-out losses so far, also of the runs before this one."""
    return [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]


def _watch(run: Path, settings: FinetuneSettings, progress: Callable[[int, str], None]) -> Any:
    """What writes metrics.jsonl, tells how it goes, and ends training where the held-out loss does not fall."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
            if state.is_world_process_zero and logs:
                images = state.global_step * settings.batch
                append_line(run / "metrics.jsonl", json.dumps({"step": state.global_step, "images": images, **logs}))
                losses = [f"loss {logs['loss']:.3f}"] if "loss" in logs else []
                losses += [f"held-out loss {loss:.3f}" for loss in _held_out(state)[-1:]]
                progress(images, ", ".join(losses))

        def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            losses = _held_out(state)
            since = len(losses) - 1 - losses.index(min(losses))
            control.should_training_stop |= since >= settings.patience

    return Watch()


def _newest_checkpoint(folder: Path) -> Path | None:
    """The last checkpoint that was written to its end; later ones are cut, and removed."""
    numbered = {path: path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*")}
    found = {int(number): path for path, number in numbered.items() if number.isdecimal()}
    for number in sorted(found, reverse=True):
        try:
            json.loads((found[number] / "trainer_state.json").read_bytes())  # written last
            return found[number]
        except (FileNotFoundError, ValueError):
            shutil.rmtree(found[number], ignore_errors=True)
    return None


def _save(checkpoint: Path, base: Path, dtype: str, asker: Asker, target: Path, settings: FinetuneSettings) -> None:
    """Write a checkpoint as a model folder, LoRA merged into the weights it was trained on, with its processor."""
    if settings.full:
        model = load_model(checkpoint, dtype)
    else:
        from peft import PeftModel

        model = PeftModel.from_pretrained(load_model(base, dtype), checkpoint).merge_and_unload()
    with whole_folder(target) as temporary:
        model.save_pretrained(temporary)
        asker.processor.save_pretrained(temporary)


def _import_trl() -> ModuleType:
    try:
        import datasets  # noqa: F401
        import peft  # noqa: F401
        import trl
    except ImportError as error:
        raise UserError(
            f'fine-tuning needs trl, peft and datasets ({error}); install them with pip install "cogview3[finetune]"'
        ) from None
    return trl
