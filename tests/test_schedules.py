"""Schedules: derivatives and inverses against autograd, ends, DDPM's discrete levels, marginals; bad input."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_course.distributions import GaussianMixture
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

BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
SCHEDULES = [
    Linear(),
    Cosine(),
    VariancePreserving(),
    VariancePreserving(0.5, 0.5),
    VarianceExploding(),
    VarianceExploding(0.02, 5.0),
    DDPM(BETAS),
    DDPM(BETAS[::50] * 10),
]
NAMES = [f"{s!r}{k}" for k, s in enumerate(SCHEDULES)]
every = pytest.mark.parametrize("schedule", SCHEDULES, ids=NAMES)


def inner_times(schedule: Schedule, n: int = 400) -> torch.Tensor:
    "Times between the ends, away from the knots at which DDPM's derivatives jump."
    t = torch.rand(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.98 + 0.01
    if isinstance(schedule, DDPM):
        done = t * len(schedule.betas)
        t = t[(done - done.round()).abs() > 0.01]
    return t


@every
def test_derivatives_agree_with_autograd(schedule):
    for f, df in ((schedule.alpha, schedule.d_alpha), (schedule.sigma, schedule.d_sigma)):
        t = inner_times(schedule).requires_grad_()
        value = f(t)
        exact = torch.autograd.grad(value.sum(), t)[0] if value.requires_grad else torch.zeros_like(t)
        torch.testing.assert_close(df(t), exact, rtol=1e-9, atol=1e-9)


@every
def test_log_snr_there_and_back(schedule):
    t = inner_times(schedule)
    torch.testing.assert_close(schedule.t_from_log_snr(schedule.log_snr(t)), t, rtol=1e-9, atol=1e-9)
    l = schedule.log_snr(torch.linspace(0.01, 0.99, 100, dtype=torch.float64))
    assert (l.diff() > 0).all(), "the signal-to-noise ratio does not rise"
    assert schedule.t_from_log_snr(1e4) <= 1 and schedule.t_from_log_snr(-1e4) >= 0


@every
def test_ends_are_exact_and_finite(schedule):
    for dtype in (torch.float32, torch.float64):
        t = torch.tensor([0.0, 1.0], dtype=dtype)
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        assert alpha.dtype == sigma.dtype == dtype and alpha.isfinite().all() and sigma.isfinite().all()
        assert alpha[1] == 1 and not torch.signbit(sigma).any()
        if isinstance(schedule, VarianceExploding):
            assert sigma[0] == pytest.approx(schedule.sigma_max) and sigma[1] == pytest.approx(
                schedule.sigma_min
            )
        else:
            assert sigma[1] == 0
        t = torch.tensor(schedule.t_range, dtype=dtype)
        for f in (schedule.alpha, schedule.sigma, schedule.d_alpha, schedule.d_sigma):
            assert f(t).isfinite().all(), f"{f.__name__} is infinite inside t_range"
    assert Linear().alpha(0.0) == Cosine().alpha(0.0) == 0 and Linear().sigma(0.0) == Cosine().sigma(0.0) == 1


@every
def test_shape_and_kind_of_times(schedule):
    for t in (0.3, torch.tensor(0.3), torch.full((4,), 0.3), torch.full((2, 3), 0.3)):
        for f in (schedule.alpha, schedule.sigma, schedule.d_alpha, schedule.d_sigma, schedule.log_snr):
            assert f(t).shape == torch.as_tensor(t).shape
    assert schedule.alpha(torch.full((3,), 0.3)).dtype == torch.float32


@pytest.mark.parametrize("schedule", [Cosine(), VariancePreserving(), DDPM(BETAS)], ids=repr)
def test_variance_is_preserved(schedule):
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    torch.testing.assert_close(
        schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, torch.ones_like(t), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("betas", [BETAS, BETAS[::20] * 5, torch.tensor([0.5], dtype=torch.float64)])
def test_ddpm_meets_the_discrete_levels(betas):
    schedule, i = DDPM(betas), torch.arange(len(betas))
    alpha_bar = (1 - betas).cumprod(0)
    torch.testing.assert_close(schedule.alpha(schedule.t_of(i)), alpha_bar.sqrt(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(schedule.sigma(schedule.t_of(i)), (1 - alpha_bar).sqrt(), rtol=1e-9, atol=1e-12)
    assert (schedule.index_of(schedule.t_of(i)) == i).all() and schedule.index_of(1.0) == -1
    assert schedule.t_of(len(betas) - 1) == 0


def test_ddpm_with_many_steps_approaches_the_continuous_path():
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    continuous = VariancePreserving(0.1, 20.0).alpha(t)
    gaps = [
        (DDPM(torch.linspace(0.1, 20.0, n, dtype=torch.float64) / n).alpha(t) - continuous)
        .abs()
        .max()
        .item()
        for n in (100, 1000)
    ]
    assert gaps[1] < gaps[0] / 8 and gaps[1] < 0.01


@settings(max_examples=40, deadline=None)
@given(st.integers(0, len(SCHEDULES) - 1), st.floats(0.0, 1.0), st.integers(0, 1000))
def test_the_marginal_is_the_law_of_mixed_points(which, t, seed):
    "For one Gaussian: moments by the rules for sums; and mixing twice is blurring more."
    schedule, g = SCHEDULES[which], torch.Generator().manual_seed(seed)
    mixture = GaussianMixture(
        torch.randn(3, 2, generator=g, dtype=torch.float64),
        [0.3, 0.2, 0.5],
        [0.2, 0.5, 0.3],
        [0, 1, 1],
    )
    p, a, s = marginal(mixture, schedule, t), schedule.alpha(t).item(), schedule.sigma(t).item()
    mean, second = p.weights @ p.means, p.weights @ (p.means**2 + p.stds[:, None] ** 2)
    torch.testing.assert_close(mean, a * (mixture.weights @ mixture.means), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        second,
        a**2 * (mixture.weights @ (mixture.means**2 + mixture.stds[:, None] ** 2)) + s**2,
        rtol=1e-9,
        atol=1e-9,
    )
    assert torch.equal(p.labels, mixture.labels) and torch.equal(p.weights, mixture.weights)


def test_mix_is_sample_by_sample():
    g = torch.Generator().manual_seed(0)
    for shape in ((2, 2), (4, 3, 4, 4), (3, 5)):
        x1, eps, t = torch.randn(shape, generator=g), torch.randn(shape, generator=g), torch.rand(shape[0], generator=g)
        whole = Linear().mix(x1, eps, t)
        for k in range(shape[0]): assert torch.equal(whole[k], t[k] * x1[k] + (1 - t[k]) * eps[k])
        torch.testing.assert_close(Linear().mix(x1, eps, 0.25), 0.25 * x1 + 0.75 * eps)


def test_per_sample():
    x = torch.zeros(2, 3, 4, 4)
    assert (
        per_sample(torch.ones(2, dtype=torch.float64), x).shape == (2, 1, 1, 1)
        and per_sample(torch.ones(2, dtype=torch.float64), x).dtype == x.dtype
    )
    assert per_sample(0.5, x).shape == ()
    for bad in (torch.ones(3), torch.ones(2, 1), torch.ones(2, 3)):
        with pytest.raises(ValueError, match="expected"): per_sample(bad, x)


@every
def test_times_outside_are_refused(schedule):
    assert schedule.alpha(1) == 1  # a whole number is a time as well
    for t in (-0.01, 1.5, math.nan, torch.tensor([0.2, 7.0])):
        for f in (schedule.alpha, schedule.sigma, schedule.d_alpha, schedule.d_sigma, schedule.log_snr):
            with pytest.raises(ValueError, match=r"expected times in \[0, 1\]"): f(t)


@pytest.mark.parametrize(
    "call",
    [
        lambda: VariancePreserving(-0.1, 20.0),
        lambda: VariancePreserving(20.0, 0.1),
        lambda: VarianceExploding(1.0, 0.5),
        lambda: VarianceExploding(0.0, 0.5),
        lambda: DDPM(torch.tensor([])),
        lambda: DDPM(torch.tensor([0.1, 1.0])),
        lambda: DDPM(torch.tensor([-0.1])),
        lambda: DDPM(torch.tensor([[0.1]])),
        lambda: DDPM(torch.tensor([math.nan])),
    ],
)
def test_bad_schedules(call):
    with pytest.raises(ValueError, match="expected"): call()


def test_schedules_remember_single_times_by_their_value():
    """What was found for a single time is kept; times that were changed in place, or need a gradient, must not be
    mistaken for it."""
    s, t = DDPM(torch.linspace(1e-4, 0.02, 20)), torch.tensor([0.2, 0.7], dtype=torch.float64)
    before = s.alpha(t).clone()
    t += 0.1
    assert torch.equal(
        s.alpha(t), s.alpha(torch.tensor(t.tolist(), dtype=torch.float64))
    ) and not torch.equal(s.alpha(t), before)
    one = torch.tensor(0.3, dtype=torch.float64)
    before = s.alpha(one).clone()
    one += 0.1
    assert torch.equal(s.alpha(one), s.alpha(0.4)) and not torch.equal(s.alpha(one), before)
    assert s.alpha(torch.tensor(0.3)).dtype == torch.float32
    t = one.requires_grad_()
    for _ in range(2): torch.autograd.grad(s.alpha(t).sum(), t)  # a graph that was kept would be gone the second time


def test_what_would_lose_its_gradient_or_its_effect_is_refused():
    learned = torch.nn.Parameter(torch.tensor(20.0))
    with pytest.raises(ValueError, match="beta_max requires gradients: expected a number"):
        VariancePreserving(beta_max=learned)
    with pytest.raises(ValueError, match="sigma_max requires gradients"):
        VarianceExploding(0.1, learned)
    with pytest.raises(ValueError, match="betas requires gradients"):
        DDPM(torch.full((4,), 0.1, requires_grad=True))
    schedule = DDPM(torch.full((4,), 0.1))
    schedule.betas.mul_(0.01)  # a copy, as alpha is computed from the betas at the start
    torch.testing.assert_close(schedule.betas, torch.full((4,), 0.1).double())


def test_remembered_values_are_safe_to_change_and_to_train_with():
    s = Linear()
    s.sigma(0.25).mul_(7)
    assert s.sigma(0.25) == 0.75, "a value changed in place must not come back"
    with torch.inference_mode(): s.alpha(0.5)
    x = torch.ones(2, 1, requires_grad=True)
    (per_sample(s.alpha(0.5), x) * x).sum().backward()  # an inference tensor that was kept would refuse
    assert torch.equal(x.grad, torch.full((2, 1), 0.5))
