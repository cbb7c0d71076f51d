"""Guidance: Bayes' rule, the line through two predictions, what is asked and counted, intervals, the tilt; bad
input."""

from functools import partial

import pytest
from helpers import normal, rng
import torch

from diffusion_course.distributions import GaussianMixture, running_mixture
from diffusion_course.guidance import classifier_free, classifier_guided, tilted_log_prob
from diffusion_course.matching import MLP
from diffusion_course.metrics import energy_distance, real_floor
from diffusion_course.plots import grid
from diffusion_course.predictions import Denoiser, ExactDenoiser
from diffusion_course.samplers import euler, heun, sample, trajectory, uniform_grid
from diffusion_course.schedules import Cosine, Linear, VariancePreserving, marginal

MIXTURE = running_mixture()
SCHEDULES = {"linear": Linear(), "cosine": Cosine(), "VP": VariancePreserving()}
every = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
LABELS = torch.arange(7) % 3


class Counted(torch.nn.Module):
    """An untrained network that has something to say, and writes down with which labels it was asked."""

    def __init__(self):
        super().__init__()
        self.net, self.n_labels, self.asked = MLP(width=16, n_labels=3).double(), 3, []
        torch.nn.init.normal_(self.net.last.weight, generator=rng(0))

    def forward(self, x, t, y=None, shift=None):
        self.asked.append(None if y is None else torch.as_tensor(y).expand(len(x)).tolist())
        return self.net(x, t, y) + (0 if shift is None else shift)


@pytest.fixture
def model() -> Denoiser: return Denoiser(Counted(), Linear())


def logits(schedule, x, t):
    p = marginal(MIXTURE, schedule, t)
    prior = torch.stack([MIXTURE.weights[MIXTURE.labels == y].sum() for y in range(3)]).log()
    return torch.stack([p.log_prob(x, y) for y in range(3)], 1) + prior


# ---- classifier-free -------------------------------------------------------------------------------------------------

def same(p, q) -> bool: return torch.equal(p.x1, q.x1) and torch.equal(p.eps, q.eps)


def test_zero_and_one_ask_one_branch_and_are_it(model):
    x = normal(7, 2)
    with torch.no_grad():
        for w, y, expected in (
            (0, None, model(x, 0.4)),
            (0, LABELS, model(x, 0.4)),
            (1, LABELS, model(x, 0.4, y=LABELS)),
            (1, 2, model(x, 0.4, y=2)),
        ):
            model.net.asked.clear()
            guided = classifier_free(model, w)
            assert same(guided(x, 0.4, y=y), expected)
            assert len(model.net.asked) == 1 and len(model.net.asked[0]) == 7 and guided.cost(0.4) == 1


def test_other_w_ask_once_with_a_doubled_batch(model):
    x, t, shift = normal(7, 2), torch.linspace(0.1, 0.9, 7, dtype=torch.float64), normal(7, 2, seed=1)
    with torch.no_grad():
        without, told = model(x, t, shift=shift), model(x, t, y=LABELS, shift=shift)
        for w in (0.001, 0.5, 3.0, -1.0):
            model.net.asked.clear()
            guided = classifier_free(model, w)
            p = guided(x, t, y=LABELS, shift=shift)
            assert model.net.asked == [[3] * 7 + LABELS.tolist()] and guided.cost(0.4) == 2
            assert p.x is x and p.t.shape == (7,)
            for kind in ("x1", "eps", "velocity", "v", "score"):
                torch.testing.assert_close(getattr(p, kind), (1 - w) * getattr(without, kind) + w * getattr(told, kind))
            torch.testing.assert_close(Linear().mix(p.x1, p.eps, t), x)


@pytest.mark.parametrize("w, calls", [(0.0, 1), (1.0, 1), (2.0, 2)])
def test_evaluations_are_counted(model, w, calls):
    run = partial(trajectory, classifier_free(model, w), normal(5, 2), y=1)
    assert run(uniform_grid(8), euler()).nfe == 8 * calls
    assert run(uniform_grid(8), heun()).nfe == 16 * calls
    assert len(model.net.asked) == 24, "one call of the network each, doubled or not"


def test_labels_of_each_sample(model):
    x = normal(7, 2)
    for m in (model, ExactDenoiser(MIXTURE, Linear())):
        together = classifier_free(m, 2.5)(x, 0.3, y=LABELS).x1
        alone = torch.cat([classifier_free(m, 2.5)(x[k:k + 1], 0.3, y=int(LABELS[k])).x1 for k in range(7)])
        torch.testing.assert_close(together, alone)


