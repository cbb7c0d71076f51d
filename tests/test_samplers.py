"""Samplers: order, agreement with closed forms, samples of the mixture, calls counted, the ends, inversion, noise,
bad input."""

from functools import cache

import pytest
from helpers import normal, rng
import torch

from diffusion_course.distributions import GaussianMixture, running_mixture
from diffusion_course.metrics import energy_distance, real_floor
from diffusion_course.plots import slope
from diffusion_course.predictions import KINDS, Denoiser, EmpiricalDenoiser, ExactDenoiser, target_row
from diffusion_course.samplers import (
    BrownianPath, Recorder, adaptive, ancestral, ddim, dpmpp_2m, ending_with_data,
    ends_with_data, euler, euler_maruyama, handles_singular_ends, heun, karras_grid,
    log_snr_grid, midpoint, rk4, sample, trailing_grid, trajectory, uniform_grid, with_langevin,
)
from diffusion_course.schedules import (
    DDPM,
    Cosine,
    Linear,
    VarianceExploding,
    VariancePreserving,
    per_sample,
)


def cosine_betas(n: int) -> torch.Tensor:
    bar = torch.cos((torch.linspace(0, 1, n + 1, dtype=torch.float64) + 0.008) / 1.008 * torch.pi / 2) ** 2
    return (1 - bar[1:] / bar[:-1]).clamp(max=0.999)


SCHEDULES = {
    "linear": Linear(),
    "cosine": Cosine(),
    "VP": VariancePreserving(),
    "VE": VarianceExploding(0.01, 50.0),
    "DDPM, linear betas": DDPM(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)),
    "DDPM, cosine betas": DDPM(cosine_betas(1000)),
}
STEPPERS = {
    "euler": euler(),
    "midpoint": midpoint(),
    "heun": heun(),
    "rk4": rk4(),
    "euler_maruyama": euler_maruyama(1.0),
    "ddim": ddim(),
    "ddim(0.5)": ddim(0.5),
    "posterior": ancestral(),
    "beta": ancestral("beta"),
    "dpmpp_2m": dpmpp_2m(),
    "adaptive": adaptive(1e-3, 1e-3),
    "corrected": with_langevin(ddim(), 1, 0.05),
}
CALLS = {
    "euler": 1,
    "midpoint": 2,
    "heun": 2,
    "rk4": 4,
    "euler_maruyama": 1,
    "ddim": 1,
    "ddim(0.5)": 1,
    "posterior": 1,
    "beta": 1,
    "dpmpp_2m": 1,
}
MIXTURE, START = running_mixture(), 1  # START: the seed of the starting points
every = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
each = pytest.mark.parametrize("name", STEPPERS)


def exact_net(schedule, kind: str, sigma_data: float = 0.5):
    "A network that returns the exact mean of its target, and counts how often it is asked."
    model = ExactDenoiser(MIXTURE, schedule)

    def net(x, t):
        net.asked.append(t[0].item())
        p, (a, b) = model(x, t), target_row(kind, t, schedule, sigma_data)
        return per_sample(a, x) * p.x1 + per_sample(b, x) * p.eps
    net.asked = []
    return net


# ---- order -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(
    "name, order, wide",
    [
        ("euler", 1, 0.1),
        ("ddim", 1, 0.1),
        ("midpoint", 2, 0.15),
        ("heun", 2, 0.15),
        ("rk4", 4, 0.3),
        ("dpmpp_2m", 2, 0.3),
    ],
)
def test_order(name, order, wide):
    "On the exact model, t from 0.1 to 0.9, where no step touches an end."
    model, ns = ExactDenoiser(MIXTURE, Linear()), [32, 64, 128, 256]
    x = sample(model, normal(60, 2), [0.0, 0.1], adaptive(1e-9, 1e-9))
    truth = sample(model, x, [0.1, 0.9], adaptive(1e-9, 1e-9))
    errors = [
        (sample(model, x, uniform_grid(n, 0.1, 0.9), STEPPERS[name]) - truth).norm(dim=1).mean()
        for n in ns
    ]
    assert slope([1 / n for n in ns], errors) == pytest.approx(order, abs=wide)


