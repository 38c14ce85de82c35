"""The base's samplers against the exact solution for Gaussian data, and in the pipeline."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

from cogview3 import CogView3Pipeline
from cogview3.config import UserError
from cogview3.diffusion import relay, schedule
from cogview3.generation.scheduler import RelayScheduler, base_scheduler, sampler_scheduler
from cogview3.models.modes import Mode

SIGMAS = schedule.make_sigmas()
VARIANCE = 0.25


def gaussian_output(z: torch.Tensor, sigma: torch.Tensor, prediction: str) -> torch.Tensor:
    """What a perfect network puts out for z_t = z_0 + sigma eps, z_0 normal with mean 0.5 and VARIANCE."""
    x0 = 0.5 + VARIANCE / (VARIANCE + sigma**2) * (z - 0.5)
    return schedule.target_from_x0(x0, z, sigma, prediction)


def sample_base(name: str, times: list[int], start: torch.Tensor, prediction: str = "v_prediction") -> torch.Tensor:
    """z_0 from unit noise (B, 1, 1, 1), float64 where the scheduler keeps it."""
    scheduler = sampler_scheduler(name, base_scheduler(prediction))
    scheduler.set_timesteps(timesteps=times)
    sample = start * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        given = scheduler.scale_model_input(sample, t).double()
        sigma = SIGMAS[int(t)]
        output = gaussian_output(given * (1 + sigma**2).sqrt(), sigma, prediction)
        sample = scheduler.step(output, t, sample, return_dict=False)[0]
    return sample.double()


def exact_base(start: torch.Tensor) -> torch.Tensor:
    """The probability-flow ODE's solution: (z - mean) / sqrt(variance + sigma^2) stays as it is."""
    first = SIGMAS[-1]
    z = start.double() * (1 + first**2).sqrt()
    return 0.5 + math.sqrt(VARIANCE) / (VARIANCE + first**2).sqrt() * (z - 0.5)


START = torch.tensor([-1.5, -0.3, 0.8, 2.0]).view(-1, 1, 1, 1)


def base_error(name: str, steps: int) -> float:
    """Error of a step list that is even in log sigma."""
    found = sample_base(name, schedule.log_timesteps(steps, SIGMAS), START)
    return (found - exact_base(START)).abs().mean().item()


def test_dpm_solver_converges_faster_than_euler() -> None:
    errors = {name: [base_error(name, steps) for steps in (5, 10, 20)] for name in ("euler", "dpm++")}
    orders = {name: math.log2(pair[0] / pair[-1]) / 2 for name, pair in errors.items()}
    assert 0.7 < orders["euler"] < 1.3
    assert orders["dpm++"] > 1.5
    assert errors["dpm++"][1] < errors["euler"][1] / 3


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_dpm_solver_takes_every_prediction_type(prediction: str) -> None:
    found = sample_base("dpm++", schedule.log_timesteps(20, SIGMAS), START, prediction)
    # 20 steps are not the limit; the error is the solver's own and the same for each type, 0.01 at most
    torch.testing.assert_close(found, exact_base(START), rtol=0, atol=0.02)


def test_the_schedulers_are_diffusers_on_our_noise_levels() -> None:
    own = base_scheduler("v_prediction")
    assert sampler_scheduler("euler", own) is own
    solver = sampler_scheduler("dpm++", own)
    assert isinstance(solver, DPMSolverMultistepScheduler)
    assert solver.config.prediction_type == "v_prediction"
    kept = solver.alphas_cumprod.double()
    torch.testing.assert_close(((1 - kept) / kept).sqrt(), SIGMAS, rtol=1e-4, atol=0)
    again = sampler_scheduler("euler", solver)
    assert isinstance(again, EulerDiscreteScheduler)
    assert again.config.prediction_type == "v_prediction"


