"""The relay scheduler against the pure functions driven by hand, and against closed forms."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cogview3.diffusion import relay, schedule
from cogview3.generation.scheduler import RelayScheduler, RelaySchedulerOutput, base_scheduler

SHAPE = (2, 4, 3, 5)


def network(sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """A smooth nonlinear stand-in for a network."""
    return torch.tanh(sample * 1.3 + 0.1) - 0.001 * float(timestep) * sample


def draw(seed: int, count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(count)]


def run_scheduler(
    scheduler: RelayScheduler, low: torch.Tensor, noise: torch.Tensor, eta: float = 0.0, seed: int = 5
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    sample = scheduler.add_start_noise(low, noise)
    for timestep in scheduler.timesteps:
        output = network(scheduler.scale_model_input(sample, timestep), timestep)
        sample = scheduler.step(output, timestep, sample, low, eta=eta, generator=generator).prev_sample
    return sample


def run_by_hand(
    low: torch.Tensor,
    noise: torch.Tensor,
    steps: int,
    start: int,
    prediction: str,
    blur: str,
    estimate: str,
    power: float,
    eta: float,
) -> torch.Tensor:
    """The same sampler out of `diffusion`'s functions."""
    generator = torch.Generator().manual_seed(5)
    timesteps = schedule.relay_timesteps(steps, start, power=power)
    sigmas = schedule.step_sigmas(schedule.make_sigmas(), timesteps)
    fractions = relay.sampler_blur_fractions(steps, power, blur, sigmas)
    z, blurred = low + sigmas[0] * noise, low
    for i, t in enumerate(timesteps):
        output = network(z / math.sqrt(1 + sigmas[i] ** 2), t)
        x0 = schedule.to_x0(output, z, sigmas[i], prediction)
        levels = (sigmas[i], sigmas[i + 1], fractions[i], fractions[i + 1])
        delta = relay.delta(eta, sigmas[i], sigmas[i + 1])
        fresh = torch.randn(SHAPE, generator=generator, dtype=torch.float64) if delta > 0 else None
        z = relay.relay_step(z, x0, low if estimate == "recompute" else blurred, *levels, delta, fresh, estimate)
        blurred = relay.carry(blurred, x0, fractions[i], fractions[i + 1])
    return z


@pytest.mark.parametrize(
    ("prediction", "blur", "estimate", "power", "eta"),
    [
        *itertools.product(("epsilon", "v_prediction", "sample"), ("linear",), ("recompute", "carry"), (1.0,), (0.0,)),
        ("epsilon", "sigma", "recompute", 1.0, 0.0),
        ("epsilon", "sin4", "recompute", 1.0, 1.0),
        ("v_prediction", "linear", "carry", 2.0, 0.5),
    ],
)
def test_steps_are_the_pure_functions(prediction: str, blur: str, estimate: str, power: float, eta: float) -> None:
    low, noise = draw(0, 2)
    scheduler = RelayScheduler(prediction_type=prediction, blur=blur, blur_estimate=estimate, power=power)
    scheduler.set_timesteps(7, relay_start=400)
    expected = run_by_hand(low, noise, 7, 400, prediction, blur, estimate, power, eta)
    # the same float64 operations: only their rounding may differ
    torch.testing.assert_close(run_scheduler(scheduler, low, noise, eta), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("steps", "ratio", "tolerance"), [(10, 0.82, 0.005), (100, 0.98, 0.005), (500, 1.00, 0.01)])
def test_exact_denoiser_of_gaussian_data(steps: int, ratio: float, tolerance: float) -> None:
    """z_0 given z_L is normal of variance 0.25: the spread of what comes out, over the true one.

    The figures are given to two digits; 1.00 is that of 1000 steps, of which whole times allow half.
    """
    variance = 0.25
    scheduler = RelayScheduler(prediction_type="sample")
    scheduler.set_timesteps(steps)
    low, noise = draw(1, 2)
    sample = scheduler.add_start_noise(low, noise)
    for i, timestep in enumerate(scheduler.timesteps):
        sigma, kept = scheduler.sigmas[i], i / steps  # 1 - f
        gain = kept * variance / (kept**2 * variance + sigma**2)
        exact = low + gain * (sample - low)
        sample = scheduler.step(exact, timestep, sample, low).prev_sample
    # all of it is linear: every element is z_L plus one factor times its noise
    factor = ((sample - low) / noise) / math.sqrt(variance)
    torch.testing.assert_close(factor, factor.mean().expand_as(factor), rtol=1e-9, atol=0)
    assert factor.mean().item() == pytest.approx(ratio, abs=tolerance)