def test_a_null_label_of_ones_own(model):
    "A network that does not say which label is null, and one that must be given a label."
    x, net = normal(7, 2), model.net.net
    must = Denoiser(lambda x, t, y: net(x, t, y), Linear())
    with torch.no_grad():
        for w in (0, 1, 3.0):
            expected = classifier_free(model, w)(x, 0.4, y=LABELS)
            torch.testing.assert_close(classifier_free(must, w, null=3)(x, 0.4, y=LABELS).x1, expected.x1)
            two_calls = classifier_free(Denoiser(lambda x, t, y=None: net(x, t, y), Linear()), w)
            torch.testing.assert_close(two_calls(x, 0.4, y=LABELS).x1, expected.x1)


@every
def test_the_target_does_not_matter(schedule):
    exact, x, t = ExactDenoiser(MIXTURE, schedule), normal(40, 2), 0.37
    expected = classifier_free(exact, 3.5)(x, t, y=1)
    for kind in ("x1", "eps", "velocity", "v"):
        net = lambda x, t, y=None, kind=kind: getattr(exact(x, t, y), kind)
        p = classifier_free(Denoiser(net, schedule, kind), 3.5)(x, t, y=1)
        torch.testing.assert_close(p.x1, expected.x1)
        torch.testing.assert_close(p.eps, expected.eps)


def test_interval(model):
    x, guided = normal(5, 2), classifier_free(model, 3.0, interval=(0.3, 0.6))
    with torch.no_grad():
        for t in (0.0, 0.29, 0.61, 1.0): assert same(guided(x, t, y=1), model(x, t, y=1)) and guided.cost(t) == 1
        for t in (0.3, 0.45, 0.6):
            assert (
                same(guided(x, t, y=1), classifier_free(model, 3.0)(x, t, y=1))
                and guided.cost(t) == 2
            )
    assert trajectory(guided, x, uniform_grid(20), euler(), y=1).nfe == 20 + 7  # 0.30, 0.35, ..., 0.60
    off = classifier_free(model, 0.0, interval=(0.3, 0.6))
    with torch.no_grad(): assert same(off(x, 0.5), model(x, 0.5))
    with pytest.raises(ValueError, match="without a label"): off(x, 0.7)


def test_guidance_of_a_guided_model_is_counted():
    exact = ExactDenoiser(MIXTURE, Linear())
    guided = classifier_guided(classifier_free(exact, 2.0), partial(logits, Linear()), 1.0)
    assert guided.cost(0.5) == 3 and classifier_guided(exact, partial(logits, Linear()), 0.0).cost(0.5) == 1


# ---- with a classifier -----------------------------------------------------------------------------------------------

