"""Couplings: exact pairing within and across labels, its loss, pairs made by a flow, and path energy against closed
forms."""

from functools import partial
from itertools import permutations

import pytest
from helpers import normal, rng
import torch

from diffusion_course.couplings import ot_matching_loss, pair, path_energy, reflow_pairs
from diffusion_course.distributions import GaussianMixture, running_mixture
from diffusion_course.matching import MLP, fit, matching_loss
from diffusion_course.metrics import wasserstein2
from diffusion_course.predictions import Denoiser, ExactDenoiser
from diffusion_course.samplers import euler, heun, sample, uniform_grid
from diffusion_course.schedules import Linear

EXACT = ExactDenoiser(running_mixture(), Linear())


def cost(x0, x1) -> float: return (x1 - x0).square().flatten(1).sum(1).mean().item()


def rows(x) -> list: return sorted(map(tuple, x.flatten(1).tolist()))


class Field(torch.nn.Module):
    "A model on the linear path with a velocity given as a function of x and t."

    def __init__(self, velocity):
        super().__init__()
        self.schedule, self.model = Linear(), Denoiser(lambda x, t, **cond: velocity(x, t[:, None], **cond), Linear())

    def forward(self, x, t, **cond): return self.model(x, t, **cond)


# ---- pair ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shape", [(2,), (1, 2, 2)])
def test_pair_is_the_best_of_all_permutations(seed, shape):
    x0, x1 = normal(6, *shape, seed=seed), 2 * normal(6, *shape, seed=seed + 50)
    paired = pair(x0, x1)
    assert rows(paired) == rows(x0), "a rearrangement of x0"
    assert cost(paired, x1) == pytest.approx(min(cost(x0[list(p)], x1) for p in permutations(range(6))))


def test_pair_in_one_dimension_is_sorting():
    x0, x1 = normal(40, 1), normal(40, 1, seed=1)
    assert torch.equal(pair(x0, x1), x0.sort(0).values[x1[:, 0].argsort().argsort()])


def test_no_exchange_saves_after_pairing():
    x0, x1 = normal(100, 2), running_mixture().sample(100, rng(1)).double()
    gain = lambda a: ((a[:, None] - a) * (x1[:, None] - x1)).sum(-1).min()
    assert gain(pair(x0, x1)) >= 0 > gain(x0)


def test_pair_within_labels_mixes_none_and_is_optimal_in_each():
    x0, x1, y = normal(60, 2), normal(60, 2, seed=1), torch.arange(60) % 3
    paired = pair(x0, x1, y)
    for k in range(3):
        assert rows(paired[y == k]) == rows(x0[y == k])
        assert torch.equal(paired[y == k], pair(x0[y == k], x1[y == k]))
    assert cost(pair(x0, x1), x1) < cost(paired, x1) < cost(x0, x1)
    assert torch.equal(pair(x0, x1, torch.arange(60)), x0), "nobody to exchange with"
    assert torch.equal(pair(x0, x1, torch.zeros(60)), pair(x0, x1))


def test_pair_leaves_its_inputs_alone():
    x0, x1, y = normal(20, 2), normal(20, 2, seed=1), torch.arange(20) % 2
    before = x0.clone(), x1.clone()
    pair(x0, x1, y)
    assert torch.equal(x0, before[0]) and torch.equal(x1, before[1])
    assert pair(x0.float(), x1.float()).dtype == torch.float32


@pytest.mark.parametrize("x0, x1, labels, message", [
    (normal(5, 2), normal(6, 2), None, r"x0 has shape \(5, 2\) and x1 \(6, 2\): expected the same"),
    (normal(5), normal(5), None, r"\(5,\).*expected the same, \(B, \.\.\.\)"),
    (normal(5, 2), normal(5, 2), torch.zeros(4), r"labels has shape \(4,\): expected \(5,\)"),
    (normal(5, 2) * torch.nan, normal(5, 2), None, "x0 holds NaN or infinity: expected finite"),
    (normal(5, 2), normal(5, 2) * torch.inf, None, "x1 holds NaN or infinity: expected finite"),
])
def test_pair_refuses(x0, x1, labels, message):
    with pytest.raises(ValueError, match=message): pair(x0, x1, labels)