@pytest.mark.parametrize("steps", [1, 2, 7, 12, 50, 400, 1000])
def test_log_timesteps_fall_evenly_in_log_sigma(steps: int) -> None:
    times = schedule.log_timesteps(steps, SIGMAS)
    assert len(times) == steps
    assert times[0] == 999
    assert times[-1] >= 0
    assert all(before > after for before, after in pairwise(times))
    if steps <= 12:  # none of the times is taken twice, so each is the nearest
        wanted = torch.lerp(SIGMAS[-1].log(), SIGMAS[0].log(), torch.arange(steps, dtype=torch.float64) / steps)
        nearest = (SIGMAS.log()[None] - wanted[:, None]).abs().argmin(1)
        assert times == nearest.tolist()


def test_log_timesteps_begin_where_they_are_told() -> None:
    assert schedule.log_timesteps(5, SIGMAS, 4) == [4, 3, 2, 1, 0]
    assert schedule.log_timesteps(1, SIGMAS, 0) == [0]
    assert schedule.log_timesteps(3, SIGMAS, 600)[0] == 600
    with pytest.raises(ValueError, match="num_steps 6 is more than the 5"):
        schedule.log_timesteps(6, SIGMAS, 4)


# Relay


def relay_error(steps: int, order: int, power: float) -> float:
    """Error of the relay's solver for z_0 normal around z_L with VARIANCE, against the same ODE in very small steps."""
    low, noise = torch.full_like(START, 0.5).double(), START.double()

    def run(steps: int, order: int, power: float) -> torch.Tensor:
        scheduler = RelayScheduler(prediction_type="sample", power=power, solver_order=order)
        scheduler.set_timesteps(steps)
        # the steps' own noise levels and blurs, so that only the solver's error counts
        u = schedule.remaining_time(steps, power)
        scheduler.sigmas = torch.cat([_sigma(u[:-1]), torch.zeros(1, dtype=torch.float64)])
        z = scheduler.add_start_noise(low, noise)
        for index, t in enumerate(scheduler.timesteps):
            sigma, f = scheduler.sigmas[index], scheduler._blur_fractions[index]
            center = (1 - f) ** 2 * VARIANCE
            x0 = low + (1 - f) * VARIANCE / (center + sigma**2) * (z - low)
            z = scheduler.step(x0, t, z, low).prev_sample
        return z

    return (run(steps, order, power) - run(499, 2, power)).abs().mean().item()


def _sigma(u: torch.Tensor) -> torch.Tensor:
    """sigma at the share u of T_r = 500, between the whole times."""
    place = u * 499
    below = place.floor().long()
    return torch.lerp(SIGMAS[below], SIGMAS[(below + 1).clamp(max=999)], place - below)


def test_the_relays_second_order_needs_fewer_steps() -> None:
    errors = {order: [relay_error(steps, order, 1.0) for steps in (10, 20, 40)] for order in (1, 2)}
    assert all(second < 0.6 * first for first, second in zip(errors[1], errors[2], strict=True))


def test_extrapolation_is_exact_for_predictions_linear_in_s() -> None:
    """Where D = a + b s along the way, z'/sigma' = z/sigma + the integral of D ds + (f'/sigma' - f/sigma) z_L."""
    sigmas = torch.tensor([1.2, 0.8, 0.5], dtype=torch.float64)
    fractions = torch.tensor([0.9, 0.6, 0.4], dtype=torch.float64)
    s = (1 - fractions) / sigmas
    a, b, z, low = (torch.randn(1, 4, 2, 2, dtype=torch.float64) for _ in range(4))
    used = relay.extrapolate(a + b * s[1], a + b * s[0], tuple(sigmas), tuple(fractions))
    found = relay.relay_step(z, used, low, sigmas[1], sigmas[2], fractions[1], fractions[2])
    integral = a * (s[2] - s[1]) + b * (s[2] ** 2 - s[1] ** 2) / 2
    ratios = fractions / sigmas
    expected = sigmas[2] * (z / sigmas[1] + integral + (ratios[2] - ratios[1]) * low)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_the_last_step_is_not_extrapolated() -> None:
    x0 = torch.ones(1, 1, 1, 1)
    assert relay.extrapolate(x0, 2 * x0, (1.0, 0.5, 0.0), (0.9, 0.5, 0.0)) is x0