@every
def test_bayes_rule(schedule):
    exact, x = ExactDenoiser(MIXTURE, schedule), normal(60, 2)
    guided = classifier_guided(exact, partial(logits, schedule))
    for t in (0.1, 0.5, 0.9):
        for y in (0, 2, torch.arange(60) % 3):
            p, truth = guided(x, t, y=y), exact(x, t, y=y)
            torch.testing.assert_close(p.x1, truth.x1, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(p.eps, truth.eps, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(schedule.mix(p.x1, p.eps, t), x)


@every
def test_both_kinds_of_guidance_agree(schedule):
    exact, x = ExactDenoiser(MIXTURE, schedule), normal(60, 2)
    for w in (-1.0, 0.0, 0.5, 3.0):
        with_classifier = classifier_guided(exact, partial(logits, schedule), w)(x, 0.4, y=1)
        torch.testing.assert_close(with_classifier.x1, classifier_free(exact, w)(x, 0.4, y=1).x1, rtol=1e-4, atol=1e-5)


def test_classifier_guidance_samples():
    "Under no_grad, from t = 0, where a classifier says nothing: the conditional model's samples."
    exact, x = ExactDenoiser(MIXTURE, Linear()), normal(300, 2)
    guided = sample(classifier_guided(exact, partial(logits, Linear())), x, uniform_grid(40), heun(), y=1)
    assert not guided.requires_grad
    assert (guided - sample(exact, x, uniform_grid(40), heun(), y=1)).norm(dim=1).median() < 0.02


# ---- the tilt --------------------------------------------------------------------------------------------------------

def test_tilt_is_bayes():
    x = normal(50, 2)
    for w in (-1.0, 0.0, 0.3, 1.0, 4.0):
        expected = MIXTURE.log_prob(x) + w * (MIXTURE.label_probs(x)[:, 1] / 0.32).log()
        near = MIXTURE.label_probs(x)[:, 1] > 1e-12
        torch.testing.assert_close(tilted_log_prob(MIXTURE, 1, w)(x)[near], expected[near], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(tilted_log_prob(MIXTURE, 2, 1.0)(x), MIXTURE.log_prob(x, 2))


@pytest.mark.parametrize("s, m", [(0.5, 1.0), (0.8, -0.6)])
def test_guided_gaussian_in_closed_form(s, m):
    "From N(0, 1) and N(m, s²) guidance makes a Gaussian of standard deviation s^w, and not the tilt's."
    class Both:
        schedule = Linear()

        def __call__(self, x, t, y=None):
            mean, std = (0.0, 1.0) if y is None else (m, s)
            return ExactDenoiser(
                GaussianMixture(torch.tensor([[mean]], dtype=torch.float64), [std]), self.schedule
            )(x, t)

    z = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    for w in (-1.0, 0.5, 2.0, 4.0):
        x = sample(classifier_free(Both(), w), z, uniform_grid(200), heun(), y=0)
        torch.testing.assert_close(x.diff(dim=0), torch.full((4, 1), s**w, dtype=torch.float64), rtol=2e-3, atol=1e-4)
        precision = 1 - w + w / s**2
        assert precision <= 0 or abs(precision**-0.5 - s**w) > 0.01


def test_guided_samples_are_the_tilt_at_one_and_not_at_three():
    lattice, n = grid(4.0, 161), 800

    def tilted(w, n, g):
        log_q = tilted_log_prob(MIXTURE, 1, w)(lattice)
        k = torch.multinomial((log_q - log_q.max()).exp(), n, replacement=True, generator=g)
        return lattice[k] + 0.05 * (torch.rand(n, 2, generator=g) - 0.5)

    x = torch.randn(n, 2, generator=rng(1))
    ends = {
        w: sample(
            classifier_free(ExactDenoiser(MIXTURE, Linear()), w), x, uniform_grid(30), heun(), y=1
        )
        for w in (1, 3)
    }
    floor = real_floor(energy_distance, partial(tilted, 3), n, 10).q99
    assert energy_distance(ends[1], tilted(1, n, rng(2))) < 1.5 * floor
    assert energy_distance(ends[3], tilted(3, n, rng(2))) > 50 * floor


# ---- bad input -------------------------------------------------------------------------------------------------------

def test_bad_input(model):
    x, exact = normal(7, 2), ExactDenoiser(MIXTURE, Linear())
    for m in (model, exact):
        for w in (1.0, 3.0):
            with pytest.raises(ValueError, match="without a label"): classifier_free(m, w)(x, 0.5)
            with pytest.raises(ValueError, match=r"y has shape \(5,\).*\(7,\)"):
                classifier_free(m, w)(x, 0.5, y=torch.zeros(5).long())
    for w in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="w is"): classifier_free(exact, w)
        with pytest.raises(ValueError, match="w is"):
            classifier_guided(exact, partial(logits, Linear()), w)
    for interval in ((0.6, 0.3), (-0.1, 1), (0, 2)):
        with pytest.raises(ValueError, match="interval"):
            classifier_free(exact, 2.0, interval=interval)
    with pytest.raises(ValueError, match="one time"):
        classifier_free(exact, 2.0, interval=(0, 0.5))(x, torch.full((7,), 0.3), y=1)
    with pytest.raises(ValueError, match="holds labels"): classifier_free(model, 2.0)(x, 0.5, y=9)
    guided = classifier_guided(exact, partial(logits, Linear()))
    with pytest.raises(ValueError, match="without a label"): guided(x, 0.5)
    with pytest.raises(ValueError, match="expected 0 to 2"): guided(x, 0.5, y=3)
    for wrong in (lambda x, t: x[:, 0], lambda x, t: x[:3]):
        with pytest.raises(ValueError, match=r"the classifier returned shape .*\(7, labels\)"):
            classifier_guided(exact, wrong)(x, 0.5, y=0)
