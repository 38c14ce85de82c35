"""`distill`: from a recipe to a student of few steps, round by round."""

from typing import Any

from cogview3.cli.loading import quiet_libraries
from cogview3.cli.options import (
    Device,
    DeviceOption,
    JsonOption,
    OverridesOption,
    RecipeArgument,
    RestartOption,
    RunFolderOption,
    clean_stdout,
    pick_device,
    pick_run,
    report,
)
from cogview3.cli.train import leave_processes


def distill(
    recipe: RecipeArgument,
    overrides: OverridesOption = None,
    out: RunFolderOption = None,
    restart: RestartOption = False,
    device: DeviceOption = Device.auto,
    as_json: JsonOption = False,
) -> None:
    """Distill a base or relay stage into few steps, or resume a distillation.

    The same command resumes a stopped run; finished rounds are left as they are.
    """
    from cogview3.config import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    run = pick_run(out, loaded.name)
    with clean_stdout(as_json):
        quiet_libraries()
        from cogview3.distillation.rounds import distill as distill_rounds

        result = distill_rounds(loaded, out=run, restart=restart, device=pick_device(device))
    if leave_processes():
        report(result, "\n".join([f"run: {result['run']}", *map(_line, result["rounds"])]), as_json)


def _line(entry: dict[str, Any]) -> str:
    """One round in words, such as `round-4: 8 to 4 steps, 20000 images, loss 0.0123 to 0.0031, 812 s`."""
    steps = f"{entry['teacher_steps']} to {entry['student_steps']} steps, " if "student_steps" in entry else ""
    losses = f"loss {entry['first_loss']:.4g} to {entry['loss']:.4g}"
    return f"{entry['round']}: {steps}{entry['images']} images, {losses}, {entry['seconds']:.0f} s"
