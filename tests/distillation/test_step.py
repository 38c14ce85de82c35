"""The student's target against closed forms: point masses, Gaussians, constants; and the samplers that are shipped."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from cogview3.config.distill import Distill
from cogview3.diffusion import relay, schedule
from cogview3.distillation import step
from cogview3.distillation.step import Levels
from cogview3.generation.scheduler import RelayScheduler, base_scheduler

# float64 rounding of some dozen operations on numbers up to 40
EXACT = {"rtol": 1e-12, "atol": 1e-12}
SIGMAS = schedule.make_sigmas()
LADDERS = [(64, 32), (8, 4), (10, 2), (12, 4), (5, 1), (2, 1)]
STAGES = ["base", "recompute", "carry"]
VARIANCE = 0.25


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def table(stage: str, steps: int, relay_start: int = 500, blur: str = "linear", power: float = 1.0) -> Levels:
    if stage == "base":
        return step.base_levels(steps, SIGMAS)
    return step.relay_levels(steps, relay_start, SIGMAS, blur, power)


def estimate_of(stage: str) -> str:
    return "carry" if stage == "carry" else "recompute"


def states(stage: str, levels: Levels, stride: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """One sample at each of the student's steps: z_0, z_L, z_t, what `low` must be, and the teacher's step numbers."""
    first = torch.arange(0, len(levels.times), stride)
    shape = (len(first), 4, 3, 3)
    z0, zL, noise = draw(*shape, seed=seed), draw(*shape, seed=seed + 1), draw(*shape, seed=seed + 2)
    z = relay.forward(z0, zL, levels.sigmas[first], levels.f[first], noise)  # f is 0 for the base
    low = relay.blur(z0, zL, levels.f[first]) if stage == "carry" else zL
    return z0, zL, z, low, first


def student_step(stage: str, z: Tensor, x0: Tensor, low: Tensor, levels: step.StepLevels) -> Tensor:
    """The sampler's step as `diffusion.relay` has it; for the base Euler's, z + (sigma' - sigma) (z - D)/sigma."""
    if stage == "base":
        sigma, sigma_next = (schedule.expand_to(value, z) for value in levels[:2])
        return z + (sigma_next - sigma) * (z - x0) / sigma
    return relay.relay_step(z, x0, low, *levels, estimate=estimate_of(stage))


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("teacher_steps", "student_steps"), LADDERS)
@pytest.mark.parametrize(("blur", "power", "start"), [("linear", 1.0, 500), ("sigma", 1.5, 200), ("sin4", 1.2, 300)])
def test_for_a_point_mass_the_teachers_steps_are_one_student_step(
    stage: str, teacher_steps: int, student_steps: int, blur: str, power: float, start: int
) -> None:
    """Where D = z_0 at every step, the student has to learn just that, from every start."""
    levels, stride = table(stage, teacher_steps, start, blur, power), teacher_steps // student_steps
    z0, _, z, low, first = states(stage, levels, stride)
    given = None if stage == "base" else low
    ended = step.run_steps(lambda z, number: z0, z, given, levels, first, stride, estimate_of(stage))
    student = table(stage, student_steps, start, blur, power).at(torch.arange(student_steps), 1)
    torch.testing.assert_close(ended, student_step(stage, z, z0, low, student), **EXACT)
    x0 = step.student_x0(z, ended, given, student, estimate_of(stage))
    # divided by kappa, of which the smallest is 0.06
    torch.testing.assert_close(x0, z0, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("teacher_steps", "student_steps"), LADDERS)
def test_the_students_steps_are_every_kth_of_the_teachers(stage: str, teacher_steps: int, student_steps: int) -> None:
    for power in (1.0, 1.7):
        fine, coarse = (table(stage, steps, 400, "sigma", power) for steps in (teacher_steps, student_steps))
        stride = teacher_steps // student_steps
        assert fine.times[::stride].tolist() == coarse.times.tolist()
        torch.testing.assert_close(fine.sigmas[::stride], coarse.sigmas, **EXACT)
        torch.testing.assert_close(fine.f[::stride], coarse.f, **EXACT)