@pytest.mark.parametrize("estimate", ["recompute", "carry"])
def test_constant_is_a_fixed_point(estimate: str) -> None:
    """Where z_0 = z_L = k and there is no noise, every step stays at k."""
    scheduler = RelayScheduler(prediction_type="sample", blur_estimate=estimate)
    scheduler.set_timesteps(9)
    constant = torch.full(SHAPE, 3.5, dtype=torch.float64)
    sample = constant
    for timestep in scheduler.timesteps:
        sample = scheduler.step(constant, timestep, sample, constant).prev_sample
        torch.testing.assert_close(sample, constant, rtol=1e-12, atol=0)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("steps", [1, 4, 50])
def test_base_scheduler_is_euler_on_the_prediction_of_clean_latents(prediction: str, steps: int) -> None:
    """diffusers' Euler with our steps against z' = D + (sigma'/sigma)(z - D) with our sigmas."""
    timesteps = schedule.base_timesteps(steps)
    sigmas = schedule.step_sigmas(schedule.make_sigmas(), timesteps)
    scheduler = base_scheduler(prediction)
    scheduler.set_timesteps(timesteps=timesteps)
    noise = draw(2, 1)[0]
    assert float(scheduler.init_noise_sigma) == pytest.approx(math.sqrt(1 + float(sigmas[0]) ** 2), rel=1e-6)
    sample = expected = noise.float() * scheduler.init_noise_sigma
    expected = expected.double()
    for i, timestep in enumerate(scheduler.timesteps):
        output = network(scheduler.scale_model_input(sample, timestep), timestep)
        sample = scheduler.step(output, timestep, sample).prev_sample
        output = network(schedule.scale_model_input(expected, sigmas[i]), timestep)
        clean = schedule.to_x0(output, expected, sigmas[i], prediction)
        expected = clean + sigmas[i + 1] / sigmas[i] * (expected - clean)
    # diffusers computes in float32, sigma is up to 14.6: rounding of 14.6 * 6e-8 a step, over 50 steps
    torch.testing.assert_close(sample.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("steps", "start"), [(1, 200), (7, 500), (10, 300)])
def test_the_sampler_on_one_screen_is_the_schedulers(steps: int, start: int) -> None:
    low, noise = draw(9, 2)
    scheduler = RelayScheduler(relay_start=start)
    scheduler.set_timesteps(steps)
    expected = run_scheduler(scheduler, low, noise)
    sampled = relay.sample_relay(network, low, noise, steps, start)
    torch.testing.assert_close(sampled, expected, rtol=1e-12, atol=1e-12)


def test_published_step_lists() -> None:
    scheduler = RelayScheduler()
    scheduler.set_timesteps(12)
    assert scheduler.timesteps[0] == 499
    assert scheduler.timesteps[-1] == 41
    scheduler.set_timesteps(2)
    assert scheduler.timesteps.tolist() == [499, 249]
    assert scheduler.sigmas[0].item() == pytest.approx(1.6129, abs=5e-5)
    scheduler.set_timesteps(1, relay_start=200)
    assert scheduler.timesteps.tolist() == [199]
    assert scheduler.sigmas.tolist() == pytest.approx([0.5693, 0.0], abs=5e-5)


def test_power_moves_steps_to_low_noise() -> None:
    scheduler = RelayScheduler(power=2.0)
    scheduler.set_timesteps(4)
    expected = [math.floor(0.999 * 500 * ((4 - i) / 4) ** 2) for i in range(4)]
    assert scheduler.timesteps.tolist() == expected


def test_last_step_returns_the_prediction() -> None:
    low, noise, output = draw(3, 3)
    scheduler = RelayScheduler(prediction_type="sample")
    scheduler.set_timesteps(1)
    previous, clean = scheduler.step(
        output, scheduler.timesteps[0], scheduler.add_start_noise(low, noise), low, eta=1.0, return_dict=False
    )
    torch.testing.assert_close(previous, output, rtol=1e-12, atol=1e-12)
    assert torch.equal(clean, output)


def test_index_is_looked_up_once_then_counted() -> None:
    low, noise = draw(4, 2)
    scheduler = RelayScheduler()
    scheduler.set_timesteps(4)
    assert scheduler.step_index is None
    assert scheduler.begin_index is None
    scheduler.scale_model_input(noise, scheduler.timesteps[2])
    assert scheduler.step_index == 2
    scheduler.step(noise, scheduler.timesteps[2], noise, low)
    scheduler.step(noise, scheduler.timesteps[3], noise, low)
    with pytest.raises(ValueError, match="all 4 steps are done"):
        scheduler.step(noise, scheduler.timesteps[3], noise, low)
    scheduler.set_timesteps(4)
    scheduler.set_begin_index(1)
    torch.testing.assert_close(
        scheduler.add_start_noise(low, noise), low + scheduler.sigmas[1] * noise, rtol=1e-12, atol=0
    )
    scheduler.scale_model_input(noise, scheduler.timesteps[0])
    assert scheduler.step_index == scheduler.begin_index == 1