def test_second_order_forgets_with_new_timesteps() -> None:
    scheduler = RelayScheduler(prediction_type="sample", solver_order=2)
    draws = [torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    first = []
    for _ in range(2):
        scheduler.set_timesteps(3)
        steps = [scheduler.step(draws[i], t, draws[3], draws[0]).prev_sample for i, t in enumerate(scheduler.timesteps)]
        first.append(steps[0])
    assert torch.equal(*first)


@pytest.mark.parametrize("settings", [{"solver_order": 3}, {"solver_order": 2, "blur_estimate": "carry"}])
def test_wrong_orders_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="solver_order"):
        RelayScheduler(**settings)


# In the pipeline


@pytest.fixture
def pipe(components: dict[str, Any]) -> CogView3Pipeline:
    pipe = CogView3Pipeline(**components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: CogView3Pipeline, **changes: Any) -> torch.Tensor:
    call = {"prompt": "a red star", "num_relays": 0, "output_type": "latent", "guidance_scale": 1.0}
    return pipe(**{**call, "generator": torch.Generator().manual_seed(0), **changes}).images


def test_both_samplers_reach_the_same_picture(pipe: CogView3Pipeline) -> None:
    """With many steps both solve the same ODE from the same noise."""
    fine = draw(pipe, num_inference_steps=40, sampler="dpm++")
    coarse = draw(pipe, num_inference_steps=200, sampler="euler")
    assert (fine - coarse).abs().mean() < 0.05 * coarse.std()
    assert not torch.equal(draw(pipe, num_inference_steps=3, sampler="dpm++"), draw(pipe, num_inference_steps=3))


def test_the_pipelines_own_scheduler_is_untouched(pipe: CogView3Pipeline) -> None:
    before = pipe.scheduler
    plain = draw(pipe, num_inference_steps=3)
    draw(pipe, num_inference_steps=3, sampler="dpm++")
    assert pipe.scheduler is before
    assert torch.equal(draw(pipe, num_inference_steps=3), plain)
    assert torch.equal(draw(pipe, num_inference_steps=3, sampler="euler"), plain)


def test_the_mode_names_the_sampler(pipe: CogView3Pipeline) -> None:
    asked = draw(pipe, num_inference_steps=3, sampler="dpm++")
    pipe._use_mode("3+0", Mode(steps=3, sampler="dpm++", relay_order=2))
    assert torch.equal(draw(pipe), asked)
    assert pipe.relay_scheduler.config.solver_order == 2
    with pytest.raises(UserError, match=r"eta is 0\.5"):
        draw(pipe, num_relays=1, eta=0.5)


def test_a_picture_to_begin_with_keeps_its_share_of_the_noise(pipe: CogView3Pipeline) -> None:
    times: list[list[int]] = []

    def note(pipeline: Any, step: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        times[-1].append(int(timestep))
        return {}

    for sampler in ("euler", "dpm++"):
        times.append([])
        image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(1))
        draw(pipe, image=image, strength=0.5, num_inference_steps=6, sampler=sampler, callback_on_step_end=note)
    assert times[0] == [499, 333, 166]
    assert times[1] == schedule.log_timesteps(3, SIGMAS, 499)


def test_unknown_samplers_are_refused(pipe: CogView3Pipeline) -> None:
    with pytest.raises(UserError, match=r"sampler is 'heun': choose one of euler, dpm\+\+"):
        draw(pipe, sampler="heun")
    pipe.scheduler = DDIMScheduler()
    with pytest.raises(UserError, match="scheduler DDIMScheduler"):
        draw(pipe)


def test_a_distilled_mode_keeps_to_the_sampler_that_it_was_distilled_for(
    make_components: Callable[..., dict[str, Any]],
) -> None:
    pipe = CogView3Pipeline(**make_components(time_cond_proj_dim=8))
    pipe._use_mode("4+1", Mode(steps=4, relay_steps=1, distilled=True))
    with pytest.raises(UserError, match=r"sampler is dpm\+\+, but mode '4\+1' is distilled for euler"):
        draw(pipe, sampler="dpm++")
