"""Solvers: their orders, read off slopes on problems with exact solutions, and their manners."""

import math
from functools import partial

import pytest
import torch

from diffusion_course.plots import slope
from diffusion_course.solvers import em_step, euler_step, heun_step, integrate, midpoint_step, rk4_step

STEPS = [8, 16, 32, 64, 128]


def end(step, x, n):
    *_, x = integrate(step, x, torch.linspace(0, 1, n + 1, dtype=torch.float64))
    return x


def turn(x, t):
    "A rotation whose speed depends on time and on the radius; the radius is conserved, so the solution is known."
    speed = 2 * math.cos(3 * t) * (1 + x.square().sum(1, keepdim=True))
    return speed * torch.stack([-x[:, 1], x[:, 0]], 1)


def turned(x):
    angle = 2 * math.sin(3.0) / 3 * (1 + x.square().sum(1))
    c, s = angle.cos(), angle.sin()
    return torch.stack([c * x[:, 0] - s * x[:, 1], s * x[:, 0] + c * x[:, 1]], 1)


@pytest.mark.parametrize(
    "step, order, tolerance",
    [(euler_step, 1, 0.15), (midpoint_step, 2, 0.15), (heun_step, 2, 0.15), (rk4_step, 4, 0.3)],
)
def test_order_of_ode_solvers(step, order, tolerance):
    x = 0.3 * torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ns = [64, 128, 256, 512]
    errors = [(end(partial(step, turn), x, n) - turned(x)).norm(dim=1).mean() for n in ns]
    assert abs(slope([1 / n for n in ns], errors) - order) < tolerance


@pytest.mark.parametrize("step, evaluations", [(euler_step, 1), (midpoint_step, 2), (heun_step, 2), (rk4_step, 4)])
def test_evaluations_of_a_step(step, evaluations):
    asked = []
    step(lambda x, t: asked.append(t) or x, torch.ones(1, 1), 0.25, 0.5)
    assert len(asked) == evaluations and all(0.25 <= t <= 0.5 for t in asked)


def test_there_and_back():
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.5
    forth, back = torch.linspace(0, 1, 201), torch.linspace(1, 0, 201)
    *_, there = integrate(partial(rk4_step, turn), x, forth)
    *_, again = integrate(partial(rk4_step, turn), there, back)
    assert (again - x).abs().max() < 1e-6 < (there - x).abs().max()


def brownian(n_paths, fine, theta, seed):
    """Increments of W and, jointly, of the integral of exp(-theta (end - r)) dW_r over each fine step: exact, no
    reference grid."""
    g, h = torch.Generator().manual_seed(seed), 1 / fine
    z = torch.randn(2, fine, n_paths, generator=g, dtype=torch.float64)
    cov, var = (1 - math.exp(-theta * h)) / theta, (1 - math.exp(-2 * theta * h)) / (2 * theta)
    dW = h**0.5 * z[0]
    return dW, cov / h * dW + (var - cov**2 / h) ** 0.5 * z[1]


def along(dW, u, g, n):
    pushes = iter(dW.reshape(n, -1, dW.shape[1]).sum(1) * n**0.5)
    return end(
        lambda x, t, s: em_step(u, g, x, t, s, noise=next(pushes)),
        torch.ones(dW.shape[1], dtype=torch.float64),
        n,
    )


def test_strong_order_one_half_with_multiplicative_noise():
    a, b = 0.5, 1.0
    dW, _ = brownian(4000, 512, 1.0, 0)
    exact = torch.exp(a - b**2 / 2 + b * dW.sum(0))
    errors = [(along(dW, lambda x, t: a * x, lambda x, t: b * x, n) - exact).abs().mean() for n in STEPS[1:]]
    assert abs(slope([1 / n for n in STEPS[1:]], errors) - 0.5) < 0.15


def test_strong_order_one_with_additive_noise():
    theta, fine = 2.0, 512
    dW, pieces = brownian(4000, fine, theta, 1)
    exact = torch.ones(4000, dtype=torch.float64)
    for piece in pieces: exact = math.exp(-theta / fine) * exact + piece
    errors = [(along(dW, lambda x, t: -theta * x, 1.0, n) - exact).abs().mean() for n in STEPS[1:]]
    assert abs(slope([1 / n for n in STEPS[1:]], errors) - 1) < 0.15


def test_weak_order_one():
    a, b = 2.0, 0.5
    dW, _ = brownian(20_000, 256, 1.0, 2)
    exact = torch.exp(a - b**2 / 2 + b * dW.sum(0))
    errors = [(along(dW, lambda x, t: a * x, lambda x, t: b * x, n) - exact).mean().abs() for n in STEPS[1:]]
    assert abs(slope([1 / n for n in STEPS[1:]], errors) - 1) < 0.15


