"""Distances between samples: known values, metric properties, floors; bad input."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_course.metrics import energy_distance, real_floor, sliced_wasserstein, wasserstein2

METRICS = [energy_distance, sliced_wasserstein, wasserstein2]


def points(n, dim, seed): return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.integers(1, 3), st.integers(0, 1000))
def test_metric_properties(n, dim, seed):
    x, y = points(n, dim, seed), points(n, dim, seed + 1) * 1.5 + 0.3
    shift = torch.linspace(-1, 1, dim, dtype=torch.float64)
    for metric in METRICS:
        d = metric(x, y)
        assert d >= -1e-12 and abs(metric(x, x)) < 1e-12
        assert d == pytest.approx(metric(y, x), rel=1e-9, abs=1e-12)
        assert d == pytest.approx(metric(x.flip(0), y), rel=1e-9, abs=1e-12), "the order of the points matters"
        assert d == pytest.approx(metric(x + shift, y + shift), rel=1e-6, abs=1e-9), "moving both changes the distance"
        assert metric(3 * x, 3 * y) == pytest.approx(3 * d, rel=1e-6, abs=1e-9), "not in the unit of x"


def test_known_values():
    x, move = points(60, 2, 0), torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert wasserstein2(x, x + move) == pytest.approx(5, rel=1e-9)
    assert sliced_wasserstein(x, x + move, n_projections=20_000) == pytest.approx(5 / math.sqrt(2), rel=0.01)
    a, b = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [1.0]])
    assert energy_distance(a, b) == pytest.approx(2 * 1 - 1 - 0)  # mean distances: across 1, inside a (0 + 2 + 2 + 0)/4, inside b 0
    assert wasserstein2(a, b) == pytest.approx(1)


def test_wasserstein_is_the_best_assignment():
    from itertools import permutations

    x, y = points(5, 2, 1), points(5, 2, 2)
    best = min((x - y[list(p)]).square().sum(1).mean().sqrt().item() for p in permutations(range(5)))
    assert wasserstein2(x, y) == pytest.approx(best, rel=1e-12)


def test_sliced_wasserstein_of_unequal_sizes():
    x, y = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.5], [3.0]])
    pieces = 1 / 3 * 0.5**2 + 1 / 6 * 0.5**2 + 1 / 6 * 2**2 + 1 / 3 * 1**2  # both quantile functions are steps
    assert sliced_wasserstein(x, y) == pytest.approx(pieces**0.5) == pytest.approx(sliced_wasserstein(y, x))
    x = points(500, 2, 0)
    assert sliced_wasserstein(x, x.repeat(2, 1)) < 0.05 < sliced_wasserstein(x, x.repeat(2, 1) + 0.5)


def test_energy_distance_in_blocks_equals_all_at_once():
    x, y = points(3000, 2, 0), points(1500, 2, 1) + 0.2
    d = lambda a, b: (a[:, None] - b).norm(dim=-1).mean().item()
    assert energy_distance(x, y) == pytest.approx(2 * d(x, y) - d(x, x) - d(y, y), rel=1e-9)


@pytest.mark.parametrize("metric", METRICS)
def test_floor_separates_same_from_different(metric):
    draw = lambda n, g: torch.randn(n, 2, generator=g)
    floor = real_floor(metric, draw, 300, repeats=30)
    assert 0 < floor.mean < floor.q99 and floor.n == 300
    g = torch.Generator().manual_seed(99)
    inside = sum(metric(draw(300, g), draw(300, g)) <= floor.q99 for _ in range(20))
    assert inside >= 17, "fresh real samples lie above the floor's 99 % quantile"
    assert metric(draw(300, g), draw(300, g) + 0.7) > floor.q99
    assert real_floor(metric, draw, 50, repeats=5, seed=1) == real_floor(metric, draw, 50, repeats=5, seed=1)
    assert "real samples of 300" in str(floor)


@pytest.mark.parametrize("metric", METRICS)
def test_bad_samples(metric):
    x = torch.zeros(4, 2)
    for bad, said in [(torch.zeros(4, 3), "columns"), (torch.zeros(0, 2), "expected a tensor"), (torch.zeros(4), "expected a tensor"), ([[0.0]], "list"),
                      (torch.full((4, 2), math.nan), "8 values that are NaN"), (torch.zeros(4, 2) * 1j, "complex")]:
        with pytest.raises(ValueError, match=said): metric(x, bad)


def test_bad_arguments():
    x = torch.zeros(4, 2)
    with pytest.raises(ValueError, match="equal size"): wasserstein2(x, torch.zeros(5, 2))
    with pytest.raises(ValueError, match="at most 5,000"): wasserstein2(torch.zeros(5001, 2), torch.zeros(5001, 2))
    with pytest.raises(ValueError, match="n_projections is 0"): sliced_wasserstein(x, x, n_projections=0)
    with pytest.raises(ValueError, match="repeats"): real_floor(energy_distance, lambda n, g: x, 4, repeats=1)