def test_carried_blur_starts_anew_with_new_timesteps() -> None:
    low, noise = draw(6, 2)
    scheduler = RelayScheduler(blur_estimate="carry")
    scheduler.set_timesteps(5)
    first = run_scheduler(scheduler, low, noise)
    scheduler.set_timesteps(5)
    assert torch.equal(run_scheduler(scheduler, low, noise), first)


def test_half_precision_is_computed_in_float32() -> None:
    low, noise, output = (tensor.half() for tensor in draw(7, 3))
    scheduler = RelayScheduler()
    scheduler.set_timesteps(10)
    step = scheduler.step(output, scheduler.timesteps[0], noise, low)
    scheduler.set_timesteps(10)
    exact = scheduler.step(output.double(), scheduler.timesteps[0], noise.double(), low.double())
    assert isinstance(step, RelaySchedulerOutput)
    assert step.prev_sample.dtype == step.pred_original_sample.dtype == torch.float16
    # one rounding at the end: half a unit in the last place, 2^-11
    torch.testing.assert_close(step.prev_sample.double(), exact.prev_sample, rtol=2**-11, atol=1e-6)


def test_generators_of_a_batch_draw_each_their_own_noise() -> None:
    low, noise = draw(8, 2)

    def run(rows: slice, generators: list[torch.Generator]) -> torch.Tensor:
        scheduler = RelayScheduler()
        scheduler.set_timesteps(4)
        sample = scheduler.add_start_noise(low[rows], noise[rows])
        for timestep in scheduler.timesteps:
            output = network(scheduler.scale_model_input(sample, timestep), timestep)
            sample = scheduler.step(output, timestep, sample, low[rows], eta=1.0, generator=generators).prev_sample
        return sample

    batch = run(slice(0, 2), [torch.Generator().manual_seed(seed) for seed in (1, 2)])
    singles = [run(slice(i, i + 1), [torch.Generator().manual_seed(i + 1)]) for i in range(2)]
    torch.testing.assert_close(batch, torch.cat(singles), rtol=1e-12, atol=1e-12)


def test_configuration_is_saved_and_loaded(tmp_path: Path) -> None:
    scheduler = RelayScheduler(
        num_train_timesteps=100,
        beta_schedule="linear",
        relay_start=40,
        prediction_type="v_prediction",
        blur="sin4",
        blur_estimate="carry",
        power=1.5,
    )
    scheduler.save_pretrained(tmp_path)
    loaded = RelayScheduler.from_pretrained(tmp_path)
    assert {key: value for key, value in loaded.config.items() if not key.startswith("_")} == {
        key: value for key, value in scheduler.config.items() if not key.startswith("_")
    }
    assert len(loaded) == 100
    assert loaded.order == 1
    scheduler.set_timesteps(3)
    loaded.set_timesteps(3)
    assert torch.equal(loaded.sigmas, scheduler.sigmas)
    assert loaded.num_inference_steps == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prediction_type": "noise"}, "prediction_type 'noise'"),
        ({"blur": "gauss"}, "blur 'gauss'"),
        ({"blur_estimate": "guess"}, "blur_estimate 'guess'"),
        ({"beta_schedule": "cosine"}, "beta_schedule 'cosine'"),
        ({"relay_start": 0}, "relay_start 0"),
        ({"relay_start": 1001}, "relay_start 1001"),
        ({"power": 0.0}, "power 0.0"),
        ({"power": math.nan}, "power nan"),
    ],
)
def test_wrong_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RelayScheduler(**settings)


@pytest.mark.parametrize(
    ("steps", "start"),
    [(0, None), (-1, None), (501, None), (2.5, None), (np.nan, None), (10, 0), (10, 1001), (300, 200)],
)
def test_wrong_steps_are_refused(steps: int, start: int | None) -> None:
    with pytest.raises(ValueError, match=r"num_steps|relay_start"):
        RelayScheduler().set_timesteps(steps, relay_start=start)


@pytest.mark.parametrize("wrong", ["sample", "low_res_latents"])
def test_wrong_shapes_are_refused(wrong: str) -> None:
    scheduler = RelayScheduler()
    scheduler.set_timesteps(2)
    tensors = {"model_output": torch.zeros(SHAPE), "sample": torch.zeros(SHAPE), "low_res_latents": torch.zeros(SHAPE)}
    tensors[wrong] = torch.zeros(1, 4, 3, 5)
    with pytest.raises(ValueError, match=f"{wrong} is"):
        scheduler.step(timestep=scheduler.timesteps[0], **tensors)


def test_unknown_timestep_is_refused(seeded: Callable[[int], torch.Generator]) -> None:
    scheduler = RelayScheduler()
    scheduler.set_timesteps(2)
    with pytest.raises(ValueError, match="timestep 77 "):
        scheduler.scale_model_input(torch.zeros(SHAPE), 77)