@pytest.mark.parametrize("schedule", [Linear(), Cosine(), VariancePreserving()], ids=repr)
def test_order_of_dpmpp_2m_from_end_to_end(schedule):
    "A ratio grid, whose steps in log-SNR shrink together, keeps order 2 although the last step is of order 1."
    model, ns = ExactDenoiser(MIXTURE, schedule), [32, 64, 128, 256]
    begin = karras_grid(4, schedule)[0]
    x = schedule.sigma(begin) * normal(60, 2)
    truth = sample(model, x, [begin.item(), 1.0], adaptive(1e-9, 1e-9))
    errors = [
        (sample(model, x, karras_grid(n, schedule), dpmpp_2m()) - truth).norm(dim=1).mean()
        for n in ns
    ]
    assert slope([1 / n for n in ns], errors) == pytest.approx(2, abs=0.3)


# ---- agreement -------------------------------------------------------------------------------------------------------

def test_euler_is_ddim_on_the_linear_path():
    model, x = ExactDenoiser(MIXTURE, Linear()), normal(50, 2)
    a, b = (trajectory(model, x, uniform_grid(20), stepper).xs for stepper in (euler(), ddim()))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@every
@pytest.mark.parametrize("t, s", [(0.3, 0.6), (0.6, 0.3)])
def test_ddim_is_euler_in_the_ratio(schedule, t, s):
    model = ExactDenoiser(MIXTURE, schedule)
    p = model(schedule.sigma(t) * normal(50, 2), t)
    ratio = {a: schedule.sigma(a) / schedule.alpha(a) for a in (t, s)}
    expected = schedule.alpha(s) * (p.x / schedule.alpha(t) + (ratio[s] - ratio[t]) * p.eps)
    torch.testing.assert_close(
        trajectory(model, p.x, [t, s], ddim()).xs[1],
        expected,
        rtol=0,
        atol=1e-12 * max(1, p.x.abs().max().item()),
    )


def ancestral_move(schedule, t, s, x, z, variance):
    "From DDPM's formulas (Ho et al. 2020, eq. 7), for the increment beta of variance-preserving noise between t and s."
    p, bar_t, bar_s = ExactDenoiser(MIXTURE, schedule)(x, t), schedule.alpha(t) ** 2, schedule.alpha(s) ** 2
    beta = 1 - bar_t / bar_s
    mean = bar_s.sqrt() * beta / (1 - bar_t) * p.x1 + (1 - beta).sqrt() * (1 - bar_s) / (1 - bar_t) * x
    return mean + (beta if variance == "beta" else beta * (1 - bar_s) / (1 - bar_t)).sqrt() * z


@pytest.mark.parametrize("variance", ["posterior", "beta"])
@pytest.mark.parametrize(
    "schedule", [s for n, s in SCHEDULES.items() if n not in ("linear", "VE")], ids=repr
)
def test_ancestral_is_ddpm(schedule, variance):
    x, z = normal(50, 2), normal(50, 2, seed=1)
    ours = sample(ExactDenoiser(MIXTURE, schedule), x, [0.4, 0.5], ancestral(variance), noise=lambda *_: z)
    torch.testing.assert_close(ours, ancestral_move(schedule, 0.4, 0.5, x, z, variance))
    if variance == "posterior":
        assert torch.equal(
            ours,
            sample(ExactDenoiser(MIXTURE, schedule), x, [0.4, 0.5], ddim(1.0), noise=lambda *_: z),
        )


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@every
def test_ddim_keeps_the_variance_of_the_noise(schedule, eta):
    "Data in one point: x_s is exactly alpha x1 + sigma times a standard normal, whatever eta."
    point = ExactDenoiser(
        GaussianMixture(torch.tensor([[0.5, -1.0]], dtype=torch.float64), [1e-6]), schedule
    )
    x = schedule.mix(torch.tensor([[0.5, -1.0]]).double().expand(40_000, 2), normal(40_000, 2), 0.2)
    y = sample(point, x, [0.2, 0.5, 0.7], ddim(eta), generator=rng(1))
    noise = (y - schedule.alpha(0.7) * torch.tensor([0.5, -1.0])) / schedule.sigma(0.7)
    torch.testing.assert_close(noise.std(0), torch.ones(2).double(), rtol=0, atol=0.02)
    torch.testing.assert_close(noise.mean(0), torch.zeros(2).double(), rtol=0, atol=0.03)


