"""Mixtures and toy sets: closed forms against autograd, Bayes' rule and sampling; bad input."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_course.distributions import GaussianMixture, running_mixture, toy, toy_names

MIXTURES = st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(0, 10_000))  # components, dimension, seed


def random_mixture(components: int, dim: int, seed: int) -> tuple[GaussianMixture, torch.Generator]:
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.rand(*shape, generator=g, dtype=torch.float64)
    labels = torch.randint(0, 3, (components,), generator=g)
    return GaussianMixture(4 * draw(components, dim) - 2, 0.1 + draw(components), 0.05 + draw(components), labels), g


@settings(max_examples=60, deadline=None)
@given(MIXTURES)
def test_score_is_the_gradient_of_log_prob(case):
    mixture, g = random_mixture(*case)
    x = (3 * torch.randn(7, case[1], generator=g, dtype=torch.float64)).requires_grad_()
    y = mixture.labels[torch.randint(0, case[0], (7,), generator=g)]
    for label in (None, y, int(y[0])):
        gradient, = torch.autograd.grad(mixture.log_prob(x, label).sum(), x)
        torch.testing.assert_close(mixture.score(x, label), gradient, rtol=1e-9, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(MIXTURES)
def test_bayes_rule(case):
    mixture, g = random_mixture(*case)
    x = torch.randn(9, case[1], generator=g, dtype=torch.float64)
    assert torch.allclose(mixture.responsibilities(x).sum(1), torch.ones(9, dtype=torch.float64))
    for label in mixture.labels.unique():
        prior = mixture.weights[mixture.labels == label].sum()
        posterior = (mixture.log_prob(x, label) + prior.log() - mixture.log_prob(x)).exp()  # p(x | y) p(y) / p(x)
        torch.testing.assert_close(mixture.label_probs(x)[:, label], posterior, rtol=1e-9, atol=1e-12)


def test_density_integrates_to_one():
    side = torch.linspace(-6, 6, 601, dtype=torch.float64)
    x = torch.cartesian_prod(side, side)
    for y in (None, 0, 1, 2):
        total = running_mixture().log_prob(x, y).exp().sum() * (side[1] - side[0]) ** 2
        assert abs(total - 1) < 1e-6


def test_log_prob_is_finite_where_the_density_underflows():
    far = torch.tensor([[1e3, -1e3]])
    assert running_mixture().log_prob(far).isfinite().all() and running_mixture().score(far).isfinite().all()


def test_samples_have_the_moments_and_labels_of_the_mixture():
    mixture = running_mixture()
    x, y = mixture.sample_labelled(200_000, torch.Generator().manual_seed(0))
    mean = mixture.weights @ mixture.means
    second = mixture.weights @ (mixture.means**2 + mixture.stds[:, None] ** 2)
    assert torch.allclose(x.mean(0), mean, atol=0.01) and torch.allclose((x**2).mean(0), second, atol=0.02)
    for label in range(3):
        assert abs((y == label).float().mean() - mixture.weights[mixture.labels == label].sum()) < 0.005
    # The label most probable at a point is nearly always the one it was drawn with: the components are well apart.
    assert (mixture.label_probs(x).argmax(1) == y).float().mean() > 0.97


def test_results_follow_the_dtype_of_x():
    mixture = running_mixture()
    for dtype in (torch.float32, torch.float64):
        x = torch.zeros(3, 2, dtype=dtype)
        assert mixture.log_prob(x).dtype == mixture.score(x, 1).dtype == mixture.label_probs(x).dtype == dtype


def test_weights_need_not_add_up_to_one():
    a, b = (GaussianMixture([[0.0, 0.0], [1.0, 1.0]], [1.0, 0.5], w) for w in ([1.0, 3.0], [0.25, 0.75]))
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(a.log_prob(x), b.log_prob(x))


def test_a_component_of_weight_zero_is_as_good_as_absent():
    a = GaussianMixture([[0.0, 0.0], [1.0, 1.0]], [1.0, 0.5], [1.0, 0.0])
    b = GaussianMixture([[0.0, 0.0]], [1.0])
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(a.log_prob(x), b.log_prob(x)) and torch.allclose(a.score(x), b.score(x))


def test_the_mixture_keeps_its_own_parameters():
    means = torch.zeros(1, 2)
    mixture = GaussianMixture(means, [1.0])
    means += 5
    assert (mixture.means == 0).all()
    running_mixture().means.add_(1)
    assert running_mixture().means[0, 0] == pytest.approx(-1.3)


def test_reduced_precision_elsewhere_does_not_reach_the_score():
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16): inside = running_mixture().score(x)
    assert torch.allclose(inside, running_mixture().score(x), rtol=1e-5)


@pytest.mark.parametrize("name", toy_names())
def test_toy_sets(name):
    x = toy(name, 4000, seed=1)
    assert x.shape == (4000, 2) and x.dtype == torch.float32 and x.isfinite().all()
    assert x.mean(0).abs().max() < 0.35 and 0.6 < x.std(0).min() and x.std(0).max() < 1.3
    assert torch.equal(x, toy(name, 4000, seed=1)) and not torch.equal(x, toy(name, 4000, seed=2))
    before = torch.get_rng_state()
    toy(name, 10)
    assert torch.equal(before, torch.get_rng_state()), "the global seed was touched"


def test_checkerboard_stays_in_its_cells():
    cell = toy("checkerboard", 5000).floor().long()
    assert cell.min() >= -2 and cell.max() <= 1 and (cell.sum(1) % 2 == 0).all()


@pytest.mark.parametrize("arguments, said", [
    ((torch.zeros(3), [1.0]), r"means has shape \(3,\)"),
    ((torch.zeros(0, 2), []), r"means has shape \(0, 2\)"),
    (([[0.0, 0.0]], [1.0, 2.0]), r"stds has shape \(2,\).*\(1,\)"),
    (([[0.0, 0.0]], [-1.0]), "stds are"),
    (([[0.0, 0.0]], [0.0]), "stds are"),
    (([[math.nan, 0.0]], [1.0]), "means holds NaN"),
    (([[0.0, 0.0]], [math.inf]), "stds holds NaN or infinity"),
    (([[0.0, 0.0], [1.0, 1.0]], [1.0, 1.0], [-1.0, 2.0]), "weights are"),
    (([[0.0, 0.0]], [1.0], [0.0]), "weights are"),
    (([[0.0, 0.0]], [1.0], None, [0, 1]), "labels has shape"),
    (([[0.0, 0.0]], [1.0], None, [-1]), "labels are"),
    (([[0.0, 0.0]], [1.0], None, [0.5]), "labels are"),
])
def test_bad_mixtures(arguments, said):
    with pytest.raises(ValueError, match=said): GaussianMixture(*arguments)


def test_bad_points_labels_and_names():
    mixture, x = running_mixture(), torch.zeros(4, 2)
    for bad, said in [
        ((torch.zeros(4, 3),), "expected a tensor"),
        ((torch.zeros(2),), "expected a tensor"),
        (([[0.0, 0.0]],), "expected a tensor"),
        ((torch.full((4, 2), math.nan),), "NaN or infinity in 4 of 4"),
        ((torch.full((4, 2), math.inf),), "NaN or infinity"),
        ((torch.zeros(4, 2).long(),), "floating-point"),
        ((torch.zeros(0, 2),), "n >= 1"),
        ((x, 7), "labels"),
        ((x, torch.zeros(3).long()), "y is"),
        ((x, "a"), "y is 'a'"),
    ]:
        for method in (mixture.log_prob, mixture.score):
            with pytest.raises(ValueError, match=said): method(*bad)
    with pytest.raises(ValueError, match="positive weight"):
        GaussianMixture([[0.0, 0.0], [1.0, 1.0]], [1.0, 1.0], [1, 0], [0, 1]).score(x, 1)
    with pytest.raises(ValueError, match="no labels"):
        GaussianMixture([[0.0, 0.0]], [1.0]).label_probs(x)
    with pytest.raises(ValueError, match="no labels"):
        GaussianMixture([[0.0, 0.0]], [1.0]).log_prob(x, 0)
    with pytest.raises(ValueError, match="no labels"):
        GaussianMixture([[0.0, 0.0]], [1.0]).sample_labelled(3)
    for n in (0, -1, 2.5):
        with pytest.raises(ValueError, match="whole number"): toy("moons", n)
        with pytest.raises(ValueError, match="whole number"): mixture.sample(n)
    with pytest.raises(ValueError, match="no toy set 'moon'.*moons"): toy("moon", 10)
    with pytest.raises(ValueError, match="no toy set"): toy(["moons"], 10)
