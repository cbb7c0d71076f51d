"""SDEs with the marginals of the ODE: the diffusion coefficient and the drift, their samples, the corrector; bad
input."""

from functools import partial

import pytest
from helpers import normal, rng
import torch

from diffusion_course.distributions import GaussianMixture, running_mixture
from diffusion_course.metrics import energy_distance, real_floor
from diffusion_course.predictions import ExactDenoiser
from diffusion_course.schedules import DDPM, Cosine, Linear, VarianceExploding, VariancePreserving, marginal
from diffusion_course.sde import diffusion, drift, langevin_correct, sde_step
from diffusion_course.solvers import em_step, integrate

SCHEDULES = {"linear": Linear(), "cosine": Cosine(), "VP": VariancePreserving(), "VE": VarianceExploding(0.02, 5.0),
             "DDPM": DDPM(torch.linspace(1e-4, 0.02, 1000))}
every = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
BLOB = GaussianMixture(torch.tensor([[0.6, -0.4]], dtype=torch.float64), [0.5])  # one hill: two moments are all of it


def run(model, churn, x, ts, seed=1, step=sde_step) -> torch.Tensor:
    return torch.stack(list(integrate(partial(step, model, churn, generator=rng(seed)), x, ts)))


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_g_is_finite_and_as_defined(schedule, dtype):
    lo, hi = schedule.t_range
    inside = torch.linspace(lo, hi, 301, dtype=dtype)
    for churn in (0.0, 0.5, 1.0, 2.0, lambda t: 1 - t):
        g = diffusion(schedule, torch.tensor([0.0, *inside.tolist(), 1.0], dtype=dtype), churn)
        assert g.shape == (303,) and g.dtype == dtype and g.isfinite().all() and (g >= 0).all()
    t = inside.double().clamp(lo, hi)  # in float32 an end may round beyond the range
    a, s, da, ds = (f(t) for f in (schedule.alpha, schedule.sigma, schedule.d_alpha, schedule.d_sigma))
    torch.testing.assert_close(diffusion(schedule, t, 1.7) ** 2, 1.7 * 2 * s * (s * da - a * ds))
    assert (diffusion(schedule, inside, 0.0) == 0).all()
    assert diffusion(schedule, 0.3).shape == ()


def test_g_known_cases():
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    torch.testing.assert_close(diffusion(Linear(), t) ** 2, 2 * (1 - t))
    assert diffusion(Linear(), 1.0) == 0 and diffusion(Linear(), 0.0) == pytest.approx(2**0.5)
    vp = VariancePreserving(0.1, 20.0)  # Song's reverse SDE: g² = beta
    torch.testing.assert_close(diffusion(vp, t, lambda t: 1 / vp.alpha(t)) ** 2, 0.1 + 19.9 * (1 - t))


@every
def test_drift_is_velocity_and_half_g2_score(schedule):
    model = ExactDenoiser(running_mixture(), schedule)
    for t in (0.05, 0.4, 0.713, 0.95):
        p = model(normal(40, 2), t)
        for churn in (0.0, 1.0, 1.6, lambda t: 1 + t):
            half = diffusion(schedule, t, churn) ** 2 / 2 * p.score
            torch.testing.assert_close(drift(p, churn), p.velocity + half)
            torch.testing.assert_close(drift(p, churn, backwards=True), p.velocity - half)
    assert torch.equal(drift(p, 0.0), p.velocity)
    batch = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    x = normal(3, 2, seed=3)
    one_by_one = torch.cat([drift(model(x[k:k + 1], batch[k]), 1.3) for k in range(3)])
    torch.testing.assert_close(drift(model(x, batch), 1.3), one_by_one)


@every
def test_drift_is_finite_at_the_ends(schedule):
    model = ExactDenoiser(running_mixture(), schedule)
    for t in schedule.t_range: assert drift(model(normal(9, 2), t), 2.0).isfinite().all()