def test_dpmpp_2m_by_hand():
    schedule = Cosine()
    model, (r, t, s) = ExactDenoiser(MIXTURE, schedule), (0.3, 0.45, 0.5)
    run = trajectory(model, normal(20, 2), [r, t, s], dpmpp_2m())
    lam = lambda t: (schedule.alpha(t) / schedule.sigma(t)).log()
    h, k = lam(s) - lam(t), (lam(t) - lam(r)) / (lam(s) - lam(t))
    before, now = model(run.xs[0], r), model(run.xs[1], t)
    D = (1 + 1 / (2 * k)) * now.x1 - 1 / (2 * k) * before.x1  # Lu et al. (2022b), algorithm 2
    torch.testing.assert_close(run.xs[1], schedule.alpha(t) * before.x1 + schedule.sigma(t) * before.eps)
    torch.testing.assert_close(
        run.xs[2],
        schedule.sigma(s) / schedule.sigma(t) * run.xs[1] - schedule.alpha(s) * torch.expm1(-h) * D,
    )


# ---- samples of the mixture ------------------------------------------------------------------------------------------

MIXTURES = {
    "running": MIXTURE,
    "two far hills": GaussianMixture([[-1.5, 0.0], [1.5, 0.5]], [0.2, 0.3], [0.3, 0.7]),
    "one wide, one narrow": GaussianMixture([[0.0, 0.0], [0.8, -0.8]], [1.0, 0.1], [0.6, 0.4]),
}


@cache
def references(name: str) -> tuple[float, torch.Tensor]:
    """The 99 % quantile for 4,000 points, and real samples.

    The quantile needs hundreds of draws, which are affordable with 1,000 points. Between samples of one distribution
    the energy distance falls as 1 / n (a test below holds this), so a quarter of theirs is that of 4,000."""
    return real_floor(energy_distance, MIXTURES[name].sample, 1000, 300).q99 / 4, MIXTURES[
        name
    ].sample(4000, rng(101))


@pytest.mark.slow
def test_the_floor_falls_with_the_number_of_points():
    few, many = (real_floor(energy_distance, MIXTURE.sample, n, 150) for n in (250, 1000))
    assert 3 < few.mean / many.mean < 5.4  # the mean of 150 draws is known to about a tenth


def grid_for(schedule, steps: int) -> torch.Tensor:
    "Even in t where sigma goes to 0 linearly. Elsewhere the last of the even steps would begin at far too much noise."
    return (
        uniform_grid(steps)
        if schedule in (SCHEDULES["linear"], SCHEDULES["cosine"])
        else karras_grid(steps, schedule)
    )


ENOUGH = {
    "midpoint": 40,
    "heun": 40,
    "rk4": 30,
    "dpmpp_2m": 50,
    "adaptive": 1,
    "posterior": 300,
    "beta": 400,
}  # steps; others: 100
# Both variances of ancestral sampling are wrong for a cloud, by errors of order 1: they need finer steps than others.
# Where noise falls by a factor of 5,000, so does Euler in t.
ENOUGH_VE = {"euler": 500}


