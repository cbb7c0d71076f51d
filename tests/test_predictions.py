"""Predictions: the algebra there and back, the exact and the empirical denoiser against autograd, brute force and
each other."""
from __future__ import annotations

import math

import pytest
from helpers import rng
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffusion_course import predictions
from diffusion_course.distributions import GaussianMixture, running_mixture
from diffusion_course.predictions import (
    KINDS,
    Denoiser,
    EmpiricalDenoiser,
    ExactDenoiser,
    Prediction,
    target_row,
    to_prediction,
)
from diffusion_course.schedules import (
    DDPM,
    Cosine,
    Linear,
    Schedule,
    VarianceExploding,
    VariancePreserving,
    marginal,
    per_sample,
)

D = torch.float64
SCHEDULES = {
    "linear": Linear(), "cosine": Cosine(), "vp": VariancePreserving(), "ve": VarianceExploding(),
    "ddpm": DDPM(torch.linspace(1e-4, 0.02, 1000)), "short ddpm": DDPM(torch.linspace(1e-3, 0.2, 50)),
}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
every_kind = pytest.mark.parametrize("kind", KINDS)

def randn(*shape: int, seed: int = 0, dtype: torch.dtype = D) -> Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=dtype)


def times(n: int, seed: int, lo: float = 0.02, hi: float = 0.98) -> Tensor:
    return lo + (hi - lo) * torch.rand(n, generator=rng(seed), dtype=D)


def random_mixture(seed: int, labels: bool = False) -> GaussianMixture:
    """One to six components in one to four dimensions, in double precision."""
    g = rng(seed)
    k, d = (int(torch.randint(1, n + 1, (), generator=g)) for n in (6, 4))
    uniform = lambda *shape: torch.rand(*shape, generator=g, dtype=D)
    return GaussianMixture(
        4 * uniform(k, d) - 2,
        0.1 + uniform(k),
        0.1 + uniform(k),
        torch.arange(k) % 2 if labels else None,
    )


def running() -> GaussianMixture:
    m = running_mixture()
    return GaussianMixture(m.means.double(), m.stds.double(), m.weights.double(), m.labels)