def exact_denoiser(levels: Levels, mean: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Posterior mean of z_0 ~ N(mean, 0.25), the relay's blurred towards mean: for the base f is 0."""

    def denoise(z: Tensor, number: Tensor) -> Tensor:
        sigma, f = schedule.expand_to(levels.sigmas[number], z), schedule.expand_to(levels.f[number], z)
        return mean + (1 - f) * VARIANCE / ((1 - f) ** 2 * VARIANCE + sigma**2) * (z - mean)

    return denoise


@pytest.mark.parametrize("prediction", schedule.PREDICTION_TYPES)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("teacher_steps", "student_steps"), LADDERS)
def test_the_target_put_through_the_students_step_gives_where_the_teacher_ends(
    stage: str, teacher_steps: int, student_steps: int, prediction: str
) -> None:
    levels, stride = table(stage, teacher_steps), teacher_steps // student_steps
    _, zL, z, low, first = states(stage, levels, stride)
    given = None if stage == "base" else low
    ended = step.run_steps(exact_denoiser(levels, zL), z, given, levels, first, stride, estimate_of(stage))
    student = levels.at(first, stride)
    target = step.student_target(z, ended, given, student, prediction, estimate_of(stage))
    x0 = schedule.to_x0(target, z, student[0], prediction)
    torch.testing.assert_close(student_step(stage, z, x0, low, student), ended, rtol=1e-11, atol=1e-11)
    last = student_step(stage, z, x0, low, student)[-1]
    torch.testing.assert_close(last, x0[-1], **EXACT)  # sigma' = f' = 0: the prediction is where the teacher ends


def closed_form(levels: Levels, start: int, stride: int) -> float:
    """Factor of z - mean over the teacher's steps with the exact denoiser, z_0^t recomputed, by plain numbers.

    With g = (1 - f) v / ((1 - f)^2 v + sigma^2), a step takes z - mean to (a + b g + c (1 - f) g) times itself:
    a = s'/s, b = 1 - f'/f, c = f'/f - a; without blur (a + (1 - a) g).
    """
    sigmas, blurs, factor = levels.sigmas.tolist(), levels.f.tolist(), 1.0
    for i in range(start, start + stride):
        f, a = blurs[i], sigmas[i + 1] / sigmas[i]
        g = (1 - f) * VARIANCE / ((1 - f) ** 2 * VARIANCE + sigmas[i] ** 2)
        kept = blurs[i + 1] / f if f else 0.0
        factor *= a + (1 - kept) * g + (kept - a) * (1 - f) * g if f else a + (1 - a) * g
    return factor