def test_brownian_increments_scale_with_the_root_of_the_step():
    x = torch.zeros(100_000, dtype=torch.float64)
    for h in (0.01, 0.25):
        pushed = em_step(lambda x, t: 0 * x, 3.0, x, 0.0, h, generator=torch.Generator().manual_seed(0))
        assert abs(pushed.var().item() / (9 * h) - 1) < 0.02
        assert abs((pushed**4).mean().item() / pushed.var().item() ** 2 - 3) < 0.1, "the noise is not Gaussian"


def test_noise_is_reproducible_and_local():
    x, before = torch.zeros(5, 2), torch.get_rng_state()
    draw = lambda seed: em_step(lambda x, t: x, 1.0, x, 0.0, 0.5, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(draw(0), draw(0)) and not torch.equal(draw(0), draw(1))
    assert torch.equal(before, torch.get_rng_state()), "the global seed was touched"


def test_iterates_are_lazy_and_complete():
    steps = []
    walk = integrate(lambda x, t, s: steps.append((t, s)) or x + 1, torch.zeros(2), [0.0, 0.25, 1.0])
    assert next(walk).sum() == 0 and steps == []
    assert [x.sum().item() for x in walk] == [2, 4] and steps == [(0.0, 0.25), (0.25, 1.0)]


def test_a_float32_grid_that_leaves_the_interval_by_rounding_is_fine():
    ts = torch.linspace(0, 1, 4)
    ts[-1] = 1.0000001
    assert len(list(integrate(partial(euler_step, lambda x, t: x), torch.zeros(1, 1), ts))) == 4


@pytest.mark.parametrize(
    "ts, said",
    [
        ([0.0, 2.0], r"ts runs from 0 to 2: expected times in \[0, 1\]"),
        ([-0.5, 1.0], "ts runs from -0.5"),
        ([0.0], "ts has shape"),
        ([], "ts has shape"),
        (None, "ts is NoneType"),
        ("now", "ts is str"),
        ([0.0, 0.5, 0.5], "monotonic"),
        ([0.0, 0.7, 0.3], "monotonic"),
        ([0.0, math.nan, 1.0], "ts runs"),
        ([[0.0, 1.0]], "ts has shape"),
    ],
)
def test_bad_times(ts, said):
    with pytest.raises(ValueError, match=said):
        integrate(partial(euler_step, lambda x, t: x), torch.zeros(1, 1), ts)


def test_bad_input_is_refused_at_once():
    step = partial(euler_step, lambda x, t: x)
    for x, said in [(torch.tensor([math.nan]), "NaN"), (torch.tensor([1]), "floating-point"), ([0.0], "list")]:
        with pytest.raises(ValueError, match=said):
            integrate(step, x, [0.0, 1.0])  # before the first iterate is asked for
    for t, s in [(0.0, 1.5), (-0.1, 0.5), (math.nan, 0.5)]:
        for solver in (euler_step, midpoint_step, heun_step, rk4_step):
            with pytest.raises(ValueError, match=r"expected times in \[0, 1\]"):
                solver(lambda x, t: x, torch.zeros(1, 1), t, s)
    for x, said in [(torch.zeros(0, 2), "not empty"), (torch.tensor([math.inf]), "infinite")]:
        with pytest.raises(ValueError, match=said): integrate(step, x, [0.0, 1.0])
    for returned, said in [(None, "NoneType"), (1.0, "float")]:
        with pytest.raises(ValueError, match=f"field returned {said}"):
            heun_step(lambda x, t, k=returned: k, torch.zeros(5), 0.0, 0.5)
        with pytest.raises(ValueError, match=f"step returned {said}"):
            list(integrate(lambda x, t, s, k=returned: k, torch.zeros(5), [0.0, 1.0]))
    with pytest.raises(ValueError, match=r"step returned shape \(5, 5\)"):
        list(integrate(lambda x, t, s: x + x[:, None], torch.zeros(5), [0.0, 1.0]))
    with pytest.raises(ValueError, match=r"g has shape \(5, 1\)"):
        em_step(lambda x, t: x, lambda x, t: x[:, None], torch.zeros(5), 0.0, 0.5)
    with pytest.raises(ValueError, match=r"returned shape \(5, 5\)"):
        euler_step(lambda x, t: x + torch.zeros(5, 1), torch.zeros(5), 0.0, 0.5)
    with pytest.raises(ValueError, match="noise has shape"):
        em_step(lambda x, t: x, 1.0, torch.zeros(3, 2), 0.0, 0.5, noise=torch.zeros(3))


def test_times_given_as_a_list_keep_their_precision() -> None:
    seen: list[float] = []
    list(integrate(lambda x, t, s: seen.append(s) or x, torch.zeros(1, 1), [0.0, 0.1, 0.7]))
    assert seen == [0.1, 0.7]