def test_step_is_euler_maruyama():
    model, x, z = ExactDenoiser(running_mixture(), Cosine()), normal(7, 2), normal(7, 2, seed=1)
    p, g = model(x, 0.6), diffusion(Cosine(), 0.6, 1.4)
    for s in (0.7, 0.5):
        h, sign = abs(s - 0.6), 1 if s > 0.6 else -1
        expected = x + h * (sign * p.velocity + g**2 / 2 * p.score) + h**0.5 * g * z
        torch.testing.assert_close(sde_step(model, 1.4, x, 0.6, s, noise=z), expected)
    torch.testing.assert_close(sde_step(model, 0.0, x, 0.6, 0.7), x + 0.1 * p.velocity)


@every
def test_last_step_returns_the_predicted_data(schedule):
    calls = []

    class Model(ExactDenoiser):
        def __call__(self, x, t):
            calls.append(float(t))
            return super().__call__(x, t)

    model, x = Model(running_mixture(), schedule), normal(20, 2)
    xs = run(model, 1.0, schedule.sigma(0.0) * x, torch.linspace(0, 1, 9, dtype=torch.float64))
    assert xs.isfinite().all() and len(calls) == 8 and max(calls) < 1, "asked at the singular end"
    if schedule.sigma(1.0) == 0: assert torch.equal(xs[-1], model(xs[-2], 7 / 8).x1)


@every
@pytest.mark.parametrize("churn", [0.0, 1.0, 2.0])
def test_marginals_of_a_gaussian(schedule, churn):
    n, ts = 10_000, torch.linspace(0, 1, 401, dtype=torch.float64)
    xs = run(ExactDenoiser(BLOB, schedule), churn, marginal(BLOB, schedule, 0.0).sample(n, rng(2)), ts)
    for k in (100, 200, 300, 400):
        truth = marginal(BLOB, schedule, ts[k].item())
        spread = truth.stds[0].item()
        torch.testing.assert_close(xs[k].mean(0), truth.means[0], rtol=0, atol=0.02 * spread + 0.005)
        torch.testing.assert_close(xs[k].std(0), truth.stds.expand(2), rtol=0.03, atol=0.003)


@pytest.mark.parametrize("churn", [1.0, 2.0])
def test_backwards_has_the_same_marginals(churn):
    path, ts = Linear(), torch.linspace(0.9, 0.0, 301, dtype=torch.float64)
    xs = run(ExactDenoiser(BLOB, path), churn, marginal(BLOB, path, 0.9).sample(10_000, rng(3)), ts)
    torch.testing.assert_close(xs[-1].std(0), torch.ones(2).double(), rtol=0.03, atol=0)
    torch.testing.assert_close(xs[-1].mean(0), torch.zeros(2).double(), rtol=0, atol=0.03)


