"""Learning-rate curves, loss weights and checkpoint steps, at points worked out by hand."""

import math

import numpy as np
import pytest
import torch
from diffusers.training_utils import compute_density_for_timestep_sampling
from torch.testing import assert_close

from kanjilab.core.config import SCHEDULES, Arm
from kanjilab.models.noise import flow_sigmas, min_snr_weight, velocity_weight
from kanjilab.training.schedules import checkpoint_steps, lr_factor

FALLING = [schedule for schedule in SCHEDULES if schedule != "periodic"]  # that one climbs back, again and again


def factors(arm, steps, total):
    return [lr_factor(arm, step, total) for step in steps]


@pytest.mark.parametrize(
    ("settings", "steps", "expected"),
    [
        (dict(schedule="constant"), [0, 50, 99], [1, 1, 1]),
        (dict(schedule="linear"), [0, 25, 75, 100], [1, 0.75, 0.25, 0]),
        (dict(schedule="cosine"), [0, 50, 100], [1, 0.5, 0]),
        (dict(schedule="cosine"), [25], [(1 + math.sqrt(0.5)) / 2]),
        (dict(schedule="cosine", warmup_steps=4), [0, 1, 3, 4, 52, 100], [0.25, 0.5, 1, 1, 0.5, 0]),
        (dict(schedule="cosine-restarts", cycles=2), [0, 25, 50, 75, 100], [1, 0.5, 1, 0.5, 0]),
        (dict(schedule="cosine-restarts", cycles=4), [25, 50, 75], [1, 1, 1]),
        (dict(schedule="constant-cooldown", cooldown_share=0.2), [0, 80, 90, 95, 100], [1, 1, 0.5, 0.25, 0]),
        (dict(schedule="constant", warmup_steps=10), [0, 4, 9, 10], [0.1, 0.5, 1, 1]),
        # Down in ten steps, up in ten, five times over: no warm-up, and at the end it has just climbed back.
        (dict(schedule="periodic", warmup_steps=10), [0, 5, 10, 15, 20, 30, 95, 100], [1, 0.5, 0, 0.5, 1, 0, 0.5, 1]),
        (dict(schedule="periodic", warmup_steps=200), [0, 100], [1, 0.5]),
    ],
)
def test_lr_at_hand_worked_steps_of_100(settings, steps, expected):
    assert factors(Arm(**settings), steps, 100) == pytest.approx(expected, abs=1e-12)


