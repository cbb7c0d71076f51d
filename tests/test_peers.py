"""Oracles: what other libraries compute from the same numbers. `test_oracles.py` has diffusers' samplers.

torchdiffeq and torchsde come with the tests (extra `dev`). TorchCFM, azula, smalldiffusion, k-diffusion and
torch-fidelity ask for packages that nothing here needs, so they don't: `pip install --no-deps -r
benchmarks/requirements.txt` brings them, and without them their tests are skipped.
"""
from __future__ import annotations

import importlib
import sys
import types
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import ROOT
from helpers import normal, rng, uniform
from torch import Tensor

from diffusion_course.couplings import pair, reflow_pairs
from diffusion_course.ddpm import linear_betas
from diffusion_course.distributions import running_mixture
from diffusion_course.evaluation import frechet_distance, kernel_distance
from diffusion_course.few_step import FlowEnd
from diffusion_course.matching import MLP, matching_loss
from diffusion_course.predictions import Denoiser, ExactDenoiser
from diffusion_course.samplers import (
    adaptive, ancestral, ddim, dpmpp_2m, euler, heun, midpoint, rk4, sample, trailing_grid, uniform_grid,
)
from diffusion_course.schedules import DDPM, Cosine, Linear, VariancePreserving
from diffusion_course.sde import diffusion, drift, sde_step
from diffusion_course.solvers import em_step, integrate

sys.path.append(str(ROOT / "benchmarks"))
peers = importlib.import_module("peers")


def peer(name: str) -> types.ModuleType:
    """A peer's module, or the test is skipped."""
    try: return peers.load(name)
    except ImportError as e: pytest.skip(f"{name} isn't installed: {e}")


def close(a: Tensor, b: Tensor, relative: float) -> None:
    assert a.isfinite().all() and ((a - b).norm() / b.norm()).item() < relative


# ---- ordinary differential equations ---------------------------------------------------------------------------------

STEPPERS = {"euler": euler, "midpoint": midpoint, "heun2": heun}


def velocity(model: ExactDenoiser) -> Any: return lambda t, x: model(x, t.clamp(0, 1)).velocity


@pytest.mark.parametrize("method", STEPPERS)
@pytest.mark.parametrize("n", [7, 30])
def test_steps_are_those_of_torchdiffeq(method: str, n: int) -> None:
    """The same method on the same grid: equal but for rounding."""
    odeint, model, x = peer("torchdiffeq").odeint, ExactDenoiser(running_mixture(), Linear()), normal(64, 2)
    theirs = odeint(velocity(model), x, uniform_grid(n), method=method)[-1]
    close(sample(model, x, uniform_grid(n), STEPPERS[method]()), theirs, 1e-12)


def test_rk4_and_their_three_eighths_rule_converge_to_one_solution() -> None:
    """Two methods of order 4: with twice the steps their distance is sixteen times smaller, or nearly."""
    odeint, model, x = peer("torchdiffeq").odeint, ExactDenoiser(running_mixture(), Linear()), normal(64, 2)
    def apart(n: int) -> float:
        theirs = odeint(velocity(model), x, uniform_grid(n), method="rk4")[-1]
        return (sample(model, x, uniform_grid(n), rk4()) - theirs).norm().item()
    assert 0 < apart(80) < apart(40) / 10


@pytest.mark.parametrize("schedule", [Linear(), Cosine(), VariancePreserving()], ids=str)
def test_the_adaptive_solution_is_that_of_torchdiffeq(schedule: Any) -> None:
    """From inside the path, away from ends where a velocity may be infinite; both at 1e-9."""
    odeint, model, x = peer("torchdiffeq").odeint, ExactDenoiser(running_mixture(), schedule), normal(64, 2)
    ts = torch.tensor([0.05, 0.95], dtype=torch.float64)
    options = dict(step_t=ts[1:])
    theirs = odeint(velocity(model), x, ts, rtol=1e-9, atol=1e-9, method="dopri5", options=options)[-1]
    close(sample(model, x, ts, adaptive(1e-9, 1e-9)), theirs, 1e-6)


# ---- consistency and reflow ------------------------------------------------------------------------------------------

