"""Flow matching: the loss and its floor, training, reproducibility, labels; bad input."""

import math

import pytest
import torch

from diffusion_course.distributions import GaussianMixture, running_mixture
from diffusion_course.matching import MLP, fit, matching_loss
from diffusion_course.predictions import KINDS, Denoiser, ExactDenoiser, target_row
from diffusion_course.schedules import DDPM, Cosine, Linear, VarianceExploding, VariancePreserving

SCHEDULES = [
    Linear(),
    Cosine(),
    VariancePreserving(),
    VarianceExploding(0.05, 5.0),
    DDPM(torch.linspace(1e-4, 0.02, 1000)),
]
rng = lambda seed=0: torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_loss_is_the_mean_square_distance_from_the_target(schedule, kind):
    x1, x0, t = (
        torch.randn(64, 2, generator=rng()).double(),
        torch.randn(64, 2, generator=rng(1)).double(),
        0.1 + 0.8 * torch.rand(64, generator=rng(2)).double(),
    )
    net = lambda x, t: torch.sin(x) * t[:, None]
    a, b = (c[:, None] for c in target_row(kind, t, schedule))
    expected = (net(schedule.mix(x1, x0, t), t) - a * x1 - b * x0).square()
    model = Denoiser(net, schedule, kind)
    assert matching_loss(model, x1, x0=x0, t=t) == pytest.approx(expected.mean().item(), rel=1e-9)
    weighted = matching_loss(model, x1, x0=x0, t=t, weight=lambda t: t**2)
    assert weighted == pytest.approx((expected.mean(1) * t**2).mean().item(), rel=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_loss_is_finite_over_all_training_times(schedule):
    for kind in ("velocity", "eps", "x1", "v", "F"):
        assert matching_loss(
            Denoiser(MLP(), schedule, kind), running_mixture().sample(4096, rng()), generator=rng()
        ).isfinite()


def test_the_exact_model_has_the_least_loss_and_its_excess_is_the_distance_from_it():
    "L(model) - L(exact) = E|u_model - u_exact|², the identity that flow matching rests on."
    mixture, exact = running_mixture(), ExactDenoiser(running_mixture(), Linear())
    x1, x0, t = (
        mixture.sample(200_000, rng()),
        torch.randn(200_000, 2, generator=rng(1)),
        torch.rand(200_000, generator=rng(2)),
    )

    class Off:
        schedule, kind = Linear(), "velocity"

        def __call__(self, x, t):
            p = exact(x, t)
            return type(p)(p.x, p.t, p.schedule, p.x1 + 0.3 * torch.cos(3 * p.x), p.eps)

    x = Linear().mix(x1, x0, t)
    distance = (Off()(x, t).velocity - exact(x, t).velocity).square().mean()
    excess = matching_loss(Off(), x1, x0=x0, t=t) - matching_loss(exact, x1, x0=x0, t=t)
    assert excess == pytest.approx(distance.item(), rel=0.05) and excess > 0


def test_times_of_a_batch_are_spread_evenly():
    seen = []
    matching_loss(
        Denoiser(lambda x, t: seen.append(t) or 0 * x, VariancePreserving()),
        torch.zeros(1000, 2),
        generator=rng(),
    )
    lo, hi = VariancePreserving().t_range
    assert lo <= seen[0].min() and seen[0].max() <= hi
    assert (torch.histc(seen[0], 100, lo, hi) - 10).abs().max() <= 1


def test_training_is_reproducible_and_touches_no_global_seed():
    data, before = running_mixture().sample(500, rng()), torch.get_rng_state()
    a, b, c = (fit(Denoiser(MLP(seed=s), Linear()), data, 30, seed=s, progress=False) for s in (0, 0, 1))
    assert torch.equal(a.loss, b.loss) and not torch.equal(a.loss, c.loss) and len(a.loss) == 30
    assert torch.equal(before, torch.get_rng_state()), "the global seed was touched"


def test_training_approaches_the_exact_field():
    mixture = GaussianMixture([[-1.0, 0.0], [1.0, 0.5]], [0.4, 0.3])
    model = Denoiser(MLP(width=64), Linear())
    history = fit(model, mixture.sample(5000, rng()), 600, progress=False)
    x1 = mixture.sample(20_000, rng(1))
    loss = lambda m: matching_loss(m, x1, generator=rng(2)).item()
    floor = loss(ExactDenoiser(mixture, Linear()))
    assert 0 < loss(history.model) - floor < 0.03 * floor, "the trained network is more than 3 % above the floor"
    assert loss(Denoiser(MLP(width=64), Linear())) > 1.2 * floor, "an untrained network passes as well"


def test_pairs_and_labels_reach_the_model():
    x0, x1, y = torch.randn(100, 2, generator=rng()), torch.randn(100, 2, generator=rng(1)), torch.arange(100) % 3
    seen = []

    class Net(MLP):
        def forward(self, x, t, y=None):
            seen.append(y)
            return super().forward(x, t, y)

    fit(Denoiser(Net(n_labels=3), Linear()), (x0, x1), 40, labels=y, drop=0.25, progress=False)
    share = torch.cat(seen).eq(3).float().mean()
    assert 0.2 < share < 0.3 and set(torch.cat(seen).unique().tolist()) == {0, 1, 2, 3}


def test_watch_sees_the_smoothed_model():
    steps = []
    fit(
        Denoiser(MLP(), Linear()),
        torch.zeros(10, 2),
        50,
        progress=False,
        watch=lambda k, m: steps.append((k, m(torch.zeros(3, 2), 0.5).velocity.shape)),
    )
    assert [k for k, _ in steps] == list(range(2, 51, 2)) and steps[0][1] == (3, 2)


def test_the_number_of_threads_is_given_back():
    before = torch.get_num_threads()
    with pytest.raises(ValueError):
        fit(Denoiser(MLP(dim=3), Linear()), torch.zeros(10, 2), 5, progress=False)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda m: fit(m, torch.zeros(0, 2)), "data is"),
        (lambda m: fit(m, torch.zeros(5)), "data is"),
        (lambda m: fit(m, [[0.0]]), "data is list"),
        (lambda m: fit(m, torch.full((5, 2), math.nan)), "data holds 10 values that are NaN"),
        (lambda m: fit(m, torch.zeros(5, 2), 0), "steps is 0"),
        (lambda m: fit(m, (torch.zeros(4, 2), torch.zeros(5, 2))), "x0 has shape"),
        (lambda m: fit(m, torch.zeros(5, 2), labels=torch.zeros(4).long()), "labels has shape"),
        (lambda m: matching_loss(m, torch.zeros(5, 2), x0=torch.zeros(4, 2)), "x0 has shape"),
        (lambda m: m.net(torch.zeros(5, 2), torch.zeros(5), torch.full((5,), 9)), "y holds labels"),
        (
            lambda m: matching_loss(m, torch.zeros(5, 2), t=torch.full((5,), 1.5)),
            r"expected times in \[0, 1\]",
        ),
    ],
)
def test_bad_input(call, said):
    with pytest.raises(ValueError, match=said): call(Denoiser(MLP(), Linear()))