@pytest.mark.slow
@pytest.mark.parametrize("mixture", MIXTURES)
@every
def test_every_stepper_samples_the_mixture(schedule, mixture):
    """Below the 99 % quantile of two real samples. An ODE keeps the luck of its starting points: those of this seed are
    themselves an ordinary draw (of a hundred seeds about one would fail for that reason alone)."""
    floor, real = references(mixture)
    model, start = ExactDenoiser(MIXTURES[mixture], schedule), torch.randn(4000, 2, generator=rng(START))
    for name, stepper in STEPPERS.items():
        steps = (ENOUGH | ENOUGH_VE if isinstance(schedule, VarianceExploding) else ENOUGH).get(name, 100)
        ts = grid_for(schedule, steps)
        x = sample(model, schedule.sigma(ts[0]) * start, ts, stepper, generator=rng(3))
        assert energy_distance(x, real) < floor, name


@pytest.mark.slow
def test_a_wrong_sampler_is_told_apart():
    """The measure of the test above sees too few steps, and noise that is 1.4 times too large (not 1.2 times: it is
    blunt)."""
    floor, real = references("running")
    model, start = ExactDenoiser(MIXTURE, Linear()), torch.randn(4000, 2, generator=rng(START))
    wide = lambda x, t, s: 1.4 * torch.randn(x.shape, generator=rng(round(1e6 * t)))
    assert energy_distance(sample(model, start, uniform_grid(4), euler()), real) > floor
    assert energy_distance(sample(model, start, uniform_grid(50), ancestral(), noise=wide), real) > floor


# ---- calls, and the ends ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", CALLS)
def test_calls_are_counted(name):
    c, n = CALLS[name], 6
    for kind, expected in (
        ("velocity", c * n),
        ("v", c * n),
        ("eps", c * (n - 1) + 1),
        ("x1", c * (n - 1) + 1),
        ("score", c * (n - 2) + 2),
    ):
        net = exact_net(Linear(), kind)
        run = trajectory(
            Denoiser(net, Linear(), kind),
            normal(5, 2),
            uniform_grid(n),
            STEPPERS[name],
            generator=rng(0),
        )
        assert run.nfe == expected == len(net.asked), kind
    ve = VarianceExploding()
    run = trajectory(
        ExactDenoiser(MIXTURE, ve),
        50 * normal(5, 2),
        uniform_grid(n),
        STEPPERS[name],
        generator=rng(0),
    )
    assert run.nfe == c * n + 1, "where the path ends with noise one more call names the data"
    assert (
        trajectory(
            Denoiser(exact_net(Linear(), "score"), Linear(), "score"),
            normal(5, 2),
            [0.0, 1.0],
            STEPPERS[name],
        ).nfe
        == 1
    )


def test_calls_of_a_corrector_and_of_a_guided_model():
    model = ExactDenoiser(MIXTURE, Linear())
    assert trajectory(model, normal(5, 2), uniform_grid(6), with_langevin(heun(), 3)).nfe == 6 * 2 + 5 * 3

    class Guided(ExactDenoiser):
        def cost(self, t): return 2 if t < 0.5 else 1
    assert trajectory(Guided(MIXTURE, Linear()), normal(5, 2), uniform_grid(8), euler()).nfe == 4 * 2 + 4


def test_trajectory_keeps_every_step():
    model, x, ts = ExactDenoiser(MIXTURE, Linear()), normal(5, 2), [0.0, 0.3, 0.8, 1.0]
    run = trajectory(model, x, ts, heun())
    assert (
        run.xs.shape == (4, 5, 2)
        and run.x1s.shape == (3, 5, 2)
        and torch.equal(run.ts, torch.tensor(ts, dtype=torch.float64))
    )
    assert torch.equal(run.xs[0], x) and torch.equal(run.xs[-1], sample(model, x, ts, heun()))
    for k in range(3): assert torch.equal(run.x1s[k], model(run.xs[k], ts[k]).x1)


