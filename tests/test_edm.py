"""EDM's choices on any schedule: scalings of unit variance, log-normal levels, the weighted loss, the stochastic
sampler; bad input."""

import math
from functools import lru_cache

import pytest
from helpers import normal, rng
import torch
from scipy import stats

from diffusion_course.distributions import GaussianMixture, running_mixture
from diffusion_course.edm import ScaledInput, edm_heun, edm_loss, log_normal_times, preconditioned, preconditioning
from diffusion_course.matching import MLP, fit, matching_loss
from diffusion_course.metrics import energy_distance, real_floor
from diffusion_course.plots import slope
from diffusion_course.predictions import Denoiser, ExactDenoiser, target_row
from diffusion_course.samplers import adaptive, karras_grid, sample, trajectory, uniform_grid
from diffusion_course.schedules import DDPM, Cosine, Linear, VarianceExploding, VariancePreserving

VE = VarianceExploding(0.002, 80.0)
SCHEDULES = {
    "linear": Linear(),
    "cosine": Cosine(),
    "VP": VariancePreserving(),
    "VE": VE,
    "DDPM": DDPM(torch.linspace(1e-4, 0.02, 1000)),
}
every = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
MIXTURE = running_mixture()


def times(schedule, n: int = 60) -> torch.Tensor:
    return torch.linspace(0.001, 0.999, n, dtype=torch.float64).clamp(*schedule.t_range)


def wave(x, t): return torch.sin(3 * x + t.reshape(-1, *[1] * (x.ndim - 1)))


# ---- preconditioning -------------------------------------------------------------------------------------------------

@every
@pytest.mark.parametrize("spread", [0.3, 0.5, 2.0])
def test_input_and_target_have_variance_one(schedule, spread):
    t = times(schedule)
    c, a, b = preconditioning(t, schedule, spread), schedule.alpha(t), schedule.sigma(t)
    one = torch.ones_like(t)
    torch.testing.assert_close(c.c_in**2 * (a**2 * spread**2 + b**2), one)
    variance = ((1 - c.c_skip * a) ** 2 * spread**2 + c.c_skip**2 * b**2) / c.c_out**2
    torch.testing.assert_close(variance, one, rtol=1e-6, atol=0)


def test_variance_one_in_samples():
    x1, eps, path = 0.7 * normal(100_000, 1), normal(100_000, 1, seed=1), Linear()
    for t in (0.0, 0.1, 0.5, 0.9):
        c, x = preconditioning(t, path, 0.7), path.mix(x1, eps, t)
        torch.testing.assert_close((c.c_in * x).std(), torch.tensor(1.0).double(), rtol=0.01, atol=0)
        torch.testing.assert_close(((x1 - c.c_skip * x) / c.c_out).std(), torch.tensor(1.0).double(), rtol=0.01, atol=0)


@every
def test_c_out_is_the_smallest_there_is(schedule):
    t, spread = times(schedule), 0.6
    c, a, b = preconditioning(t, schedule, spread), schedule.alpha(t), schedule.sigma(t)
    for skip in (0.9 * c.c_skip, 1.1 * c.c_skip, 0 * t, 1 + 0 * t):
        needed = ((1 - skip * a) ** 2 * spread**2 + skip**2 * b**2).sqrt()
        assert (needed >= c.c_out * (1 - 1e-9)).all()