# ---- the loss --------------------------------------------------------------------------------------------------------

def test_ot_loss_is_the_matching_loss_on_paired_noise():
    x1, t = normal(32, 2), torch.linspace(0.01, 0.99, 32, dtype=torch.float64)
    x0 = torch.randn(32, 2, generator=rng(3), dtype=torch.float64)
    expected = matching_loss(EXACT, x1, x0=pair(x0, x1), t=t)
    torch.testing.assert_close(ot_matching_loss(EXACT, x1, t=t, generator=rng(3)), expected)
    assert not torch.isclose(matching_loss(EXACT, x1, x0=x0, t=t), expected)


def test_ot_loss_pairs_within_labels_and_hands_them_on():
    x1, y = running_mixture().sample_labelled(64, rng(0))
    t, x0 = torch.linspace(0.01, 0.99, 64), torch.randn(64, 2, generator=rng(4))
    expected = matching_loss(EXACT, x1, x0=pair(x0, x1, y), t=t, y=y)
    torch.testing.assert_close(ot_matching_loss(EXACT, x1, y=y, t=t, generator=rng(4)), expected)


def test_ot_loss_refuses_noise_of_its_own():
    with pytest.raises(ValueError, match="x0 is given: expected data alone"):
        ot_matching_loss(EXACT, normal(4, 2), x0=normal(4, 2))


@pytest.mark.slow
def test_ot_training_is_straighter_and_needs_one_step():
    data, x0 = running_mixture().sample(5000, rng(0)), torch.randn(500, 2, generator=rng(1))
    learn = partial(fit, steps=300, batch_size=128, progress=False)
    plain = learn(Denoiser(MLP(width=64), Linear()), data)
    paired = learn(Denoiser(MLP(width=64), Linear()), data, loss=ot_matching_loss)
    assert paired.loss[-50:].mean() < 0.2 * plain.loss[-50:].mean(), "the floor of the loss is what meeting lines lose"
    assert path_energy(paired.model, x0, 20) < 0.5 * path_energy(plain.model, x0, 20)
    one = [wasserstein2(sample(h.model, x0, uniform_grid(1), euler()), data[:500]) for h in (plain, paired)]
    assert one[1] < one[0] / 2


# ---- reflow ----------------------------------------------------------------------------------------------------------

def test_reflow_pairs_are_samples_in_any_batches():
    x0 = normal(25, 2)
    whole = sample(EXACT, x0, uniform_grid(10), heun())
    for size in (7, 25, 1000):
        same, x1 = reflow_pairs(EXACT, x0, steps=10, batch_size=size)
        assert torch.equal(same, x0)
        torch.testing.assert_close(x1, whole)
    torch.testing.assert_close(reflow_pairs(EXACT, x0, 4, euler())[1], sample(EXACT, x0, uniform_grid(4), euler()))


def test_reflow_pairs_cut_labels_along():
    x0, y = normal(10, 2), torch.arange(10) % 3
    expected = sample(EXACT, x0, uniform_grid(6), heun(), y=y)
    torch.testing.assert_close(reflow_pairs(EXACT, x0, 6, batch_size=4, y=y)[1], expected)
    everywhere = sample(EXACT, x0, uniform_grid(6), heun(), y=torch.full((10,), 2))
    torch.testing.assert_close(reflow_pairs(EXACT, x0, 6, batch_size=4, y=2)[1], everywhere)