def test_the_end_of_a_noisy_path_is_the_predicted_data():
    ve = VarianceExploding(0.5, 5.0)
    model, x = ExactDenoiser(MIXTURE, ve), 5 * normal(5, 2)
    before = sample(model, x, [0.0, 0.5, 1 - 1e-12], ddim())
    torch.testing.assert_close(sample(model, x, [0.0, 0.5, 1.0], ddim()), model(before, 1.0).x1)


@pytest.mark.parametrize("kind", KINDS)
@every
def test_nothing_is_asked_where_it_has_no_answer(schedule, kind):
    "Finite over the whole clock for every stepper, and close to the run of the exact model."
    for name, stepper in STEPPERS.items():
        if name == "adaptive" and (kind != "eps" or isinstance(schedule, DDPM)):
            continue  # its steps shrink at every knot
        net, n = exact_net(schedule, kind), 2 if name == "adaptive" else 6
        model, x = Denoiser(net, schedule, kind), schedule.sigma(0.0) * normal(20, 2)
        run = trajectory(model, x, uniform_grid(n), stepper, generator=rng(2))
        assert run.xs.isfinite().all() and run.x1s.isfinite().all(), name
        assert not any(model.singular(t) for t in net.asked), name
    x, ts = schedule.sigma(0.0) * normal(50, 2), uniform_grid(60)
    a, b = (sample(m, x, ts, ddim()) for m in (model, ExactDenoiser(MIXTURE, schedule)))
    assert (a - b).norm(dim=1).mean() < 0.03


def test_a_finite_data_set_is_given_back():
    data = MIXTURE.sample(40, rng(4)).double()
    for schedule in (Linear(), VariancePreserving()):
        x = sample(EmpiricalDenoiser(data, schedule), normal(50, 2), karras_grid(60, schedule), heun())
        assert torch.cdist(x, data).amin(1).max() < 1e-4


# ---- there and back --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("schedule", [Linear(), Cosine(), VariancePreserving()], ids=repr)
def test_inversion(schedule):
    "Data to noise and back with ddim: the way home is the way there, up to an error of order 1."
    model, x = ExactDenoiser(MIXTURE, schedule), MIXTURE.sample(100, rng(5)).double()
    errors = []
    for n in (100, 400):
        ts = uniform_grid(n)
        noise = sample(model, x, ts.flip(0), ddim())
        errors.append((sample(model, noise, ts, ddim()) - x).norm(dim=1).mean().item())
    assert errors[1] < 0.03 and errors[0] / errors[1] > 2.5
    assert 0.8 < noise.std() < 1.2