@every
def test_row_of_f(schedule):
    for spread in (0.5, 1.3):
        t = times(schedule)
        c, (a, b) = preconditioning(t, schedule, spread), target_row("F", t, schedule, spread)
        torch.testing.assert_close(a, (1 - c.c_skip * schedule.alpha(t)) / c.c_out, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(b, -c.c_skip * schedule.sigma(t) / c.c_out, rtol=1e-9, atol=1e-9)


def test_table_1_of_the_paper():
    t = times(VE)
    c, sigma, s = preconditioning(t, VE, 0.5), VE.sigma(t), 0.5
    torch.testing.assert_close(c.c_skip, s**2 / (sigma**2 + s**2))
    torch.testing.assert_close(c.c_out, sigma * s / (s**2 + sigma**2).sqrt())
    torch.testing.assert_close(c.c_in, 1 / (sigma**2 + s**2).sqrt())
    assert preconditioning(0.3, VE).c_in.shape == () and preconditioning(t, VE).c_out.shape == t.shape


@every
@pytest.mark.parametrize("shape", [(7, 2), (3, 1, 4, 4)])
def test_preconditioned_model(schedule, shape):
    x, t = normal(*shape), times(schedule, shape[0])
    c = preconditioning(t, schedule, 0.8)
    skip, out, scale = (v.reshape(-1, *[1] * (len(shape) - 1)) for v in c)
    model = preconditioned(wave, schedule, 0.8)
    torch.testing.assert_close(model(x, t).x1, skip * x + out * wave(scale * x, t), rtol=1e-6, atol=1e-6)
    assert model.kind == "F" and model.sigma_data == 0.8 and isinstance(model.net, ScaledInput)


def test_preconditioned_keeps_labels():
    data, labels = MIXTURE.sample_labelled(500, rng(0))
    model = fit(
        preconditioned(MLP(width=16, n_labels=3), VE, 1.0),
        data,
        5,
        labels=labels,
        loss=edm_loss,
        batch_size=64,
        progress=False,
    ).model
    x = torch.randn(4, 2, generator=rng(1))
    assert not torch.equal(model(x, 0.7, y=0).x1, model(x, 0.7, y=2).x1)


# ---- levels and loss -------------------------------------------------------------------------------------------------

@every
def test_log_normal_levels(schedule):
    for mean, std in ((-1.2, 1.2), (-0.5, 0.6)):
        t = log_normal_times(4000, schedule, mean, std, rng(2))
        assert t.shape == (4000,) and (t >= schedule.t_range[0]).all() and (t <= schedule.t_range[1]).all()
        log_ratio = (-schedule.log_snr(t) / 2).numpy()
        clamped = stats.norm.cdf(log_ratio.min(), mean, std)  # what lies beyond t_range, for DDPM's first beta
        assert (
            stats.kstest(log_ratio, "norm", (mean, std)).statistic <= clamped + 1 / 4000
        ), "one draw in each of n equal parts"
        assert (
            clamped < 0.003 and stats.kstest(log_ratio, "norm", (mean + 0.05, std)).statistic > 0.01
        ), "the test can tell"


def test_logit_normal_on_the_linear_path():
    t = log_normal_times(4000, Linear(), -1.2, 0.9, rng(3)).numpy()
    assert stats.kstest(t, lambda t: stats.norm.cdf(stats.logistic.ppf(t), 1.2, 0.9)).statistic < 0.002


def test_levels_are_reproducible_and_end_inside():
    assert torch.equal(log_normal_times(50, VE, generator=rng(4)), log_normal_times(50, VE, generator=rng(4)))
    given = log_normal_times(50, VE, -1.2, 1.2, rng(4))  # Karras et al. 2022, table 1
    assert torch.equal(log_normal_times(50, VE, generator=rng(4)), given)
    assert not torch.equal(log_normal_times(50, VE, generator=rng(4)), log_normal_times(50, VE, generator=rng(5)))
    wide = log_normal_times(1000, VariancePreserving(), 0.0, 50.0, rng(6))
    assert wide.isfinite().all() and wide.min() == 0 and wide.max() == VariancePreserving.t_range[1]


@every
def test_plain_loss_of_f_is_the_weighted_loss_of_x1(schedule):
    x1, eps, spread = normal(64, 2), normal(64, 2, seed=1), 0.9
    t = times(schedule, 64)
    model = preconditioned(wave, schedule, spread)
    error = model(schedule.mix(x1, eps, t), t).x1 - x1
    weighted = (error.square().mean(1) / preconditioning(t, schedule, spread).c_out ** 2).mean()
    torch.testing.assert_close(matching_loss(model, x1, t=t, x0=eps), weighted, rtol=1e-6, atol=1e-6)


def test_edm_loss_is_the_matching_loss_at_these_levels():
    model, x1, eps = Denoiser(wave, VE, "eps"), normal(32, 2), normal(32, 2, seed=1)
    t = log_normal_times(32, VE, 0.3, 0.7, rng(7))
    torch.testing.assert_close(
        edm_loss(model, x1, mean=0.3, std=0.7, generator=rng(7), x0=eps),
        matching_loss(model, x1, t=t, x0=eps),
    )
    assert torch.equal(edm_loss(model, x1, generator=rng(8)), edm_loss(model, x1, generator=rng(8)))


@pytest.mark.slow
def test_training_learns_the_denoiser():
    data, spread = MIXTURE.sample(20_000, rng(9)), 1.04
    model = fit(
        preconditioned(MLP(width=64), VE, spread),
        data,
        1000,
        loss=edm_loss,
        batch_size=256,
        progress=False,
    ).model
    exact, t = ExactDenoiser(MIXTURE, VE), VE.t_from_log_snr(-2 * math.log(0.4)).item()
    x = VE.mix(MIXTURE.sample(2000, rng(10)), torch.randn(2000, 2, generator=rng(11)), t)
    truth, line = exact(x, t).x1, preconditioning(t, VE, spread).c_skip.float() * x
    with torch.no_grad(): error = (model(x, t).x1 - truth).square().mean()
    assert error < 0.1 * (line - truth).square().mean(), "it must beat the best line by far"


# ---- the sampler -----------------------------------------------------------------------------------------------------

def algorithm_2(denoise, x, sigmas, gamma, lowest, highest, spread, noises):
    "Karras et al. (2022), algorithm 2, line by line; sigmas fall to 0."
    for i in range(len(sigmas) - 1):
        g = gamma if lowest <= sigmas[i] <= highest else 0.0
        hat = sigmas[i] + g * sigmas[i]
        if g: x = x + math.sqrt(hat**2 - sigmas[i] ** 2) * spread * next(noises)
        d = (x - denoise(x, hat)) / hat
        after = x + (sigmas[i + 1] - hat) * d
        if sigmas[i + 1] != 0:
            second = (after - denoise(after, sigmas[i + 1])) / sigmas[i + 1]
            after = x + (sigmas[i + 1] - hat) * (d / 2 + second / 2)
        x = after
    return x


@pytest.mark.parametrize("gamma", [0.0, 0.3])
@pytest.mark.parametrize("name", ["linear", "cosine", "VP", "VE"])  # a DDPM can't be asked below its first beta
def test_algorithm_2(name, gamma):
    "On VE it is the paper's algorithm; on every other schedule the same samples, as all are one curve."
    n, x, schedule = 12, normal(30, 2), SCHEDULES[name]
    levels = VE.sigma(karras_grid(n, VE, ratio_max=80)).tolist()
    truth = ExactDenoiser(MIXTURE, VE)
    denoise = lambda x, sigma: truth(x, VE.t_from_log_snr(torch.tensor(-2 * math.log(sigma))).item()).x1
    noises = [normal(30, 2, seed=k + 1) for k in range(n + 1)]
    expected = algorithm_2(denoise, 80 * x, [*levels, 0.0], gamma, 0.05, 50.0, 1.007, iter(noises))
    grid = karras_grid(n + (name != "VE"), schedule)  # VE adds the last step, to no noise, itself
    given = iter(noises)
    found = sample(
        ExactDenoiser(MIXTURE, schedule),
        schedule.sigma(grid[0]) * x,
        grid,
        edm_heun(gamma, (0.05, 50.0), 1.007),
        noise=lambda x, t, s: next(given),
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_order_two():
    exact, x = ExactDenoiser(MIXTURE, VE), 80 * normal(100, 2)
    end = sample(exact, x, [0.0, 1.0], adaptive(1e-10, 1e-10))
    steps = (40, 80, 160, 320)
    errors = [(sample(exact, x, karras_grid(n, VE), edm_heun()) - end).norm(dim=1).mean() for n in steps]
    assert slope(steps, errors) == pytest.approx(-2, abs=0.2)


@pytest.mark.parametrize("gamma", [0.0, 0.2])
def test_evaluations(gamma):
    n = 9
    for schedule, calls in ((VE, 2 * n + 1), (Linear(), 2 * n - 1), (VariancePreserving(), 2 * n - 1)):
        made = trajectory(
            ExactDenoiser(MIXTURE, schedule),
            schedule.sigma(0.0) * normal(5, 2),
            karras_grid(n, schedule),
            edm_heun(gamma),
            generator=rng(0),
        )
        assert made.nfe == calls and made.xs.isfinite().all(), schedule


@every
def test_from_the_very_ends(schedule):
    "A uniform grid begins where alpha may be 0 and ends where sigma may be: finite, with a net of every kind."
    for kind in ("x1", "eps", "velocity", "v", "F"):
        made = trajectory(
            Denoiser(wave, schedule, kind),
            schedule.sigma(0.0) * normal(5, 2),
            uniform_grid(6),
            edm_heun(0.2),
            generator=rng(1),
        )
        assert made.xs.isfinite().all(), kind


def test_one_step_with_raised_noise():
    """Of data at one point everything is known: the ends are that point and the noise that is left, whatever the
    model says on the way."""
    point = GaussianMixture(torch.tensor([[1.0, -2.0]], dtype=torch.float64), [1e-6])
    x1 = torch.tensor([1.0, -2.0]).double()
    t, s = (VE.t_from_log_snr(-2 * math.log(r)).item() for r in (2.0, 0.5))
    x, z = x1 + 2.0 * normal(6, 2), normal(6, 2, seed=1)
    xs = trajectory(ExactDenoiser(point, VE), x, [t, s], edm_heun(0.5), noise=lambda *_: z).xs
    raised = x - x1 + (3.0**2 - 2.0**2) ** 0.5 * z  # noise 3, which shrinks to 0.5
    torch.testing.assert_close(xs[-1], x1 + raised * 0.5 / 3.0, rtol=0, atol=1e-6)


def test_where_noise_is_raised():
    asked, grid = [], karras_grid(20, VE)
    def noise(x, t, s):
        asked.append(VE.sigma(t).item())
        return torch.zeros_like(x)
    x, exact = 80 * normal(3, 2), ExactDenoiser(MIXTURE, VE)
    sample(exact, x, grid, edm_heun(0.1, (0.05, 50.0)), noise=noise)
    assert asked == [r for r in VE.sigma(grid[:-1]).tolist() if 0.05 <= r <= 50]
    asked.clear()
    quiet = sample(exact, x, grid, edm_heun(0.0), noise=noise)
    assert asked == [] and torch.equal(quiet, sample(exact, x, grid, edm_heun(0.3, (200.0, 300.0)), noise=noise))


def test_generator_and_device_types():
    exact, grid = ExactDenoiser(MIXTURE, VE), karras_grid(6, VE)
    x = (80 * normal(5, 2)).float()
    a, b, c = (sample(exact, x, grid, edm_heun(0.3), generator=rng(k)) for k in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c) and a.dtype == torch.float32


def test_towards_noise_and_back():
    path, grid = Linear(), torch.linspace(0.1, 0.95, 201, dtype=torch.float64)
    exact, x = ExactDenoiser(MIXTURE, path), path.mix(MIXTURE.sample(50, rng(2)).double(), normal(50, 2), 0.95)
    back = sample(exact, sample(exact, x, grid.flip(0), edm_heun()), grid, edm_heun())
    torch.testing.assert_close(back, x, rtol=0, atol=1e-3)


@lru_cache
def floor_of(n: int) -> float: return real_floor(energy_distance, MIXTURE.sample, n, 20).q99


@pytest.mark.slow
@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.4])
@pytest.mark.parametrize("name", ["VE", "linear", "VP"])
def test_samples_the_mixture(name, gamma):
    """4,000 points under the 99 % floor. Without churn the ends keep the luck of the starts, so these are no
    outliers (seed 3)."""
    schedule, n = SCHEDULES[name], 4000
    grid, real = karras_grid(100, schedule), MIXTURE.sample(n, rng(4))
    x = schedule.sigma(grid[0]).float() * torch.randn(n, 2, generator=rng(3))
    assert energy_distance(
        sample(ExactDenoiser(MIXTURE, schedule), x, grid, edm_heun(gamma), generator=rng(5)), real
    ) < floor_of(n)


