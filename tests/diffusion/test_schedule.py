import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler
from diffusers.training_utils import compute_snr

from cogview3.diffusion import schedule

# float64 rounding of a handful of operations on numbers of order 1 to 15
EXACT = {"rtol": 1e-11, "atol": 1e-11}
# diffusers computes its schedule in float32: cumulative products of 1000 factors are right to about 1e-5
FLOAT32 = {"rtol": 2e-4, "atol": 2e-5}
BETAS = {"beta_start": 0.00085, "beta_end": 0.012}


@pytest.fixture
def latents() -> torch.Tensor:
    return torch.randn(3, 4, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def x0() -> torch.Tensor:
    return torch.randn(3, 4, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


SIGMA = torch.tensor([0.03, 1.6, 14.6], dtype=torch.float64)


@pytest.mark.parametrize(("t", "sigma"), [(999, 14.6146), (499, 1.6129), (199, 0.5693)])
def test_sigmas_are_the_published_ones(t: int, sigma: float) -> None:
    assert schedule.make_sigmas()[t].item() == pytest.approx(sigma, abs=5e-5)  # four decimals are published


@pytest.mark.parametrize("beta_schedule", schedule.BETA_SCHEDULES)
def test_betas_and_sigmas_agree_with_diffusers(beta_schedule: str) -> None:
    reference = EulerDiscreteScheduler(**BETAS, beta_schedule=beta_schedule, num_train_timesteps=300)
    betas = schedule.make_betas(300, **BETAS, beta_schedule=beta_schedule)
    sigmas = schedule.make_sigmas(300, **BETAS, beta_schedule=beta_schedule)
    torch.testing.assert_close(betas.float(), reference.betas, rtol=1e-5, atol=0)
    torch.testing.assert_close(sigmas.float(), reference.sigmas.flip(0)[1:], **FLOAT32)


def test_the_signal_share_at_the_last_sigma_is_the_product_of_all_steps() -> None:
    sigma = schedule.make_sigmas()[-1]
    reference = math.prod(
        1 - (math.sqrt(0.00085) + k / 999 * (math.sqrt(0.012) - math.sqrt(0.00085))) ** 2 for k in range(1000)
    )
    assert (1 / (1 + sigma**2)).item() == pytest.approx(reference, rel=1e-10)
    assert schedule.make_sigmas(dtype=torch.float32).dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"beta_schedule": "cosine"}, "'cosine' is unknown: choose one of linear, scaled_linear"),
        ({"num_train_timesteps": 0}, "num_train_timesteps 0"),
        ({"beta_start": 0.0}, "beta_start 0.0"),
        ({"beta_start": 0.02}, "beta_start 0.02 and beta_end 0.012"),
        ({"beta_end": 1.0}, "beta_end 1.0"),
        ({"beta_end": math.nan}, "beta_end nan"),
    ],
)
def test_bad_schedules_are_refused(options: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        schedule.make_sigmas(**options)


@pytest.mark.parametrize("n", [1, 4, 8, 20, 25, 50, 98])
def test_base_times_are_the_published_linspace(n: int) -> None:
    reference = np.linspace(999, 0, n, endpoint=False).astype(int).tolist()
    assert schedule.base_timesteps(n) == reference


@pytest.mark.parametrize("n", [99, 333, 999, 1000])
def test_base_times_are_exact_where_floating_point_is_not(n: int) -> None:
    times = schedule.base_timesteps(n)
    assert times == [999 * (n - i) // n for i in range(n)]
    assert len(set(times)) == n


def test_relay_times_of_the_release() -> None:
    assert schedule.relay_timesteps(12) == [499, 457, 416, 374, 333, 291, 249, 208, 166, 124, 83, 41]
    assert schedule.relay_timesteps(1, relay_start=200) == [199]
    assert schedule.relay_timesteps(2, relay_start=500) == [499, 249]


@pytest.mark.parametrize(("num_steps", "relay_start"), [(10, 500), (12, 500), (10, 200), (8, 800), (5, 1000)])
def test_relay_times_are_the_last_of_the_base_times(num_steps: int, relay_start: int) -> None:
    n = num_steps * 1000 // relay_start
    assert schedule.relay_timesteps(num_steps, relay_start) == schedule.base_timesteps(n)[-num_steps:]


@pytest.mark.parametrize("relay_start", [1, 7, 150, 500, 1000])
@pytest.mark.parametrize("num_train_timesteps", [1000, 1400])
def test_relay_times_are_exact_up_to_a_step_for_each_time(relay_start: int, num_train_timesteps: int) -> None:
    for p in {1, relay_start // 2 or 1, relay_start}:
        times = schedule.relay_timesteps(p, relay_start, num_train_timesteps)
        exact = [(num_train_timesteps - 1) * relay_start * (p - i) // (num_train_timesteps * p) for i in range(p)]
        assert times == exact
        assert times[0] == relay_start - 1
        assert all(a > b for a, b in pairwise(times))


def test_power_spacing_moves_steps_to_low_noise_and_says_how_many_are_possible() -> None:
    assert schedule.relay_timesteps(10, power=2.0) == [math.floor(4.995 * (10 - i) ** 2) for i in range(10)]
    with pytest.raises(ValueError, match=r"num_steps 60 repeats .* choose at most 44") as refused:
        schedule.relay_timesteps(60, power=2.0)
    most = int(str(refused.value).split()[-1])
    assert len(set(schedule.relay_timesteps(most, power=2.0))) == most
    with pytest.raises(ValueError, match=f"choose at most {most}"):
        schedule.relay_timesteps(most + 1, power=2.0)
    with pytest.raises(ValueError, match="choose at most 200"):
        schedule.relay_timesteps(201, relay_start=200)


@pytest.mark.parametrize("count", [0, -1, 2.0, "5", None, True])
def test_counts_must_be_whole_and_positive(count: object) -> None:
    with pytest.raises(ValueError, match=r"num_steps .* is not a count"):
        schedule.base_timesteps(count)
    with pytest.raises(ValueError, match=r"num_steps .* is not a count"):
        schedule.relay_timesteps(count)
    with pytest.raises(ValueError, match=r"relay_start .* is not a count"):
        schedule.relay_timesteps(1, relay_start=count)


def test_numpy_counts_are_counts() -> None:
    assert schedule.base_timesteps(np.int64(3)) == [999, 666, 333]


def test_too_many_are_refused() -> None:
    with pytest.raises(ValueError, match=r"num_steps 1001 .* 1000"):
        schedule.base_timesteps(1001)
    with pytest.raises(ValueError, match=r"relay_start 1001 .* choose 1 to 1000"):
        schedule.relay_timesteps(10, relay_start=1001)


@pytest.mark.parametrize("power", [0.0, -1.0, math.nan, math.inf])
def test_power_must_be_positive(power: float) -> None:
    with pytest.raises(ValueError, match="power"):
        schedule.relay_timesteps(10, power=power)


def test_step_sigmas_end_at_zero() -> None:
    sigmas = schedule.make_sigmas()
    expected = torch.stack([sigmas[499], sigmas[249], torch.zeros_like(sigmas[0])])
    torch.testing.assert_close(schedule.step_sigmas(sigmas, [499, 249]), expected, rtol=0, atol=0)


def test_expand_to_gives_each_sample_its_value() -> None:
    latents = torch.zeros(2, 4, 3, 3)
    per_sample = schedule.expand_to(torch.tensor([1.0, 2.0], dtype=torch.float64), latents) + latents
    assert per_sample.dtype == torch.float32
    assert (per_sample[0] == 1).all()
    assert (per_sample[1] == 2).all()
    for one in (3.0, torch.tensor(3.0), torch.tensor([3.0])):
        assert ((schedule.expand_to(one, latents) + latents) == 3).all()
    for wrong in (torch.ones(3), torch.ones(2, 1)):
        with pytest.raises(ValueError, match="one for each of the 2 samples"):
            schedule.expand_to(wrong, latents)


def test_numbers_keep_float64_precision() -> None:
    z = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    assert schedule.scale_model_input(z, 0.1).item() == pytest.approx(1 / math.sqrt(1.01), rel=1e-15)


@pytest.mark.parametrize("prediction_type", schedule.PREDICTION_TYPES)
def test_target_is_what_gives_the_prediction(prediction_type: str, latents: torch.Tensor, x0: torch.Tensor) -> None:
    target = schedule.target_from_x0(x0, latents, SIGMA, prediction_type)
    torch.testing.assert_close(schedule.to_x0(target, latents, SIGMA, prediction_type), x0, **EXACT)


@pytest.mark.parametrize("prediction_type", schedule.PREDICTION_TYPES)
@pytest.mark.parametrize("t", [0, 300, 999])
def test_predictions_mean_what_they_mean_in_diffusers(prediction_type: str, t: int, latents: torch.Tensor) -> None:
    reference = DDIMScheduler(
        **BETAS, beta_schedule="scaled_linear", prediction_type=prediction_type, clip_sample=False
    )
    reference.set_timesteps(1000)
    sigma = schedule.make_sigmas()[t]
    output = latents.flip(0)
    scaled = schedule.scale_model_input(latents, sigma)
    expected = reference.step(output, t, scaled).pred_original_sample
    torch.testing.assert_close(schedule.to_x0(output, latents, sigma, prediction_type), expected, **FLOAT32)


@pytest.mark.parametrize("prediction_type", schedule.PREDICTION_TYPES)
def test_targets_are_those_of_diffusers_without_blur(
    prediction_type: str, latents: torch.Tensor, x0: torch.Tensor
) -> None:
    reference = DDPMScheduler(**BETAS, beta_schedule="scaled_linear")
    t = torch.tensor([0, 300, 999])
    sigma = schedule.make_sigmas()[t]
    z = x0 + sigma[:, None, None, None] * latents
    torch.testing.assert_close(schedule.scale_model_input(z, sigma), reference.add_noise(x0, latents, t), **FLOAT32)
    expected = {"epsilon": latents, "v_prediction": reference.get_velocity(x0, latents, t), "sample": x0}
    target = schedule.target_from_x0(x0, z, sigma, prediction_type)
    torch.testing.assert_close(target, expected[prediction_type], **FLOAT32)


def test_unknown_prediction_type_is_refused(latents: torch.Tensor) -> None:
    for function in (schedule.to_x0, schedule.target_from_x0):
        with pytest.raises(ValueError, match="'v' is unknown: choose one of epsilon, v_prediction, sample"):
            function(latents, latents, SIGMA, "v")


@pytest.mark.parametrize("prediction_type", schedule.PREDICTION_TYPES)
def test_loss_weights_turn_output_errors_into_errors_of_the_prediction(
    prediction_type: str, latents: torch.Tensor
) -> None:
    output, error = latents, 0.1 * latents.flip(1)
    right = schedule.to_x0(output, latents, SIGMA, prediction_type)
    wrong = schedule.to_x0(output + error, latents, SIGMA, prediction_type)
    x0_loss = (wrong - right).square().mean(dim=(1, 2, 3))
    output_loss = error.square().mean(dim=(1, 2, 3))
    weighted = schedule.loss_weight(SIGMA, prediction_type) * output_loss
    torch.testing.assert_close(weighted, x0_loss / SIGMA**2, **EXACT)
    weighted = schedule.min_snr_weight(SIGMA, 5.0, prediction_type) * output_loss
    torch.testing.assert_close(weighted, x0_loss * (SIGMA**-2).clamp(max=5.0), **EXACT)


def test_min_snr_weights_are_those_of_diffusers_training_scripts() -> None:
    reference = DDPMScheduler(**BETAS, beta_schedule="scaled_linear")
    t = torch.tensor([10, 300, 999])
    sigma = schedule.make_sigmas()[t]
    ratio = compute_snr(reference, t).double()
    torch.testing.assert_close(schedule.snr(sigma), ratio, **FLOAT32)
    expected = {"epsilon": ratio.clamp(max=5) / ratio, "v_prediction": ratio.clamp(max=5) / (ratio + 1)}
    for prediction_type, weight in expected.items():
        torch.testing.assert_close(schedule.min_snr_weight(sigma, 5, prediction_type), weight, **FLOAT32)


@pytest.mark.parametrize("gamma", [0.0, -1.0, math.nan])
def test_gamma_must_be_positive(gamma: float) -> None:
    with pytest.raises(ValueError, match="gamma"):
        schedule.min_snr_weight(SIGMA, gamma, "epsilon")