# ---- noise -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["euler_maruyama", "ddim(0.5)", "posterior", "beta", "corrected"])
def test_the_generator_decides(name):
    model, x, ts = ExactDenoiser(MIXTURE, Linear()), normal(9, 2), uniform_grid(7)
    a, b, c = (sample(model, x, ts, STEPPERS[name], generator=rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_no_gradient_is_recorded():
    x = normal(4, 2).requires_grad_()
    assert not sample(ExactDenoiser(MIXTURE, Linear()), x, uniform_grid(2), euler()).requires_grad


def test_brownian_path_refines():
    w = BrownianPath(normal(4, 2), n=64, seed=3)
    whole, halves = w(normal(4, 2), 0.25, 0.5), [w(normal(4, 2), 0.25, 0.375), w(normal(4, 2), 0.375, 0.5)]
    torch.testing.assert_close(whole, (halves[0] + halves[1]) / 2**0.5)
    many = BrownianPath(normal(20_000, 1), n=16)
    for t, s in ((0.0, 0.5), (0.25, 1.0)): assert many(many.w[0], t, s).std() == pytest.approx(1, abs=0.02)


def test_with_a_fixed_path_ancestral_sampling_settles():
    model, x, ns = (
        ExactDenoiser(MIXTURE, Linear()),
        torch.randn(200, 2, generator=rng(6)),
        [32, 64, 128, 256],
    )
    w = BrownianPath(x, n=256, seed=7)
    fixed = [sample(model, x, uniform_grid(n), ancestral(), noise=w) for n in ns]
    loose = [sample(model, x, uniform_grid(n), ancestral(), generator=rng(7)) for n in ns]
    change = lambda ends: [(b - a).norm(dim=1).mean().item() for a, b in zip(ends, ends[1:], strict=False)]
    assert change(fixed)[2] < change(fixed)[0] / 2 and change(fixed)[2] < 0.1
    assert min(change(loose)) > 0.5


def test_at_full_noise_ancestral_sampling_forgets_its_start():
    model, ts = ExactDenoiser(MIXTURE, Linear()), uniform_grid(5)
    a, b = (sample(model, normal(9, 2, seed=k), ts, ancestral(), generator=rng(1)) for k in (1, 2))
    torch.testing.assert_close(a, b)


# ---- grids -----------------------------------------------------------------------------------------------------------

@every
@pytest.mark.parametrize("grid", [karras_grid, log_snr_grid])
def test_ratio_grids(schedule, grid):
    for n in (1, 2, 7, 50):
        ts = grid(n, schedule)
        assert (
            ts.shape == (n + 1,)
            and ts.dtype == torch.float64
            and (ts.diff() > 0).all()
            and ts[0] >= 0
            and ts[-1] == 1
        )
        assert ts[-2] <= schedule.t_range[1], "the model can be asked at every time but the last"
    ratio = (-schedule.log_snr(ts if schedule.sigma(1.0) > 0 else ts[:-1]) / 2).exp()
    steps = (ratio ** (1 / 7) if grid is karras_grid else ratio.log()).diff()
    torch.testing.assert_close(steps, steps.mean().expand_as(steps), rtol=2e-3, atol=0)
    assert ratio[0] == pytest.approx(min(80, (-schedule.log_snr(0.0) / 2).exp().item()), rel=1e-6)


def test_karras_grid_is_that_of_the_paper():
    "Karras et al. (2022), eq. 5, where sigma is the ratio and the path begins at 80."
    ve = VarianceExploding(0.002, 80.0)
    w = torch.linspace(0, 1, 11, dtype=torch.float64)
    torch.testing.assert_close(
        ve.sigma(karras_grid(10, ve)), (80 ** (1 / 7) + w * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    )


def test_uniform_and_trailing_grids():
    assert torch.equal(uniform_grid(4), torch.tensor([0, 0.25, 0.5, 0.75, 1]).double())
    ddpm = DDPM(torch.linspace(1e-4, 0.02, 1000))
    ts = trailing_grid(10, ddpm)
    assert ddpm.index_of(ts).tolist() == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99, -1]
    assert len(trailing_grid(1000, ddpm)) == 1001 and (trailing_grid(7, ddpm).diff() > 0).all()


# ---- bad input -------------------------------------------------------------------------------------------------------

def test_bad_input():
    model, x = ExactDenoiser(MIXTURE, Linear()), normal(4, 2)
    with pytest.raises(ValueError, match="without a schedule"):
        sample(lambda x, t: x, x, uniform_grid(2), euler())
    with pytest.raises(ValueError, match="without a schedule"): Recorder(None)
    for ts in ([0.5], [0.0, 2.0], [0.0, 0.6, 0.5], ["noise", "data"], None, 0.5):
        with pytest.raises(ValueError, match="ts"): sample(model, x, ts, euler())
    with pytest.raises(ValueError, match="x"):
        sample(model, torch.full((2, 2), torch.nan), uniform_grid(2), euler())
    with pytest.raises(ValueError, match="noise has shape"):
        sample(model, x, uniform_grid(2), ddim(1.0), noise=lambda *_: x[:1])
    with pytest.raises(ValueError, match="the step returned"):
        sample(model, x, uniform_grid(2), lambda model, x, t, s: x[:2])
    for eta in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="eta"): ddim(eta)
    for stepper in (ddim(0.5), ancestral(), ancestral("beta")):
        with pytest.raises(ValueError, match="s > t"): sample(model, x, [0.6, 0.4], stepper)
    with pytest.raises(ValueError, match="'gamma'.*'posterior' or 'beta'"): ancestral("gamma")
    for bad in (dict(rtol=0.0), dict(atol=-1.0)):
        with pytest.raises(ValueError, match="tol"): adaptive(**bad)
    with pytest.raises(ValueError, match="churn"):
        sample(model, x, uniform_grid(3), euler_maruyama(-1.0))
    with pytest.raises(ValueError, match="step"):
        sample(model, x, uniform_grid(3), with_langevin(euler(), 1, 2.0))
    with pytest.raises(ValueError, match="1/8 or more"): BrownianPath(x, n=8)(x, 0.5, 0.51)
    for grid in (
        uniform_grid,
        lambda n: karras_grid(n, Linear()),
        lambda n: log_snr_grid(n, Linear()),
        lambda n: trailing_grid(n, SCHEDULES["DDPM, linear betas"]),
    ):
        for n in (0, -3, 2.5):
            with pytest.raises(ValueError, match="n is"): grid(n)
    with pytest.raises(ValueError, match="at most 1000"):
        trailing_grid(1001, SCHEDULES["DDPM, linear betas"])
    with pytest.raises(ValueError, match="DDPM"): trailing_grid(4, Linear())
    with pytest.raises(ValueError, match="rho"): karras_grid(4, Linear(), rho=0.0)
    for limits in (dict(ratio_min=0.0), dict(ratio_min=2.0, ratio_max=1.0)):
        with pytest.raises(ValueError, match="ratio_min"): log_snr_grid(4, Linear(), **limits)
    with pytest.raises(ValueError, match="ratios"):
        karras_grid(4, VarianceExploding(1.0, 5.0), ratio_max=0.5)


# ---- what readers of the code stumbled over -----------------------------------------------------

def test_a_recorder_that_walks_again_remembers_nothing():
    model = ExactDenoiser(running_mixture(), Linear())
    x, ts = torch.randn(5, 2, generator=rng(1)), uniform_grid(6)
    recorder = Recorder(model)
    first = [*recorder.walk(dpmpp_2m(), x, ts)][-1]
    assert torch.equal([*recorder.walk(dpmpp_2m(), x, ts)][-1], first)


def test_a_corrected_stepper_keeps_both_marks_of_its_predictor():
    for stepper in (euler(), adaptive(), euler_maruyama()):
        corrected = with_langevin(stepper)
        assert handles_singular_ends(corrected) == handles_singular_ends(stepper)
        assert ends_with_data(corrected) == ends_with_data(stepper)
    marked = ending_with_data(lambda model, x, t, s: model(x, t).x1)
    model = ExactDenoiser(running_mixture(), VarianceExploding())
    x = 50 * torch.randn(5, 2, generator=rng(1))
    run = trajectory(model, x, uniform_grid(3), with_langevin(marked), generator=rng(2))
    assert run.nfe == 3 + 2, "the last step returns data: no corrector, no call after it"


@pytest.mark.parametrize("start, stop", [(3, 0), (0, 1.5), (-0.1, 1), (0, float("nan"))])
def test_uniform_grid_stays_within_the_path(start, stop):
    with pytest.raises(ValueError, match=r"(start|stop) is .*: expected a time in \[0, 1\]"):
        uniform_grid(2, start, stop)


def test_models_that_are_none_are_named():
    def bare(x, t): return x
    bare.schedule = Linear()
    with pytest.raises(ValueError, match="the model returned a Tensor: expected a Prediction"):
        sample(bare, torch.randn(3, 2), uniform_grid(2), euler())
    bare.schedule = "linear"
    with pytest.raises(ValueError, match="whose schedule is 'linear'"):
        sample(bare, torch.randn(3, 2), uniform_grid(2), euler())