@pytest.mark.parametrize("t", [0.0, 0.3, 0.8])
def test_the_end_of_the_flow_is_the_integral(t: float) -> None:
    """f(x, t) is where torchdiffeq's dopri5 takes x; ours takes 50 steps of RK4."""
    odeint, model, x = peer("torchdiffeq").odeint, ExactDenoiser(running_mixture(), Linear()), normal(64, 2)
    ts = torch.tensor([t, 1.0], dtype=torch.float64)
    theirs = odeint(velocity(model), x, ts, rtol=1e-10, atol=1e-10, options=dict(step_t=ts[1:]))[-1]
    close(FlowEnd(model, 50, rk4())(x, t).x1, theirs, 1e-5)


def test_the_end_is_the_same_from_every_point_of_a_path() -> None:
    odeint, model = peer("torchdiffeq").odeint, ExactDenoiser(running_mixture(), Linear())
    ts = torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0], dtype=torch.float64)
    options = dict(step_t=ts[1:])
    path = odeint(velocity(model), normal(64, 2), ts, rtol=1e-10, atol=1e-10, options=options)
    for t, x in zip(ts[:-1].tolist(), path, strict=False): close(FlowEnd(model, 50, rk4())(x, t).x1, path[-1], 1e-5)


def test_reflow_pairs_are_the_ends_of_the_integral() -> None:
    """And the straight line between them has the mean velocity of the path."""
    odeint, model, x = peer("torchdiffeq").odeint, ExactDenoiser(running_mixture(), Linear()), normal(64, 2)
    ts = torch.tensor([0.0, 1.0], dtype=torch.float64)
    x0, x1 = reflow_pairs(model, x, steps=200, stepper=rk4())
    theirs = odeint(velocity(model), x, ts, rtol=1e-10, atol=1e-10, options=dict(step_t=ts[1:]))[-1]
    assert torch.equal(x0, x)
    close(x1, theirs, 1e-6)
    grid = uniform_grid(2000)
    path = torch.stack([*integrate(lambda x, t, s: x + (s - t) * model(x, t).velocity, x, grid)])
    mean = torch.stack([model(p, t).velocity for p, t in zip(path[:-1], grid, strict=False)]).mean(0)
    close(mean, x1 - x0, 2e-3)  # of 2,000 Euler steps


# ---- stochastic differential equations -------------------------------------------------------------------------------

