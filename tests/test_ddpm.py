"""DDPM: the increments, the jump, the posterior, the loss at discrete times, both samplers, inversion; bad input."""

import pytest
from helpers import normal, rng
import torch

from diffusion_course.ddpm import (
    Posterior,
    cosine_betas,
    ddpm_loss,
    finish_noising,
    invert,
    linear_betas,
    posterior,
    q_sample,
)
from diffusion_course.distributions import GaussianMixture, running_mixture
from diffusion_course.matching import MLP, fit, matching_loss
from diffusion_course.predictions import Denoiser, ExactDenoiser, to_prediction
from diffusion_course.samplers import ancestral, ddim, euler_maruyama, heun, sample, trailing_grid, trajectory
from diffusion_course.schedules import DDPM, Linear, marginal

CHAINS = {
    "linear, 1000": linear_betas(1000),
    "linear, 50": linear_betas(50),
    "cosine": cosine_betas(1000),
    "cosine, 10": cosine_betas(10),
    "finished": finish_noising(linear_betas(50)),
}
every = pytest.mark.parametrize("betas", CHAINS.values(), ids=CHAINS)


def bars(betas: torch.Tensor) -> torch.Tensor: return (1 - betas).cumprod(0)


def some_indices(betas: torch.Tensor) -> list[int]:
    return sorted({0, 1, len(betas) // 3, len(betas) - 2, len(betas) - 1})


@every
def test_betas_are_increments(betas):
    assert betas.ndim == 1 and betas.dtype == torch.float64 and ((betas > 0) & (betas < 1)).all()
    assert (betas.diff() >= 0).all(), "noise is added ever faster"


def test_linear_betas():
    betas = linear_betas()
    assert len(betas) == 1000 and betas[0] == 1e-4 and betas[-1] == 0.02
    torch.testing.assert_close(betas.diff(), torch.full((999,), 0.0199 / 999, dtype=torch.float64))
    assert linear_betas(3, 0.1, 0.3).tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert linear_betas(1).tolist() == [1e-4]


@pytest.mark.parametrize("n, left", [(1000, 4.0358e-05), (100, 0.36356), (50, 0.60295)])
def test_what_linear_betas_leave_of_the_data(n, left):
    assert bars(linear_betas(n))[-1].item() == pytest.approx(left, rel=1e-4)


def test_cosine_betas():
    betas, u = cosine_betas(200, offset=0.01), torch.arange(1, 200, dtype=torch.float64) / 200
    f = lambda u: torch.cos((u + 0.01) / 1.01 * torch.pi / 2) ** 2
    torch.testing.assert_close(bars(betas)[:-1], f(u) / f(torch.zeros(1).double()))
    assert betas[-1] == 0.999 and cosine_betas(200, largest=0.5).max() == 0.5


@every
@pytest.mark.parametrize("alpha", [1e-3, 0.1])
def test_finish_noising_ends_where_it_is_told(betas, alpha):
    before, after = bars(betas).sqrt(), bars(finish_noising(betas, alpha)).sqrt()
    assert after[-1].item() == pytest.approx(alpha) and after[0].item() == pytest.approx(before[0].item())
    affine = (after - alpha) / (after[0] - alpha), (before - before[-1]) / (before[0] - before[-1])
    torch.testing.assert_close(*affine)
    DDPM(finish_noising(betas, alpha))


@every
def test_jump_is_the_chain(betas):
    "One increment after another, the factor of the data and the variance of the noise."
    schedule, factor, variance = DDPM(betas), torch.ones(()).double(), torch.zeros(()).double()
    x1, eps = normal(6, 2), normal(6, 2, seed=1)
    for i, beta in enumerate(betas):
        factor, variance = (1 - beta).sqrt() * factor, (1 - beta) * variance + beta
        if i in some_indices(betas):
            torch.testing.assert_close(
                q_sample(x1, i, schedule, eps=eps), factor * x1 + variance.sqrt() * eps
            )


def test_jump_draws_its_noise_and_takes_one_index_for_each_sample():
    schedule, x1, i = DDPM(linear_betas(100)), normal(4, 1, 3, 3).float(), torch.tensor([0, 30, 60, 99])
    a, b, c = (q_sample(x1, i, schedule, generator=rng(s)) for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c) and a.dtype == torch.float32
    eps = torch.randn(x1.shape, generator=rng(0))
    one_by_one = torch.cat([q_sample(x1[k:k + 1], i[k], schedule, eps=eps[k:k + 1]) for k in range(4)])
    torch.testing.assert_close(a, one_by_one)
    cloud = q_sample(torch.full((50_000, 1), 2.0).double(), 60, schedule, generator=rng(2))
    assert cloud.mean().item() == pytest.approx(2 * schedule.alpha(schedule.t_of(60)).item(), abs=0.01)
    assert cloud.std().item() == pytest.approx(schedule.sigma(schedule.t_of(60)).item(), rel=0.02)


@every
def test_posterior_is_the_product_of_two_gaussians(betas):
    schedule, x1, x = DDPM(betas), normal(5, 2), normal(5, 2, seed=1)
    for i in some_indices(betas)[1:]:
        beta, before = betas[i], bars(betas)[i - 1]
        here, there = (1 - beta) / beta, 1 / (1 - before)
        p = posterior(x1, x, i, schedule)
        assert isinstance(p, Posterior) and p.variance.shape == () and p.beta == beta
        torch.testing.assert_close(p.variance, 1 / (here + there), rtol=1e-6, atol=0)
        torch.testing.assert_close(
            p.mean,
            (here * x / (1 - beta).sqrt() + there * before.sqrt() * x1) / (here + there),
            rtol=1e-6,
            atol=1e-9,
        )
        assert 0 < p.variance < p.beta


@every
def test_posterior_mean_from_the_noise(betas):
    "Ho et al. (2020), eq. 11."
    schedule, x, eps = DDPM(betas), normal(5, 2), normal(5, 2, seed=1)
    for i in some_indices(betas):
        x1 = to_prediction(eps, "eps", x, schedule.t_of(i), schedule).x1
        expected = (x - betas[i] / (1 - bars(betas)[i]).sqrt() * eps) / (1 - betas[i]).sqrt()
        torch.testing.assert_close(
            posterior(x1, x, i, schedule).mean,
            expected,
            rtol=1e-6,
            atol=1e-6 * x1.abs().max().item(),
        )


@every
def test_the_first_index_is_not_clean_data(betas):
    schedule, x1, x = DDPM(betas), normal(5, 2), normal(5, 2, seed=1)
    p = posterior(x1, x, 0, schedule)
    torch.testing.assert_close(p.mean, x1)
    assert p.variance == 0 and p.beta == betas[0]
    assert not torch.equal(q_sample(x1, 0, schedule, eps=x), x1)


def test_posterior_takes_one_index_for_each_sample():
    schedule, x1, x, i = (
        DDPM(linear_betas(30)),
        normal(4, 1, 2, 2),
        normal(4, 1, 2, 2, seed=1),
        torch.tensor([0, 9, 28, 29]),
    )
    p = posterior(x1, x, i, schedule)
    each = [posterior(x1[k:k + 1], x[k:k + 1], i[k], schedule) for k in range(4)]
    torch.testing.assert_close(p.mean, torch.cat([q.mean for q in each]))
    torch.testing.assert_close(p.variance, torch.stack([q.variance for q in each]))
    assert p.mean.shape == x1.shape and p.variance.shape == p.beta.shape == (4,)


def test_posterior_undoes_the_jump():
    "A jump to i, then a draw from the posterior: a jump to i - 1."
    schedule, x1 = DDPM(linear_betas(20, 0.02, 0.3)), torch.full((100_000, 1), 1.5).double()
    p = posterior(x1, q_sample(x1, 12, schedule, generator=rng(0)), 12, schedule)
    back = p.mean + p.variance.sqrt() * normal(*x1.shape, seed=1)
    assert back.mean().item() == pytest.approx(1.5 * bars(schedule.betas)[11].sqrt().item(), abs=0.01)
    assert back.var().item() == pytest.approx(1 - bars(schedule.betas)[11].item(), rel=0.02)


# ---- training --------------------------------------------------------------------------------------------------------

def test_loss_is_the_simple_loss():
    schedule, x1 = DDPM(linear_betas(200)), normal(512, 2).float()
    net = lambda x, t: torch.sin(3 * x + t[:, None])
    g = rng(3)
    i, eps = torch.randint(200, (512,), generator=g), torch.randn(512, 2, generator=g)
    bar = bars(schedule.betas)[i, None].float()
    naive = (net(bar.sqrt() * x1 + (1 - bar).sqrt() * eps, 1 - (i + 1) / 200) - eps).square().mean()
    torch.testing.assert_close(
        ddpm_loss(Denoiser(net, schedule, "eps"), x1, generator=rng(3)), naive, rtol=1e-4, atol=0
    )


@pytest.mark.parametrize("kind", ["eps", "x1", "v"])
def test_loss_asks_at_the_discrete_times_alone(kind):
    schedule, seen = DDPM(linear_betas(7)), []

    def net(x, t, y=None):
        seen.append(t)
        return 0 * x + (0 if y is None else y)
    model, x1 = Denoiser(net, schedule, kind), normal(2000, 2)
    value = ddpm_loss(model, x1, generator=rng(0))
    times, counts = seen[0].unique(return_counts=True)
    torch.testing.assert_close(times, schedule.t_of(torch.arange(7)).sort().values)
    assert counts.min() > 200, "every index has the same chance"
    assert value.shape == () and ddpm_loss(model, x1, generator=rng(0)) == value
    assert ddpm_loss(model, x1, generator=rng(0), y=1.0) != value, "conditions are handed on"
    weighted = ddpm_loss(model, x1, generator=rng(0), weight=lambda t: 3 + 0 * t)
    torch.testing.assert_close(weighted, 3 * value)


def test_exact_noise_has_the_smallest_loss():
    schedule, mixture = DDPM(linear_betas(1000)), running_mixture()
    exact, x1 = ExactDenoiser(mixture, schedule), running_mixture().sample(4000, rng(1))
    at = lambda shift: ddpm_loss(
        Denoiser(lambda x, t: exact(x, t).eps + shift, schedule, "eps"), x1, generator=rng(2)
    ).item()
    assert at(0.0) < min(at(0.1), at(-0.1)) < at(0.2)


def test_fit_trains_with_it():
    schedule, data = DDPM(linear_betas(1000)), running_mixture().sample(5000, rng(0))
    model = fit(
        Denoiser(MLP(width=32), schedule, "eps"),
        data,
        150,
        loss=ddpm_loss,
        batch_size=128,
        progress=False,
    ).model
    with torch.no_grad(): assert ddpm_loss(model, data, generator=rng(1)) < 0.5


# ---- sampling --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("betas", [linear_betas(200), finish_noising(linear_betas(30))], ids=["200", "30, finished"])
@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_ancestral_is_the_algorithm_of_the_paper(betas, variance):
    schedule, T = DDPM(betas), len(betas)
    model, z = ExactDenoiser(running_mixture(), schedule), normal(T, 20, 2, seed=1)
    x = start = normal(20, 2)
    for i in range(T - 1, -1, -1):
        p = posterior(model(x, schedule.t_of(i)).x1, x, i, schedule)
        x = p.mean + (p.variance if variance == "posterior" else p.beta).sqrt() * z[i] * (i > 0)
    noise = lambda x, t, s: z[schedule.index_of(t)]
    ours = trajectory(model, start, trailing_grid(T, schedule), ancestral(variance), noise=noise)
    torch.testing.assert_close(ours.xs[-1], x, rtol=1e-7, atol=1e-7)
    assert ours.nfe == T


def test_an_index_too_far_is_seen():
    "The comparison above tells a loop that reads its tables one index off."
    schedule = DDPM(finish_noising(linear_betas(30)))
    model, x = ExactDenoiser(running_mixture(), schedule), normal(20, 2)
    right = sample(model, x, trailing_grid(30, schedule), ddim())
    for off in (1, -1):
        y = x
        for i in range(29, -1, -1):
            p = to_prediction(
                model(y, schedule.t_of(min(max(i + off, 0), 29))).eps,
                "eps",
                y,
                schedule.t_of(i),
                schedule,
            )
            s = schedule.t_of(i - 1)
            y = schedule.mix(p.x1, p.eps, s)
        assert (y - right).abs().max() > 0.01


@pytest.mark.parametrize("spread, variance", [(1.0, "beta"), (1e-3, "posterior")])
def test_each_variance_is_right_for_its_extreme(spread, variance):
    "Ho et al. (2020), section 3.2: in each coordinate the cloud keeps its spread, half-way too."
    schedule, blob = DDPM(finish_noising(linear_betas(10, 0.05, 0.4))), GaussianMixture(
        torch.zeros(1, 1).double(), [spread]
    )
    half = trailing_grid(10, schedule)[:6]
    start = marginal(blob, schedule, 0.0).sample(100_000, rng(0))
    ends = {
        v: sample(ExactDenoiser(blob, schedule), start, half, ancestral(v), generator=rng(1)).std()
        for v in ("posterior", "beta")
    }
    off = {v: abs(end / marginal(blob, schedule, half[-1].item()).stds[0] - 1).item() for v, end in ends.items()}
    assert off.pop(variance) < 0.01 < 0.04 < min(off.values())


# ---- inversion -------------------------------------------------------------------------------------------------------

def test_there_and_back():
    schedule = DDPM(linear_betas(1000))
    model, x1 = ExactDenoiser(running_mixture(), schedule), running_mixture().sample(100, rng(0))
    off = []
    for n in (20, 80, 320):
        ts = trailing_grid(n, schedule)
        back = sample(model, invert(model, x1, ts), ts, ddim())
        off.append((back - x1).square().sum(1).mean().sqrt().item())
    assert off[0] > 2 * off[1] > 4 * off[2] and off[2] < 0.05
    ts = trailing_grid(80, schedule)
    back = sample(model, invert(model, x1, ts, heun()), ts, heun())
    assert (back - x1).square().sum(1).mean().sqrt().item() < off[1]


def test_the_latent_of_a_gaussian_is_known():
    "One hill: the ODE is affine, and a point keeps its place in units of the spread."
    schedule, blob = DDPM(cosine_betas(500)), GaussianMixture(torch.tensor([[0.6, -0.4]]).double(), [0.5])
    x1 = blob.sample(50, rng(0))
    z = invert(ExactDenoiser(blob, schedule), x1, trailing_grid(500, schedule))
    torch.testing.assert_close(z, (x1 - blob.means) / 0.5, rtol=0, atol=0.05)


def test_inversion_hands_on_conditions_and_keeps_shape_and_type():
    schedule, mixture = DDPM(linear_betas(100)), running_mixture()
    model, ts = ExactDenoiser(mixture, schedule), trailing_grid(10, DDPM(linear_betas(100)))
    x1 = mixture.sample(30, rng(0))
    z = invert(model, x1, ts, y=1)
    assert z.shape == x1.shape and z.dtype == x1.dtype and z.isfinite().all()
    assert not torch.allclose(z, invert(model, x1, ts))
    assert torch.equal(invert(model, x1, ts.tolist()), invert(model, x1, ts)), "a list of times does as well"


# ---- bad input -------------------------------------------------------------------------------------------------------

def test_bad_betas():
    for bad in (0, -3, 2.5):
        for make in (linear_betas, cosine_betas):
            with pytest.raises(ValueError, match=f"n is {bad}: expected"): make(bad)
    for first, last in ((0.0, 0.02), (0.03, 0.02), (1e-4, 1.0)):
        with pytest.raises(ValueError, match="first is .*expected 0 < first <= last < 1"):
            linear_betas(10, first, last)
    for bad in (dict(offset=-0.1), dict(largest=0.0), dict(largest=1.0)):
        with pytest.raises(ValueError, match="offset is .*largest is .*expected"):
            cosine_betas(10, **bad)
    for alpha in (0.0, -1.0, 0.99996, float("nan")):
        with pytest.raises(ValueError, match="alpha is .*expected a number between 0 and"):
            finish_noising(linear_betas(10), alpha)
    with pytest.raises(ValueError, match="T >= 2"): finish_noising(linear_betas(1))
    with pytest.raises(ValueError, match="betas has shape"): finish_noising(torch.zeros(3))


@pytest.mark.parametrize(
    "i",
    [-1, 50, 1.0, torch.tensor([0, 1]), torch.tensor([0, 1, 50]), torch.tensor([[0, 1, 2]])],
    ids=str,
)
def test_bad_index(i):
    schedule, x = DDPM(linear_betas(50)), normal(3, 2)
    with pytest.raises(ValueError, match="i is .*expected one index from 0 to 49, or 3 of them"):
        q_sample(x, i, schedule)
    with pytest.raises(ValueError, match="i is .*expected one index from 0 to 49, or 3 of them"):
        posterior(x, x, i, schedule)


def test_bad_shapes_and_schedules():
    schedule, x = DDPM(linear_betas(50)), normal(3, 2)
    with pytest.raises(ValueError, match=r"eps has shape \(2,\): expected that of x1, \(3, 2\)"):
        q_sample(x, 4, schedule, eps=x[0])
    with pytest.raises(ValueError, match=r"x has shape \(1, 2\): expected that of x1, \(3, 2\)"):
        posterior(x, x[:1], 4, schedule)
    with pytest.raises(ValueError, match="Linear.*expected DDPM"):
        ddpm_loss(Denoiser(MLP(), Linear(), "eps"), x.float())
    assert matching_loss(
        Denoiser(MLP(), Linear(), "eps"), x.float(), t=torch.full((3,), 0.5)
    ).isfinite(), "which continuous time may use"


def test_bad_inversion():
    schedule, x = DDPM(linear_betas(50)), normal(3, 2)
    model, ts = ExactDenoiser(running_mixture(), schedule), trailing_grid(10, schedule)
    for bad in (ts.flip(0), ts[:1], torch.tensor([0.0, 0.5, 0.5, 1.0]), ts[None]):
        with pytest.raises(ValueError, match="rising times|monotonic times|two or more"):
            invert(model, x, bad)
    with pytest.raises(ValueError, match="expected"): invert(model, x, ts, ancestral())
    with pytest.raises(ValueError, match="draws noise"): invert(model, x, ts, euler_maruyama(1.0))
    for f in (lambda: q_sample(x, 0, Linear()), lambda: posterior(x, x, 0, Linear())):
        with pytest.raises(ValueError, match="expected DDPM"): f()