@pytest.mark.parametrize("stage", ["base", "recompute"])
@pytest.mark.parametrize(("ladder", "prediction"), [((64, 32, 16, 8, 4), "epsilon"), ((20, 10, 2, 1), "v_prediction")])
def test_linear_students_fitted_by_least_squares_recover_the_closed_form(
    stage: str, ladder: tuple[int, ...], prediction: str
) -> None:
    """Every round a network out = a z + b mean for each step, fitted to targets, then the next one's teacher.

    For Gaussian data all is linear, so the last student must sample what the first teacher does.
    """
    mean = draw(200, 1, 1, 1, seed=1)
    finest = table(stage, ladder[0])
    denoise = exact_denoiser(finest, mean)
    for teacher_steps, student_steps in pairwise(ladder):
        levels, coarse = table(stage, teacher_steps), table(stage, student_steps)
        stride, fits = teacher_steps // student_steps, []
        for number in range(student_steps):
            first = torch.full((len(mean),), number * stride)
            now = levels.at(first, stride)
            z0, noise = mean + VARIANCE**0.5 * draw(200, 1, 1, 1, seed=2), draw(200, 1, 1, 1, seed=3)
            z = relay.forward(z0, mean, now[0], now[2], noise)
            low = None if stage == "base" else mean
            ended = step.run_steps(denoise, z, low, levels, first, stride)
            target = step.student_target(z, ended, low, now, prediction)
            columns = torch.stack([z.flatten(), mean.flatten()], 1)
            fits.append(torch.linalg.lstsq(columns, target.flatten()).solution)
        fitted = torch.stack(fits)

        def denoise(z: Tensor, number: Tensor, fitted: Tensor = fitted, coarse: Levels = coarse) -> Tensor:
            a, b = (schedule.expand_to(value, z) for value in fitted[number].unbind(1))
            return schedule.to_x0(a * z + b * mean, z, coarse.sigmas[number], prediction)

        stride = ladder[0] // student_steps
        for number in range(student_steps):
            first, one = torch.full((len(mean),), number), table(stage, student_steps)
            z = mean + draw(200, 1, 1, 1, seed=4) * one.sigmas[number]
            ended = step.run_steps(denoise, z, None if stage == "base" else mean, one, first, 1)
            expected = mean + closed_form(finest, number * stride, stride) * (z - mean)
            # least squares squares the condition number of columns of size 15 and 1, in each of four rounds
            torch.testing.assert_close(ended, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("steps", [2, 3, 4, 8])
def test_constants_are_fixed_points_of_every_stride(stage: str, steps: int) -> None:
    levels, k = table(stage, steps), torch.full((1, 4, 2, 2), 1.7, dtype=torch.float64)
    given = None if stage == "base" else k
    for stride in range(1, steps + 1):
        for number in range(steps - stride + 1):
            now = levels.at(torch.tensor([number]), stride)
            torch.testing.assert_close(step.student_x0(k, k, given, now, estimate_of(stage)), k, **EXACT)


@pytest.mark.parametrize("t", [2, 4, 8])
def test_equation_9_as_printed_has_no_fixed_points(t: int) -> None:
    """From t to t - 2 of p = 8 steps: z'' = s''/s z + b D + ((t - 2)/t - s''/s) z_0^t, printed with b = 1/t."""
    levels = table("carry", 8)
    number = torch.tensor([8 - t])
    r = levels.sigmas[8 - t + 2] / levels.sigmas[8 - t]
    k = torch.full((1, 4, 2, 2), 1.7, dtype=torch.float64)

    def equation_9(b: float) -> Tensor:
        return r * k + b * k + ((t - 2) / t - r) * k

    now = levels.at(number, 2)
    assert step.step_gain(now, "carry").item() == pytest.approx(2 / t, rel=1e-12)
    torch.testing.assert_close(equation_9(2 / t), k, **EXACT)
    torch.testing.assert_close(relay.relay_step(k, k, k, *now, estimate="carry"), k, **EXACT)
    torch.testing.assert_close(equation_9(1 / t), (t - 1) / t * k, **EXACT)
    # a student trained for the printed step would have to exaggerate what it predicts
    wanted = (k - equation_9(0.0)) * t
    torch.testing.assert_close(wanted, 2 * k, **EXACT)


@pytest.mark.parametrize("prediction", schedule.PREDICTION_TYPES)
@pytest.mark.parametrize("stage", STAGES)
def test_the_weighted_error_of_the_output_is_that_of_the_variance_preserving_state(stage: str, prediction: str) -> None:
    levels, stride = table(stage, 12), 3
    _, _, z, low, first = states(stage, levels, stride)
    given, student = None if stage == "base" else low, levels.at(first, stride)
    ended, output = draw(*z.shape, seed=8), draw(*z.shape, seed=9)
    target = step.student_target(z, ended, given, student, prediction, estimate_of(stage))
    weight = step.step_weight(student, prediction, estimate_of(stage))
    x0 = schedule.to_x0(output, z, student[0], prediction)
    missed = student_step(stage, z, x0, low, student) - ended
    loss = weight * (output - target).square().mean((1, 2, 3))
    given_next = schedule.scale_model_input(missed, student[1])  # what the next step's network is given
    torch.testing.assert_close(loss, given_next.square().mean((1, 2, 3)), rtol=1e-10, atol=0)


def test_the_weights_are_those_told() -> None:
    now = table("base", 4).at(torch.arange(4), 1)
    weights = step.step_weight(now, "v_prediction")
    assert (weights / weights.sum()).tolist() == pytest.approx([0.05, 0.16, 0.26, 0.53], abs=0.005)
    papers = weights * (1 + now[1] ** 2)
    assert (papers / papers.sum()).tolist() == pytest.approx([0.36, 0.24, 0.17, 0.23], abs=0.005)
    for stage in STAGES:
        gain = step.step_gain(table(stage, 6).at(torch.arange(6), 1), estimate_of(stage))
        assert 0 < gain.min() < gain.max() <= 1
        assert gain[-1] == 1


def test_large_guidance_does_not_rule_the_loss() -> None:
    """Of a student that is its teacher's conditional branch, with w log-uniform in the default range, by quadrature."""
    low, high = Distill(teacher="scenes", steps=(4, 2)).guidance_range
    assert low == 1
    w = torch.linspace(0, math.log(high), 20_001, dtype=torch.float64).exp()
    conditional, unconditional = draw(1, 4, 3, 3, seed=1), draw(1, 4, 3, 3, seed=2)
    guided = unconditional + w.view(-1, 1, 1, 1) * (conditional - unconditional)
    errors = (conditional - guided).square().mean((1, 2, 3))
    linear, alike = (step.guidance_weight(w, power) * errors for power in (1, 2))

    def share(loss: torch.Tensor, above: float) -> float:
        return (loss[w > above].sum() / loss.sum()).item()

    def total(w: float) -> float:
        """Integral of (w - 1)^2 / w over log w."""
        return w - 2 * math.log(w) - 1 / w

    assert share(errors, 6) == pytest.approx(0.52, abs=0.01)
    for above, told in ((6, 0.39), (7.5, 0.10)):
        expected = (total(high) - total(above)) / (total(high) - total(1))
        assert share(linear, above) == pytest.approx(expected, abs=0.001) == pytest.approx(told, abs=0.005)
    assert (total(12) - total(7.5)) / (total(12) - total(1)) == pytest.approx(0.52, abs=0.005)  # of [1, 12]
    assert share(alike, 6) == pytest.approx(0.21, abs=0.01)
    assert alike.max() < (conditional - unconditional).square().mean()
    three = torch.tensor([1.0, 2.0, 4.0])
    assert step.guidance_weight(three, 2).tolist() == pytest.approx([1, 0.5, 0.1])
    assert step.guidance_weight(three).tolist() == pytest.approx([1, 0.5, 0.25])
    assert step.guidance_weight(torch.tensor([0.0, 2.0])).tolist() == pytest.approx([0.5, 0.5])


def test_a_whole_run_is_the_relay_schedulers(seeded: Callable[[int], torch.Generator]) -> None:
    network = torch.nn.Conv2d(4, 4, 1).double().requires_grad_(False)
    z0, zL, z, _, _ = states("recompute", table("recompute", 1, 300), 1)
    for estimate in relay.BLUR_ESTIMATES:
        scheduler = RelayScheduler(relay_start=300, blur="sin4", power=1.5, blur_estimate=estimate)
        scheduler.set_timesteps(5)
        levels = step.relay_levels(5, 300, SIGMAS, "sin4", 1.5)
        expected = z
        for t in scheduler.timesteps:
            expected = scheduler.step(network(expected), t, expected, zL).prev_sample

        def denoise(z: Tensor, number: Tensor, levels: Levels = levels) -> Tensor:
            return schedule.to_x0(network(z), z, levels.sigmas[number])

        ended = step.run_steps(denoise, z, zL, levels, torch.zeros(len(z0), dtype=torch.long), 5, estimate)
        torch.testing.assert_close(ended, expected, **EXACT)


def test_a_whole_run_is_eulers() -> None:
    network = torch.nn.Conv2d(4, 4, 1).requires_grad_(False)
    scheduler = base_scheduler("v_prediction")
    scheduler.set_timesteps(timesteps=schedule.base_timesteps(6))
    levels, z = step.base_levels(6, SIGMAS), draw(2, 4, 3, 3, seed=5).float() * 14.6
    expected = z
    for t in scheduler.timesteps:
        output = network(scheduler.scale_model_input(expected, t))
        expected = scheduler.step(output, t, expected, return_dict=False)[0]

    def denoise(z: Tensor, number: Tensor) -> Tensor:
        sigma = levels.sigmas[number]
        return schedule.to_x0(network(schedule.scale_model_input(z, sigma)), z, sigma, "v_prediction")

    ended = step.run_steps(denoise, z, None, levels, torch.zeros(2, dtype=torch.long), 6)
    # diffusers' sigmas are float32, from betas in float32: 1e-5 of numbers up to 40
    torch.testing.assert_close(ended, expected, rtol=1e-4, atol=1e-4)


def test_impossible_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="num_steps 1001"):
        step.base_levels(1001, SIGMAS)
    with pytest.raises(ValueError, match="num_steps 300 repeats noise levels"):
        step.relay_levels(300, 200, SIGMAS)