class Itô(torch.nn.Module):
    """Our SDE of a churn, as torchsde asks for it, from t = 0 to 0.9 where nothing is singular."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, model: ExactDenoiser, churn: float):
        super().__init__()
        self.model, self.churn = model, churn

    def f(self, t: Tensor, x: Tensor) -> Tensor: return drift(self.model(x, t), self.churn)

    def g(self, t: Tensor, x: Tensor) -> Tensor:
        return diffusion(self.model.schedule, t, self.churn).to(x).expand_as(x)


@pytest.mark.parametrize("churn", [0.5, 1.0])
def test_euler_maruyama_is_torchsdes_on_the_same_motion(churn: float) -> None:
    torchsde, model, x = peer("torchsde"), ExactDenoiser(running_mixture(), Linear()), normal(64, 2)
    ts = torch.arange(57, dtype=torch.float64) / 64  # numbers that adding steps hits exactly
    motion = torchsde.BrownianInterval(0.0, 0.875, size=(64, 2), dtype=torch.float64, entropy=0)
    theirs = torchsde.sdeint(Itô(model, churn), x, ts, bm=motion, method="euler", dt=1 / 64)[-1]
    step = lambda x, t, s: sde_step(model, churn, x, t, s, noise=motion(t, s) / (s - t) ** 0.5)
    *_, ours = integrate(step, x, ts)
    close(ours, theirs, 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("churn", [0.5, 1.0])
def test_moments_are_those_of_torchsdes_srk(churn: float) -> None:
    """Another method, other noise: means and covariances within five standard errors of their difference."""
    torchsde, model, n = peer("torchsde"), ExactDenoiser(running_mixture(), Linear()), 4000
    ts = torch.linspace(0, 0.9, 91, dtype=torch.float64)
    torch.manual_seed(0)
    theirs = torchsde.sdeint(Itô(model, churn), normal(n, 2, seed=1), ts[[0, -1]], method="srk", dt=0.02)[-1]
    g = rng(2)
    *_, ours = integrate(lambda x, t, s: sde_step(model, churn, x, t, s, generator=g), normal(n, 2, seed=3), ts)
    for power in (lambda x: x, lambda x: torch.stack([x[:, 0] ** 2, x[:, 1] ** 2, x[:, 0] * x[:, 1]], 1)):
        a, b = power(ours), power(theirs)
        error = ((a.var(0) + b.var(0)) / n).sqrt()
        assert ((a.mean(0) - b.mean(0)).abs() < 5 * error).all()


def test_a_step_of_geometric_brownian_motion_is_torchsdes() -> None:
    """Noise that depends on x, where Itô and Stratonovich differ."""
    torchsde, x = peer("torchsde"), 1 + uniform(32, 1)
    motion = torchsde.BrownianInterval(0.0, 1.0, size=(32, 1), dtype=torch.float64, entropy=1)
    sde = SimpleNamespace(noise_type="diagonal", sde_type="ito", f=lambda t, x: 0.5 * x, g=lambda t, x: 0.8 * x)
    ts = torch.arange(17, dtype=torch.float64) / 16
    theirs = torchsde.sdeint(sde, x, ts, bm=motion, method="euler", dt=1 / 16)[-1]
    u, g = lambda x, t: 0.5 * x, lambda x, t: 0.8 * x
    *_, ours = integrate(lambda x, t, s: em_step(u, g, x, t, s, noise=motion(t, s) / (s - t) ** 0.5), x, ts)
    close(ours, theirs, 1e-12)


# ---- paths and couplings ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("matcher", "schedule"), [
    ("ConditionalFlowMatcher", Linear()), ("VariancePreservingConditionalFlowMatcher", Cosine()),
])
def test_paths_targets_and_loss_are_torchcfms(matcher: str, schedule: Any) -> None:
    """Ours at sigma = 0: x_t, the target, and the loss of one network, in double precision."""
    theirs = vars(peer("torchcfm.conditional_flow_matching"))[matcher](sigma=0.0)
    x0, x1, t = normal(64, 2, seed=1), normal(64, 2, seed=2), uniform(64, seed=3)
    _, xt, ut = theirs.sample_location_and_conditional_flow(x0, x1, t)
    close(schedule.mix(x1, x0, t), xt, 1e-6)  # theirs has pi as a number of single precision
    model = Denoiser(MLP(seed=4).double(), schedule)
    with torch.no_grad():
        model.net.last.weight.normal_(0, 0.1, generator=rng(5))
        loss = matching_loss(model, x1, t=t, x0=x0)
        assert loss.item() == pytest.approx((model.net(xt, t) - ut).square().mean().item(), rel=1e-6)


@pytest.mark.parametrize("n", [16, 200])
def test_pairs_are_torchcfms_exact_plan(n: int) -> None:
    """The plan of POT's network simplex is a permutation, and it is ours."""
    sampler = peer("torchcfm.optimal_transport").OTPlanSampler(method="exact")
    x0, x1 = normal(n, 2, seed=1), normal(n, 2, seed=2)
    plan = torch.as_tensor(sampler.get_map(x0, x1))
    i, j = (plan > 0.5 / n).nonzero(as_tuple=True)
    assert len(i) == n
    order = torch.empty(n, dtype=torch.long)
    order[j] = i
    assert torch.equal(pair(x0, x1), x0[order])


# ---- samplers --------------------------------------------------------------------------------------------------------

STEPS = [10, 50]


def discrete(steps: int) -> tuple[ExactDenoiser, Tensor, Tensor, Tensor]:
    """Exact model of DDPM's path, times, ratios sigma / alpha at these, and a start as x / alpha."""
    schedule = DDPM(linear_betas(1000))
    ts = trailing_grid(steps, schedule)
    ratios = schedule.sigma(ts) / schedule.alpha(ts)
    return ExactDenoiser(running_mixture(), schedule), ts, ratios, normal(64, 2) / schedule.alpha(0.0)