def off(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the size of b."""
    assert a.shape == b.shape
    return ((a - b).abs().max() / b.abs().max().clamp_min(1e-300)).item()


def finite(*xs: Tensor) -> bool: return all(bool(x.isfinite().all()) for x in xs)


# ---- the algebra -----------------------------------------------------------------------------------------------------

@every_kind
@every_schedule
def test_every_target_there_and_back(schedule: Schedule, kind: str) -> None:
    x1, eps, t = randn(200, 3, seed=1), randn(200, 3, seed=2), times(200, 3)
    a, b = target_row(kind, t, schedule)
    p = to_prediction(per_sample(a, x1) * x1 + per_sample(b, x1) * eps, kind, schedule.mix(x1, eps, t), t, schedule)
    # What rounding can do is bounded by the condition of the 2 x 2 system: relative to |x| / |D|, sample by sample.
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    amplified = (1 + sigma / alpha + alpha / sigma) * (1 + x1.abs() + eps.abs())
    assert ((p.x1 - x1).abs() / amplified).max() < 1e-12
    assert ((p.eps - eps).abs() / amplified).max() < 1e-12
    usual = (sigma / alpha + alpha / sigma)[:, 0] < 1e3
    assert usual.sum() > 50
    assert off(p.x1[usual], x1[usual]) < 1e-9
    assert off(p.eps[usual], eps[usual]) < 1e-9


@every_schedule
def test_a_property_is_its_row(schedule: Schedule) -> None:
    x1, eps, t = randn(50, 2, seed=4), randn(50, 2, seed=5), times(50, 6)
    p = Prediction(schedule.mix(x1, eps, t), t, schedule, x1, eps)
    for kind in KINDS[:5]:
        a, b = target_row(kind, t, schedule)
        assert a.shape == b.shape == t.shape
        assert off(getattr(p, kind), a[:, None] * x1 + b[:, None] * eps) < 1e-12


@every_schedule
def test_velocity_is_the_derivative_of_the_path(schedule: Schedule) -> None:
    x1, eps, t, h = (
        randn(40, 2, seed=7),
        randn(40, 2, seed=8),
        (23 * torch.arange(40, dtype=D) + 20.37) / 1000,
        1e-6,
    )  # off the knots of DDPM
    ahead, behind = schedule.mix(x1, eps, t + h), schedule.mix(x1, eps, t - h)
    assert off(Prediction(schedule.mix(x1, eps, t), t, schedule, x1, eps).velocity, (ahead - behind) / (2 * h)) < 1e-5


def test_determinants_are_those_of_the_table() -> None:
    for schedule in SCHEDULES.values():
        t = times(30, 9)
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        m = (alpha**2 / 4 + sigma**2).sqrt()
        table = dict(x1=-sigma, eps=alpha, velocity=alpha * schedule.d_sigma(t) - sigma * schedule.d_alpha(t),
                     v=alpha**2 + sigma**2, score=-alpha / sigma, F=-m / 0.5)
        for kind, expected in table.items():
            a, b = target_row(kind, t, schedule)
            assert off(alpha * b - sigma * a, expected) < 1e-12
    assert torch.equal(table["v"] > 0, torch.ones(30, dtype=torch.bool))


@pytest.mark.parametrize("sigma_data", [0.5, 1.7])
def test_F_is_what_Karras_defines(sigma_data: float) -> None:
    x1, eps, t, s = randn(30, 2, seed=10), randn(30, 2, seed=11), times(30, 12), Cosine()
    r = (s.sigma(t) / s.alpha(t))[:, None]
    c_skip, c_out = sigma_data**2 / (r**2 + sigma_data**2), r * sigma_data / (r**2 + sigma_data**2).sqrt()
    a, b = target_row("F", t, s, sigma_data)
    assert off(a[:, None] * x1 + b[:, None] * eps, (x1 - c_skip * (x1 + r * eps)) / c_out) < 1e-10
    assert torch.allclose(a**2 * sigma_data**2 + b**2, torch.ones(30, dtype=D))
    y = randn(30, 2, seed=13)
    p = to_prediction(y, "F", s.mix(x1, eps, t), t, s, sigma_data)
    assert off(p.x1, c_skip * (x1 + r * eps) + c_out * y) < 1e-10


@every_kind
@pytest.mark.parametrize("shape", [(4, 2), (2, 2), (3, 1, 5, 3), (3, 3, 3, 3)], ids=str)
def test_each_sample_has_its_own_time(kind: str, shape: tuple) -> None:
    y, x, t, s = randn(*shape, seed=14), randn(*shape, seed=15), times(shape[0], 16), VariancePreserving()
    together = to_prediction(y, kind, x, t, s)
    for k in range(shape[0]):
        for given_t in (t[k], t[k].item(), t[k : k + 1]):
            alone = to_prediction(y[k : k + 1], kind, x[k : k + 1], given_t, s)
            for name in ("x1", "eps", "velocity", "v", "score"):
                assert getattr(together, name).shape == shape
                assert off(getattr(together, name)[k : k + 1], getattr(alone, name)) < 1e-12


@every_kind
def test_dtype_follows_x(kind: str) -> None:
    for dtype in (torch.float32, torch.float64):
        x = randn(3, 2, dtype=dtype)
        for t in (0.4, torch.tensor(0.4), torch.full((3,), 0.4, dtype=D)):
            p = to_prediction(x, kind, x, t, Linear())
            assert {getattr(p, name).dtype for name in ("x1", "eps", "velocity", "v", "score")} == {dtype}


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(KINDS),
    st.sampled_from(KINDS),
    st.sampled_from(list(SCHEDULES)),
    st.floats(0.05, 0.95),
    st.integers(0, 1000),
)
def test_an_error_travels_by_the_ratio_of_determinants(
    given_kind: str, wanted: str, name: str, t: float, seed: int
) -> None:
    s = SCHEDULES[name]
    x, y, e = randn(4, 2, seed=seed), randn(4, 2, seed=seed + 1), randn(4, 2, seed=seed + 2)
    det = lambda a, b: s.alpha(t) * b - s.sigma(t) * a
    c, d = target_row(wanted, t, s)
    value = lambda p: c * p.x1 + d * p.eps
    moved = value(to_prediction(y + e, given_kind, x, t, s)) - value(to_prediction(y, given_kind, x, t, s))
    assert torch.allclose(
        moved,
        det(c, d) / det(*target_row(given_kind, t, s)) * e,
        rtol=1e-6,
        atol=1e-6 * moved.abs().max().item(),
    )


# ---- the exact denoiser ----------------------------------------------------------------------------------------------

@every_schedule
def test_score_is_the_gradient_of_log_p(schedule: Schedule) -> None:
    for seed in range(200):
        mixture, t = random_mixture(seed), times(1, seed).item()
        p_t = marginal(mixture, schedule, t)
        x = p_t.sample(3, rng(seed)).requires_grad_()
        by_autograd, = torch.autograd.grad(p_t.log_prob(x).sum(), x)
        p = ExactDenoiser(mixture, schedule)(x.detach(), t)
        assert off(p.score, by_autograd) < 1e-9, f"mixture {seed}, t = {t}"
        assert off(schedule.alpha(t) * p.x1 + schedule.sigma(t) * p.eps, p.x) < 1e-9


@every_schedule
def test_conditional_score_is_the_gradient_of_log_p_given_y(schedule: Schedule) -> None:
    mixture = running()
    x, y = randn(12, 2, seed=1).requires_grad_(), torch.arange(12) % 3
    p_t = marginal(mixture, schedule, 0.6)
    by_autograd, = torch.autograd.grad(p_t.log_prob(x, y).sum(), x)
    model = ExactDenoiser(mixture, schedule)
    assert off(model(x.detach(), 0.6, y=y).score, by_autograd) < 1e-9
    assert off(model(x[:1].detach(), 0.6, y=0).score, by_autograd[:1]) < 1e-9
    assert off(model(x.detach(), 0.6).score, by_autograd) > 1e-3


@pytest.mark.parametrize("t", [0.2, 0.5, 0.8])
def test_x1_is_the_posterior_mean(t: float) -> None:
    mixture, s, x = running(), Linear(), randn(6, 2, seed=2) * 0.7
    x1 = mixture.sample(400_000, rng(3))
    weight = torch.softmax(-torch.cdist(x, s.alpha(t) * x1).square() / (2 * s.sigma(t) ** 2), 1)
    standard_error = (weight.square() @ x1.square()).sqrt().clamp_min(1e-4)
    assert ((ExactDenoiser(mixture, s)(x, t).x1 - weight @ x1).abs() / standard_error).max() < 6


@every_schedule
def test_exact_denoiser_takes_a_time_for_each_sample(schedule: Schedule) -> None:
    model, x, t = ExactDenoiser(running(), schedule), randn(2, 2, seed=4), torch.tensor([0.3, 0.8], dtype=D)
    together = model(x, t)
    for k in range(2):
        for given_t in (t[k], t[k].item(), t[k : k + 1]):
            assert off(together.x1[k : k + 1], model(x[k : k + 1], given_t).x1) < 1e-12
    assert {model(x.float(), t).x1.dtype, model(x.float(), 0.3).velocity.dtype} == {torch.float32}


@every_schedule
def test_ends_of_the_exact_denoiser_are_finite(schedule: Schedule) -> None:
    model, x = ExactDenoiser(running(), schedule), 3 * randn(20, 2, seed=5)
    for t in (0.0, 1.0):
        for dtype in (torch.float32, D):
            p = model(x.to(dtype), t)
            assert finite(p.x1, p.eps)
            if finite(schedule.d_sigma(t), schedule.d_alpha(t)): assert finite(p.velocity)
    for t in schedule.t_range: assert finite(model(x, t).velocity)


def test_ends_of_the_linear_path_are_right() -> None:
    mixture, x = running(), randn(20, 2, seed=6)
    start, end = (ExactDenoiser(mixture, Linear())(x, t) for t in (0.0, 1.0))
    assert off(start.x1, (mixture.weights[:, None] * mixture.means).sum(0).expand(20, 2)) < 1e-12
    assert torch.allclose(start.eps, x) and torch.allclose(end.x1, x)
    assert end.eps.abs().max() == 0


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.floats(0.05, 0.95), st.floats(-30, 30))
def test_exact_denoiser_far_from_everything(seed: int, t: float, far: float) -> None:
    mixture = random_mixture(seed)
    p = ExactDenoiser(mixture, Linear())(torch.full((2, mixture.means.shape[1]), far, dtype=D), t)
    assert finite(p.x1, p.eps, p.velocity, p.v, p.score)


# ---- the empirical denoiser ------------------------------------------------------------------------------------------

@every_schedule
def test_empirical_is_a_mixture_of_needles(schedule: Schedule) -> None:
    data, labels = running().sample_labelled(30, rng(7))
    needles, empirical = GaussianMixture(
        data, torch.full((30,), 1e-7, dtype=D), labels=labels
    ), EmpiricalDenoiser(data, schedule, labels)
    x, t, y = randn(9, 2, seed=8), times(9, 9, 0.1, 0.9), torch.arange(9) % 3
    exact = ExactDenoiser(needles, schedule)
    for cond in ({}, dict(y=y), dict(y=1)):
        for time in (t, 0.5, torch.tensor(0.5, dtype=D)):
            assert off(empirical(x, time, **cond).x1, exact(x, time, **cond).x1) < 1e-5
            assert off(empirical(x, time, **cond).eps, exact(x, time, **cond).eps) < 1e-5
    assert off(empirical(x, t, y=y).x1, empirical(x, t).x1) > 1e-3


@every_schedule
def test_empirical_on_pictures(schedule: Schedule) -> None:
    data, x, t = randn(7, 1, 4, 3, seed=10), randn(5, 1, 4, 3, seed=11), times(5, 12)
    p = EmpiricalDenoiser(data, schedule)(x, t)
    alpha, sigma = (a[:, None, None, None] for a in (schedule.alpha(t), schedule.sigma(t)))
    square = (x[:, None] - alpha[:, None] * data).flatten(2).square().sum(2)
    weight = (-square / (2 * sigma.flatten()[:, None] ** 2)).softmax(1)
    assert off(p.x1, torch.einsum("bn,nchw->bchw", weight, data)) < 1e-9
    assert off(alpha * p.x1 + sigma * p.eps, x) < 1e-9
    for shape in (p.x1, p.eps, p.velocity, p.score): assert shape.shape == x.shape


@pytest.mark.parametrize("dtype", [torch.float32, D])
def test_empirical_finds_the_nearest_as_noise_goes(dtype: torch.dtype) -> None:
    data = randn(50, 2, seed=13, dtype=dtype)
    x = data[:20] + 1e-3 * randn(20, 2, seed=14, dtype=dtype)
    model = EmpiricalDenoiser(data, Linear())
    for t in (0.9999, 1 - 1e-12, 1.0):
        assert torch.allclose(model(x, torch.tensor(t, dtype=D)).x1, data[:20], atol=1e-5)
    assert model(x, 0.99).x1.dtype == dtype and finite(model(x, 0.9999).velocity)
    labelled = EmpiricalDenoiser(data, Linear(), torch.arange(50) % 2)(x, 1.0, y=0)
    assert torch.allclose(labelled.x1[::2], data[:20:2]) and finite(labelled.x1)


def test_the_ode_of_a_finite_data_set_ends_in_it() -> None:
    data = running().sample(20, rng(15))
    model, x, ts = EmpiricalDenoiser(data, Linear()), randn(200, 2, seed=16), torch.linspace(0, 1, 101, dtype=D)
    for t, s in zip(ts[:-1], ts[1:], strict=True): x = x + (s - t) * model(x, t).velocity
    assert (torch.cdist(x, data).amin(1) < 0.01).double().mean() > 0.99


# ---- networks as models ----------------------------------------------------------------------------------------------

@every_kind
def test_denoiser_reads_its_network_as_its_kind(kind: str) -> None:
    mixture, s = running(), VariancePreserving()
    exact, x, t = ExactDenoiser(mixture, s), randn(10, 2, seed=17), times(10, 18)

    class Net(torch.nn.Module):
        def forward(self, x, t, y=None):
            assert t.shape == (len(x),) and t.dtype == x.dtype
            p = exact(x, t, y=y)
            a, b = target_row(kind, t, s, 1.1)
            return per_sample(a, x) * p.x1 + per_sample(b, x) * p.eps

    model = Denoiser(Net(), s, kind, sigma_data=1.1)
    for time in (t, 0.4, torch.tensor(0.4)):
        assert off(model(x, time).x1, exact(x, time).x1) < 1e-6
        assert off(model(x, time, y=2).score, exact(x, time, y=2).score) < 1e-6
    assert off(model(x, t).velocity, exact(x, t).velocity) < 1e-9


def test_denoiser_holds_its_network() -> None:
    model = Denoiser(torch.nn.Linear(2, 2), Linear())
    assert len(list(model.parameters())) == 2 and model.kind == "velocity"
    outer = Denoiser(lambda x, t: x, Linear(), "x1")
    assert torch.equal(outer(torch.ones(3, 2), 0.5).x1, torch.ones(3, 2))


# ---- what does not fit -----------------------------------------------------------------------------------------------

X = torch.zeros(3, 2)
WRONG = {
    "unknown target": lambda: target_row("noise", 0.5, Linear()),
    "unknown target of a model": lambda: Denoiser(torch.nn.Identity(), Linear(), "x0"),
    "no spread": lambda: target_row("F", 0.5, Linear(), 0.0),
    "negative spread": lambda: Denoiser(torch.nn.Identity(), Linear(), "F", -1.0),
    "time beyond 1": lambda: to_prediction(X, "v", X, 1.5, Linear()),
    "time is NaN": lambda: ExactDenoiser(running(), Linear())(X, math.nan),
    "times of another batch": lambda: to_prediction(X, "v", X, torch.rand(2), Linear()),
    "times of another shape": lambda: Denoiser(lambda x, t: x, Linear())(X, torch.rand(3, 1)),
    "times for the exact model": lambda: ExactDenoiser(running(), Linear())(X, torch.rand(2)),
    "times for the empirical model": lambda: EmpiricalDenoiser(X, Linear())(X, torch.rand(2)),
    "y and x differ": lambda: to_prediction(X[:2], "v", X, 0.5, Linear()),
    "a network of the wrong shape": lambda: Denoiser(lambda x, t: x[:, :1], Linear())(X, 0.5),
    "integers": lambda: to_prediction(X.long(), "v", X.long(), 0.5, Linear()),
    "no batch": lambda: to_prediction(X[0], "v", X[0], 0.5, Linear()),
    "x of another dimension": lambda: ExactDenoiser(running(), Linear())(torch.zeros(3, 5), 0.5),
    "pictures for a mixture": lambda: ExactDenoiser(running(), Linear())(
        torch.zeros(3, 1, 2, 2), 0.5
    ),
    "unknown label": lambda: ExactDenoiser(running(), Linear())(X, 0.5, y=7),
    "no data": lambda: EmpiricalDenoiser(X[:0], Linear()),
    "flat data": lambda: EmpiricalDenoiser(X[0], Linear()),
    "data with NaN": lambda: EmpiricalDenoiser(X / 0, Linear()),
    "data of integers": lambda: EmpiricalDenoiser(X.long(), Linear()),
    "labels that do not match": lambda: EmpiricalDenoiser(X, Linear(), torch.zeros(2)),
    "x unlike the data": lambda: EmpiricalDenoiser(X, Linear())(torch.zeros(3, 1, 2), 0.5),
    "labels asked of none": lambda: EmpiricalDenoiser(X, Linear())(X, 0.5, y=0),
    "label not in the data": lambda: EmpiricalDenoiser(X, Linear(), torch.tensor([0, 1, 1]))(
        X, 0.5, y=torch.tensor([0, 1, 2])
    ),
    "too many labels": lambda: EmpiricalDenoiser(X, Linear(), torch.tensor([0, 1, 1]))(
        X, 0.5, y=torch.zeros(4)
    ),
}


@pytest.mark.parametrize("call", WRONG.values(), ids=WRONG)
def test_what_does_not_fit_says_what_was_expected(call) -> None:
    with pytest.raises(ValueError, match="expected"): call()


@every_schedule
def test_the_marginal_field_obeys_the_continuity_equation(schedule):
    "dp/dt = -div(p u): the field of the exact model carries the marginal path."
    mixture, h = GaussianMixture(randn(3, 2, seed=1), [0.3, 0.5, 0.4], [0.2, 0.5, 0.3]), 1e-5
    model, p = ExactDenoiser(mixture, schedule), lambda x, t: marginal(mixture, schedule, t).log_prob(x).exp()
    for t in (0.2037, 0.5013, 0.8041):  # off DDPM's knots
        x = (marginal(mixture, schedule, t).sample(50, rng(2))).requires_grad_()
        flow = p(x, t)[:, None] * model(x, t).velocity
        inflow = -sum(torch.autograd.grad(flow[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(2))
        rate = ((p(x, t + h) - p(x, t - h)) / (2 * h)).detach()
        torch.testing.assert_close(rate, inflow, rtol=1e-4, atol=1e-6 * rate.abs().max().item() + 1e-12)


@pytest.mark.parametrize("schedule", [Linear(), Cosine(), VariancePreserving()], ids=repr)
def test_the_exact_flow_there_and_back(schedule):
    from functools import partial

    from diffusion_course.solvers import integrate, rk4_step

    model, noise, ts = ExactDenoiser(running_mixture(), schedule), randn(50, 2), torch.linspace(0, 0.95, 201, dtype=D)
    step = partial(rk4_step, lambda x, t: model(x, t).velocity)
    *_, data = integrate(step, noise, ts)
    *_, back = integrate(step, data, ts.flip(0))
    assert (back - noise).abs().max() < 1e-4 < (data - noise).abs().max()


def test_a_target_without_a_row_is_refused(monkeypatch):
    monkeypatch.setattr(predictions, "KINDS", (*predictions.KINDS, "balanced"))
    with pytest.raises(ValueError, match="'balanced' has a name in KINDS and no row"):
        predictions.target_row("balanced", 0.5, Linear())