def test_the_same_seed_gives_the_same_path():
    model, ts = ExactDenoiser(running_mixture(), Linear()), torch.linspace(0, 1, 11)
    a, b, c = (run(model, 1.0, normal(5, 2), ts, seed) for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_wrong_processes_are_told_apart():
    "The measure that the next test relies on sees a missing score, and noise of the wrong strength."
    mixture, path, ts = running_mixture(), Linear(), torch.linspace(0, 1, 101)
    model, n = ExactDenoiser(mixture, path), 1000
    floor, real = real_floor(energy_distance, mixture.sample, n, 20).q99, mixture.sample(n, rng(5))

    def wrong(model, churn, x, t, s, generator, score=1.0, power=1):
        p = model(x, t)
        return em_step(
            lambda *_: p.velocity + score * (drift(p, churn) - p.velocity),
            diffusion(path, t, churn) ** power,
            x,
            t,
            s,
            generator=generator,
        )

    x = torch.randn(n, 2, generator=rng(4))
    assert energy_distance(run(model, 1.0, x, ts)[-1], real) < floor
    for mistake in (dict(score=0.0), dict(score=-1.0), dict(score=2.0)):
        assert energy_distance(run(model, 1.0, x, ts, step=partial(wrong, **mistake))[-1], real) > floor, mistake


@pytest.mark.slow
def test_churn_leaves_the_marginals_alone():
    "The Fokker-Planck equation, through samples: 4,000 points, churn 0 to 2, three schedules."
    mixture, n, ts = running_mixture(), 4000, torch.linspace(0, 1, 201)
    floor = real_floor(energy_distance, mixture.sample, n, 30).q99
    for name in ("linear", "cosine", "VP"):
        s = SCHEDULES[name]
        x, real = marginal(mixture, s, 0.0).sample(n, rng(6)), mixture.sample(n, rng(7))
        for churn in (0.0, 1.0, 2.0):
            *_, end = integrate(partial(sde_step, ExactDenoiser(mixture, s), churn, generator=rng(8)), x, ts)
            assert energy_distance(end, real) < floor, f"{name}, churn {churn}"


@every
def test_corrector_keeps_p_t(schedule):
    model, t = ExactDenoiser(BLOB, schedule), 0.6
    truth = marginal(BLOB, schedule, t)
    x = langevin_correct(model, truth.sample(20_000, rng(9)), t, 30, 0.05, generator=rng(10))
    torch.testing.assert_close(x.mean(0), truth.means[0], rtol=0, atol=0.03 * truth.stds[0].item())
    torch.testing.assert_close(x.std(0), truth.stds.expand(2), rtol=0.03, atol=0)


def test_corrector_repairs_and_is_langevin():
    path, t = Linear(), 0.3
    model, truth = ExactDenoiser(BLOB, path), marginal(BLOB, path, t)
    wrong = 0.3 * truth.sample(20_000, rng(11)) + 1
    x = langevin_correct(model, wrong, t, 100, 0.1, generator=rng(12))
    torch.testing.assert_close(x.mean(0), truth.means[0], rtol=0, atol=0.05)
    torch.testing.assert_close(
        x.std(0), truth.stds.expand(2), rtol=0.05, atol=0
    )  # a step of 0.1 leaves it 2 % too wide
    y, delta = normal(5, 2), 0.1 * 0.7**2
    z = torch.randn(5, 2, generator=rng(13), dtype=torch.float64)
    expected = y + delta * model(y, t).score + (2 * delta) ** 0.5 * z
    torch.testing.assert_close(langevin_correct(model, y, t, 1, 0.1, generator=rng(13)), expected)
    assert torch.equal(langevin_correct(model, y, 1.0, 5, generator=rng(0)), y), "no noise, nothing to correct"


def test_bad_input():
    model, x = ExactDenoiser(running_mixture(), Linear()), normal(4, 2)
    p = model(x, 0.5)
    for churn in (-1.0, lambda t: t - 1, float("nan")):
        with pytest.raises(ValueError, match="churn"): diffusion(Linear(), 0.5, churn)
        with pytest.raises(ValueError, match="churn"): drift(p, churn)
        with pytest.raises(ValueError, match="churn"): sde_step(model, churn, x, 0.5, 0.6)
    with pytest.raises(ValueError, match="in \\[0, 1\\]"): diffusion(Linear(), 1.5)
    with pytest.raises(ValueError, match="in \\[0, 1\\]"): sde_step(model, 1.0, x, 0.5, 1.2)
    with pytest.raises(ValueError, match="noise"): sde_step(model, 1.0, x, 0.5, 0.6, noise=x[:2])
    for bad in (dict(steps=0), dict(step=0.0), dict(step=1.5)):
        with pytest.raises(ValueError, match="step"): langevin_correct(model, x, 0.5, **bad)


@pytest.mark.parametrize("churn", [0.0, 1.0])
@pytest.mark.parametrize(
    "schedule",
    [
        Linear(),
        Cosine(),
        VariancePreserving(),
        VarianceExploding(),
        DDPM(torch.linspace(1e-4, 0.02, 1000)),
    ],
    ids=repr,
)
def test_sampling_over_the_whole_clock_stays_finite(schedule, churn):
    x = schedule.sigma(0.0).float() * torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    step = partial(
        sde_step,
        ExactDenoiser(running_mixture(), schedule),
        churn,
        generator=torch.Generator().manual_seed(1),
    )
    assert all(x.isfinite().all() for x in integrate(step, x, torch.linspace(0, 1, 21)))
