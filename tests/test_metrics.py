"""Distances between samples and strays: known values, metric properties, floors; bad input."""

import json
import math

import pytest
import torch
from helpers import normal, rng
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_course.checkpoints import WEIGHTS
from diffusion_course.distributions import GaussianMixture, running_mixture
from diffusion_course.metrics import (
    energy_distance, kept_floor, real_floor, sliced_wasserstein, strays, wasserstein2, width,
)

METRICS = [energy_distance, sliced_wasserstein, wasserstein2]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.integers(1, 3), st.integers(0, 1000))
def test_metric_properties(n, dim, seed):
    x = normal(n, dim, seed=seed)
    y = 1.5 * normal(n, dim, seed=seed + 1) + 0.3
    shift = torch.linspace(-1, 1, dim, dtype=torch.float64)
    for metric in METRICS:
        d = metric(x, y)
        exactly = pytest.approx(d, rel=1e-9, abs=1e-12)
        assert d >= -1e-12 and abs(metric(x, x)) < 1e-12
        assert metric(y, x) == exactly
        assert metric(x.flip(0), y) == exactly, "the order of the points matters"
        about = lambda value: pytest.approx(value, rel=1e-6, abs=1e-9)
        assert metric(x + shift, y + shift) == about(d), "moving both changes the distance"
        assert metric(3 * x, 3 * y) == about(3 * d), "not in the unit of x"


def test_known_values():
    x = normal(60, 2)
    move = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert wasserstein2(x, x + move) == pytest.approx(5, rel=1e-9)
    half = sliced_wasserstein(x, x + move, n_projections=20_000)
    assert half == pytest.approx(5 / math.sqrt(2), rel=0.01)
    a = torch.tensor([[0.0], [2.0]])
    b = torch.tensor([[1.0], [1.0]])
    across, inside_a, inside_b = 1, (0 + 2 + 2 + 0) / 4, 0
    assert energy_distance(a, b) == pytest.approx(2 * across - inside_a - inside_b)
    assert wasserstein2(a, b) == pytest.approx(1)


def test_wasserstein_is_the_best_assignment():
    from itertools import permutations

    x, y = normal(5, 2, seed=1), normal(5, 2, seed=2)
    costs = [(x - y[list(p)]).square().sum(1).mean() for p in permutations(range(5))]
    best = min(costs).sqrt().item()
    assert wasserstein2(x, y) == pytest.approx(best, rel=1e-12)


def test_sliced_wasserstein_of_unequal_sizes():
    x = torch.tensor([[0.0], [1.0], [2.0]])
    y = torch.tensor([[0.5], [3.0]])
    # both quantile functions are steps
    w2 = (1 / 3 * 0.5**2 + 1 / 6 * 0.5**2 + 1 / 6 * 2**2 + 1 / 3 * 1**2) ** 0.5
    assert sliced_wasserstein(x, y) == pytest.approx(w2)
    assert sliced_wasserstein(y, x) == pytest.approx(w2)
    x = normal(500, 2)
    twice = x.repeat(2, 1)
    assert sliced_wasserstein(x, twice) < 0.05 < sliced_wasserstein(x, twice + 0.5)


def test_energy_distance_in_blocks_equals_all_at_once():
    x, y = normal(3000, 2), normal(1500, 2, seed=1) + 0.2
    d = lambda a, b: (a[:, None] - b).norm(dim=-1).mean().item()
    assert energy_distance(x, y) == pytest.approx(2 * d(x, y) - d(x, x) - d(y, y), rel=1e-9)


@pytest.mark.parametrize("metric", METRICS)
def test_floor_separates_same_from_different(metric):
    draw = lambda n, g: torch.randn(n, 2, generator=g)
    floor = real_floor(metric, draw, 300, repeats=30)
    assert 0 < floor.mean < floor.q99 and floor.n == 300
    g = rng(99)
    inside = sum(metric(draw(300, g), draw(300, g)) <= floor.q99 for _ in range(20))
    assert inside >= 17, "fresh real samples lie above the floor's 99 % quantile"
    assert metric(draw(300, g), draw(300, g) + 0.7) > floor.q99
    small = lambda: real_floor(metric, draw, 50, repeats=5, seed=1)
    assert small() == small()
    assert "real samples of 300" in str(floor)


@pytest.mark.parametrize("metric", METRICS)
def test_bad_samples(metric):
    x = torch.zeros(4, 2)
    for bad, message in [
        (torch.zeros(4, 3), "columns"), (torch.zeros(0, 2), "expected a tensor"),
        (torch.zeros(4), "expected a tensor"), ([[0.0]], "list"),
        (torch.full((4, 2), math.nan), "8 values that are NaN"),
        (torch.zeros(4, 2) * 1j, "complex"),
    ]:
        with pytest.raises(ValueError, match=message): metric(x, bad)