def test_periodic_is_torchs_cosine_annealing_beyond_its_period():
    """What SimpleTuner's "cosine" does when its warm-up steps are taken for the period."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=7)
    arm = Arm(schedule="periodic", warmup_steps=7)
    for step in range(60):
        assert lr_factor(arm, step, 60) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("schedule", FALLING)
def test_nothing_rises_again_past_the_end(schedule):
    for warmup in (5, 200):
        arm = Arm(schedule=schedule, cycles=3, warmup_steps=warmup)
        end = lr_factor(arm, 60, 60)
        assert factors(arm, [61, 75, 90, 120, 10_000], 60) == [end] * 5
        assert end == (61 / 200 if warmup == 200 else 1 if schedule == "constant" else 0)


def test_periodic_keeps_its_last_value_past_the_end():
    arm = Arm(schedule="periodic", warmup_steps=40)
    assert factors(arm, [60, 61, 80, 1_000], 60) == pytest.approx([0.5] * 4)


@pytest.mark.parametrize("schedule", FALLING)
@pytest.mark.parametrize("warmup", [0, 1, 7, 60, 200])
def test_factors_stay_between_zero_and_one(schedule, warmup):
    arm = Arm(schedule=schedule, cycles=2, warmup_steps=warmup)
    values = factors(arm, range(80), 60)
    assert min(values) >= 0
    assert max(values) <= 1
    assert values[: min(warmup, 60)] == sorted(values[: min(warmup, 60)])


def test_a_single_step_trains_at_the_full_rate():
    arms = [Arm(schedule=schedule, warmup_steps=int(schedule == "periodic")) for schedule in SCHEDULES]
    assert [lr_factor(arm, 0, 1) for arm in arms] == [1] * len(SCHEDULES)


def test_velocity_weight_at_hand_worked_points():
    alpha_bar = torch.tensor([0.9, 0.75, 0.5, 0.2])  # SNR 9, 3, 1, 1/4
    assert_close(velocity_weight(alpha_bar), torch.tensor([10 / 9, 4 / 3, 2.0, 5.0]))
    assert_close(velocity_weight(alpha_bar, 2), torch.tensor([3 / 9, 3 / 3, 2.0, 5.0]))
    for outside in (0.0, 1.1, float("nan")):
        with pytest.raises(ValueError, match="alpha_bar"):
            velocity_weight(torch.tensor([outside]))
    with pytest.raises(ValueError, match="gamma"):
        velocity_weight(alpha_bar, 0)


def test_velocity_weight_turns_a_noise_error_into_a_velocity_error():
    rng = torch.Generator().manual_seed(0)
    latents, noise, wrong = torch.randn(3, 50, generator=rng)
    for signal in (0.9, 0.5, 0.05):
        level = torch.tensor(signal)
        noisy = level.sqrt() * latents + (1 - level).sqrt() * noise
        velocity = level.sqrt() * noise - (1 - level).sqrt() * latents
        implied_latents = (noisy - (1 - level).sqrt() * wrong) / level.sqrt()
        implied_velocity = level.sqrt() * wrong - (1 - level).sqrt() * implied_latents
        error = (wrong - noise).square().mean() * velocity_weight(level)
        assert_close(error, (implied_velocity - velocity).square().mean())


def test_min_snr_weight_at_hand_worked_points():
    alpha_bar = torch.tensor([0.9, 0.5, 0.0, 1.0])  # SNR 9, 1, 0, infinite
    assert_close(min_snr_weight(alpha_bar, 5), torch.tensor([5 / 9, 1, 1, 0]))
    assert_close(min_snr_weight(torch.tensor([[0.75]]), 1.5), torch.tensor([[0.5]]))  # SNR 3
    with pytest.raises(ValueError, match="gamma must be > 0, got 0"):
        min_snr_weight(alpha_bar, 0)
    for outside in (1.1, -0.1, math.nan):
        with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
            min_snr_weight(torch.tensor([outside]), 5)


def test_flow_sigmas_at_hand_worked_points():
    # Three equal parts of the normal distribution have their middles at 1/6, 1/2 and 5/6: -0.967422, 0 and 0.967422.
    low = 1 / (1 + math.exp(0.967422))
    np.testing.assert_allclose(flow_sigmas(3, 1.0), [low, 0.5, 1 - low], atol=1e-6)
    np.testing.assert_allclose(flow_sigmas(3, 3.0)[1], 0.75)  # 3 · 1/2 / (1 + 2 · 1/2)
    np.testing.assert_allclose(flow_sigmas(3, 3.0)[0], 3 * low / (1 + 2 * low), atol=1e-6)
    assert np.all(np.diff(flow_sigmas(1000, 3.0)) > 0)


def test_flow_sigmas_are_distributed_as_diffusers_draws_them():
    generator = torch.Generator().manual_seed(0)
    drawn = compute_density_for_timestep_sampling("logit_normal", 100_000, 0.0, 1.0, generator=generator).numpy()
    levels = flow_sigmas(1000, 1.0)
    shares = np.linspace(0.05, 0.95, 19)
    np.testing.assert_allclose(np.quantile(levels, shares), np.quantile(drawn, shares), atol=4e-3)


@pytest.mark.parametrize(("levels", "shift"), [(0, 1.0), (10, 0.0), (10, math.nan)])
def test_flow_sigmas_out_of_range_are_refused(levels, shift):
    with pytest.raises(ValueError, match="levels must be >= 1, got 0|shift must be > 0, got"):
        flow_sigmas(levels, shift)


def test_checkpoint_steps_at_hand_worked_points():
    assert checkpoint_steps(100, 4) == (0, 12, 35, 65, 100)  # 100 · (1/4, 1/2, 3/4)^1.5 = 12.5, 35.4, 65.0
    assert checkpoint_steps(10, 1) == (0, 10)
    assert checkpoint_steps(2, 8) == (0, 1, 2)  # fewer steps than columns
    with pytest.raises(ValueError, match="count must be >= 1, got 0"):
        checkpoint_steps(10, 0)


def test_checkpoints_lie_ever_further_apart():
    steps = checkpoint_steps(12_800, 8)
    gaps = [late - early for early, late in zip(steps, steps[1:], strict=False)]
    assert len(gaps) == 8
    assert gaps == sorted(gaps)