def estimate(model: ExactDenoiser, z: Tensor, ratio: Tensor) -> Tensor:
    """E[x1 | x / alpha = z] at a noise ratio: by the straight path, where it is at t = 1 / (1 + ratio)."""
    t = 1 / (1 + ratio.reshape(-1)[0].double())
    return ExactDenoiser(model.mixture, Linear())(z * t, t).x1


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(("stepper", "theirs"), [(ddim, "sample_euler"), (dpmpp_2m, "sample_dpmpp_2m")])
def test_samplers_are_k_diffusions(steps: int, stepper: Any, theirs: str) -> None:
    """In x / alpha over sigma / alpha DDIM is Euler's method, and DPM-Solver++(2M) is the same formula."""
    run = vars(peer("k_diffusion.sampling"))[theirs]
    model, ts, ratios, z = discrete(steps)
    other = run(lambda z, ratio: estimate(model, z, ratio), z, ratios, disable=True)
    close(sample(model, normal(64, 2), ts, stepper()), other, 1e-9)


@pytest.mark.parametrize("steps", STEPS)
def test_ddim_is_smalldiffusions(steps: int) -> None:
    small = peer("smalldiffusion")
    model, ts, ratios, z = discrete(steps)

    class Network(small.ModelMixin, torch.nn.Module):
        input_dims = (2,)

        def forward(self, z: Tensor, ratio: Tensor, cond: None = None) -> Tensor:
            return (z - estimate(model, z, ratio)) / ratio
    here = SimpleNamespace(device=torch.device("cpu"))
    *_, other = small.samples(Network(), ratios, xt=z, accelerator=here)
    close(sample(model, normal(64, 2), ts, ddim()), other, 1e-9)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(("stepper", "theirs"), [(ddim, "DDIMSampler"), (ancestral, "DDPMSampler")])
def test_samplers_are_azulas(steps: int, stepper: Any, theirs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On our schedule, which begins with a little of the data: its times run the other way."""
    sampling, denoise, noise = (peer(f"azula.{name}") for name in ("sample", "denoise", "noise"))
    model = ExactDenoiser(running_mixture(), DDPM(linear_betas(1000)))

    class Ours(noise.Schedule):
        def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
            return model.schedule.alpha(1 - t), model.schedule.sigma(1 - t)

    class Exact(denoise.Denoiser):
        schedule = Ours()

        def forward(self, x: Tensor, t: Tensor) -> Any: return denoise.DiracPosterior(model(x, 1 - t).x1)
    g = rng(1)
    drawn = [torch.randn(64, 2, generator=g, dtype=torch.float64) for _ in range(steps)]
    both = iter(drawn)
    monkeypatch.setattr(sampling.torch, "randn_like", lambda x: next(both))
    other = vars(sampling)[theirs](Exact(), steps=steps, silent=True, dtype=torch.float64)(normal(64, 2))
    ours = iter(drawn)
    x = sample(model, normal(64, 2), uniform_grid(steps), stepper(), noise=lambda x, t, s: next(ours))
    close(x, other, 1e-9)


# ---- scores ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("n", "m", "d"), [(500, 500, 8), (300, 800, 64)])
def test_the_arithmetic_of_fid_is_torch_fidelitys(n: int, m: int, d: int) -> None:
    """On the same features; theirs takes eigenvalues of a product that is not symmetric."""
    fid = peer("torch_fidelity.metric_fid")
    a, b = normal(n, d, seed=1) @ normal(d, d, seed=2), 0.3 + normal(m, d, seed=3) @ normal(d, d, seed=4)
    theirs = fid.fid_statistics_to_metric(*(fid.fid_features_to_statistics(x) for x in (a, b)), verbose=False)
    assert frechet_distance(a, b) == pytest.approx(theirs["frechet_inception_distance"], rel=1e-9)


def test_the_arithmetic_of_kid_is_torch_fidelitys() -> None:
    kid = peer("torch_fidelity.metric_kid")
    a, b = normal(400, 16, seed=1), 0.2 + normal(400, 16, seed=2)
    theirs = kid.kernel_mmd(a.numpy(), b.numpy())
    assert kernel_distance(a, b) == pytest.approx(float(theirs), rel=1e-9)