def test_real_samples_have_one_per_cent_of_strays():
    mixture = GaussianMixture(torch.tensor([[-2.0, 0.0], [2.0, 0.0]]), torch.tensor([0.5, 0.3]))
    real = mixture.sample(20_000, generator=rng(0))
    fresh = mixture.sample(20_000, generator=rng(1))
    assert strays(fresh, mixture.log_prob, real) == pytest.approx(0.01, abs=0.003)
    assert strays(real, mixture.log_prob, real, level=0.9) == pytest.approx(0.1, abs=1e-4)
    some = torch.cat([fresh[:900], torch.zeros(100, 2)])  # a tenth lies between the two modes
    assert strays(some, mixture.log_prob, real) == pytest.approx(0.109, abs=0.01)


def test_strays_have_a_known_value():
    """The 99 % region of N(0, I) in the plane is |x|² <= 2 ln 100; N(0, 4 I) has 0.01^(1/4) outside."""
    log_prob = lambda x: -x.square().sum(1) / 2
    real = normal(40_000, 2)
    wide = 2 * normal(40_000, 2, seed=1)
    exact = pytest.approx(0.01 ** 0.25, abs=0.015)
    assert strays(wide, log_prob, real) == exact
    assert strays(wide.float().requires_grad_(), log_prob, real.float()) == exact
    far = torch.full((3, 2), 1e30)
    assert log_prob(far).isinf().all() and strays(far, log_prob, real.float()) == 1


@pytest.mark.parametrize("arguments, message", [
    (dict(x=torch.full((3, 2), math.inf)), "x holds 6 values that are NaN"),
    (dict(x=torch.zeros(3)), r"x is \(3,\): expected a tensor \(n, D\)"),
    (dict(real=torch.full((3, 2), math.nan)), "real holds 6 values"),
    (dict(log_prob=lambda x: x), r"log_prob returned shape \(5, 2\)"),
    (dict(log_prob=lambda x: x[:, 0] * math.nan), "log_prob returned 5 values that are NaN"),
    (dict(level=1), "level is 1: expected a number between 0 and 1"),
])
def test_strays_refuse(arguments, message):
    default = dict(x=torch.zeros(3, 2), log_prob=lambda x: x[:, 0], real=torch.zeros(5, 2))
    with pytest.raises(ValueError, match=message): strays(**(default | arguments))


def test_bad_arguments():
    x, many = torch.zeros(4, 2), torch.zeros(5001, 2)
    with pytest.raises(ValueError, match="equal size"): wasserstein2(x, torch.zeros(5, 2))
    with pytest.raises(ValueError, match="at most 5,000"): wasserstein2(many, many)
    with pytest.raises(ValueError, match="n_projections is 0"):
        sliced_wasserstein(x, x, n_projections=0)
    with pytest.raises(ValueError, match="repeats"):
        real_floor(energy_distance, lambda n, g: x, 4, repeats=1)


def test_a_floor_of_unequal_sizes_is_lower():
    draw = lambda n, g: torch.randn(n, 2, generator=g)
    equal = real_floor(energy_distance, draw, 50, 100)
    unequal = real_floor(energy_distance, draw, 50, 100, against=500)
    assert (equal.n, equal.against, unequal.against) == (50, 50, 500)
    assert unequal.mean < 0.7 * equal.mean and "50 and 500" in str(unequal)
    with pytest.raises(ValueError, match="against is 0: expected a whole number, 1 or more"):
        real_floor(energy_distance, draw, 50, 10, against=0)


def test_kept_floors_are_those_that_one_would_measure():
    kept = kept_floor("energy distance", "running mixture", 100)
    again = real_floor(energy_distance, running_mixture().sample, 100, 300, seed=1)
    assert kept.mean == pytest.approx(again.mean, rel=0.1)
    assert kept.q99 == pytest.approx(again.q99, rel=0.25)
    with pytest.raises(ValueError, match="'moons', 100, 100 was not measured: expected one of"):
        kept_floor("energy distance", "moons", 100)


def test_every_kept_floor_rests_on_enough_pairs():
    rows = json.loads((WEIGHTS / "floors.json").read_text(encoding="utf-8"))["floors"]
    assert len(rows) > 20 and min(row["repeats"] for row in rows) >= 300


def test_width():
    mixture = running_mixture()
    x = mixture.sample(20_000, rng(3))
    of = lambda x: width(x, mixture.means, mixture.stds, mixture.responsibilities(x))
    assert of(x) == pytest.approx(math.sqrt(2 * math.log(2)), rel=0.02)
    assert of(x + 0.2 * torch.randn(x.shape, generator=rng(4))) > 1.4
    some_astray = torch.cat([x, torch.full((200, 2), 9.0)])
    assert of(some_astray) == pytest.approx(of(x), rel=0.02), "the median must not see strays"