@pytest.mark.parametrize("arguments, message", [
    (dict(x0=normal(5)), r"x0 has shape \(5,\): expected \(n, \.\.\.\)"),
    (dict(x0=normal(5, 2)[:0]), r"x0 has shape \(0, 2\)"),
    (dict(x0=normal(5, 2), batch_size=0), "batch_size is 0: expected a whole number, 1 or more"),
    (dict(x0=normal(5, 2), y=torch.zeros(4, dtype=torch.long)), r"y has shape \(4,\): expected \(5, \.\.\.\)"),
    (dict(x0=normal(5, 2), steps=0), "n is 0"),
])
def test_reflow_pairs_refuses(arguments, message):
    with pytest.raises(ValueError, match=message): reflow_pairs(EXACT, **arguments)


def test_reflow_never_raises_the_cost():
    x0 = normal(2000, 2)
    before = cost(x0, running_mixture().sample(2000, rng(1)).double())
    energy, after = path_energy(EXACT, x0), cost(*reflow_pairs(EXACT, x0, 50))
    assert before > energy > after >= wasserstein2(x0[:1000], reflow_pairs(EXACT, x0[:1000], 50)[1]) ** 2 * 0.9


# ---- path energy -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("steps", [1, 7, 50])
def test_path_energy_of_a_translation(steps):
    move = torch.tensor([0.6, -1.1], dtype=torch.float64)
    assert path_energy(Field(lambda x, t: move.expand_as(x)), normal(9, 2), steps) == pytest.approx(
        move.square().sum().item()
    )


def test_path_energy_of_an_uneven_pace():
    "Velocity 2 t c covers the distance |c| with energy 4/3 |c|²: more than the even pace."
    c = torch.tensor([0.5, 1.0], dtype=torch.float64)
    energy = path_energy(Field(lambda x, t: 2 * t * c), normal(5, 2), 400)
    assert energy == pytest.approx(4 / 3 * c.square().sum().item(), rel=1e-4)


def test_path_energy_of_a_scaling_is_w2_squared():
    "The straight flow x0 -> s x0 has the velocity (s - 1) x0, x0 = x / (1 + (s - 1) t)."
    s, x0 = 0.3, normal(400, 2)
    energy = path_energy(Field(lambda x, t: (s - 1) * x / (1 + (s - 1) * t)), x0, 100)
    assert energy == pytest.approx((s - 1) ** 2 * x0.square().sum(1).mean().item(), rel=1e-3)
    assert energy == pytest.approx(wasserstein2(x0, s * x0) ** 2, rel=1e-3)


def test_path_energy_of_two_gaussians_in_closed_form():
    """Independent N(0, 1) and N(0, s²): x_t = x0 sqrt(v), v = (1 - t)² + t² s²; the energy is the integral of v'² /
    (4 v)."""
    s, t = 0.5, (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    v = (1 - t) ** 2 + t**2 * s**2
    integral = ((t * s**2 - (1 - t)) ** 2 / v).mean().item()
    model, x0 = ExactDenoiser(GaussianMixture(torch.zeros(1, 2, dtype=torch.float64), [s]), Linear()), normal(300, 2)
    mean_square = x0.square().sum(1).mean().item()
    assert path_energy(model, x0, 200) == pytest.approx(integral * mean_square, rel=1e-3)
    assert integral > (1 - s) ** 2, "more than W2², as an even pace is cheaper"


def test_path_energy_is_at_least_w2_squared_of_its_ends():
    x0 = normal(300, 2)
    for steps, stepper in ((1, euler()), (5, euler()), (30, None)):
        end = sample(EXACT, x0, uniform_grid(steps), stepper or heun())
        assert path_energy(EXACT, x0, steps, stepper) >= wasserstein2(x0, end) ** 2 * (1 - 1e-9)


def test_path_energy_takes_conditions_and_pictures():
    shifted = Field(lambda x, t, y=0.0: torch.full_like(x, y))
    assert path_energy(shifted, normal(4, 2), 3, y=2.0) == pytest.approx(8.0)
    one = Denoiser(lambda x, t: torch.ones_like(x), Linear())
    assert path_energy(one, normal(4, 3, 2, 2), 3) == pytest.approx(12.0)
    with pytest.raises(ValueError, match="n is 0"): path_energy(one, normal(4, 2), 0)