def test_bad_input():
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=f"sigma_data is {bad}"): preconditioning(0.5, VE, bad)
        with pytest.raises(ValueError, match="sigma_data"): preconditioned(wave, VE, bad)
    with pytest.raises(ValueError, match="in \\[0, 1\\]"): preconditioning(1.5, VE)
    for bad in (dict(std=0.0), dict(std=-1.0), dict(std=float("nan")), dict(mean=float("nan")), dict(mean=math.inf)):
        with pytest.raises(ValueError, match="expected a (positive|finite) number"):
            log_normal_times(4, VE, **bad)
        with pytest.raises(ValueError, match="mean is|std is"):
            edm_loss(Denoiser(wave, VE), normal(4, 2), **bad)
    with pytest.raises(ValueError, match="n is 0"): log_normal_times(0, VE)
    for bad in (dict(gamma=-0.1), dict(gamma=float("nan")), dict(noise=-1.0), dict(gamma=math.inf)):
        with pytest.raises(ValueError, match="(gamma|noise) is .*: expected a number >= 0"):
            edm_heun(**bad)
    for bad in ((1.0, 0.5), (-1.0, 2.0), (float("nan"), 1.0)):
        with pytest.raises(ValueError, match="ratios"): edm_heun(0.1, bad)
    exact = ExactDenoiser(MIXTURE, Linear())
    with pytest.raises(ValueError, match="towards noise"):
        sample(exact, normal(3, 2), [0.9, 0.5], edm_heun(0.1))
