"""Our samplers beside those of diffusers: the same network, the same noise, the same result."""
from __future__ import annotations

import contextlib
import io
import warnings

import pytest
import torch

from diffusion_course.ddpm import cosine_betas, linear_betas
from diffusion_course.distributions import running_mixture
from diffusion_course.matching import MLP
from diffusion_course.predictions import Denoiser, ExactDenoiser
from diffusion_course.samplers import ancestral, ddim, dpmpp_2m, euler, sample, trailing_grid, uniform_grid
from diffusion_course.schedules import DDPM, Linear, Schedule, per_sample

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    diffusers = pytest.importorskip("diffusers")

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

T, BETAS = 1000, {"linear": linear_betas(1000), "cosine": cosine_betas(1000)}


class Network(torch.nn.Module):
    """The exact answer and a random network's error on top: samples stay where data are, and nothing cancels by
    symmetry."""

    def __init__(self, schedule: Schedule, kind: str = "eps"):
        super().__init__()
        self.exact, self.kind, self.error = (
            ExactDenoiser(running_mixture(), schedule),
            kind,
            MLP(width=32, seed=3).double(),
        )
        with torch.no_grad(): self.error.last.weight.normal_(0, 0.1, generator=torch.Generator().manual_seed(4))
        self.requires_grad_(False)

    def forward(self, x, t):
        return getattr(self.exact(x, t), self.kind) + per_sample(
            self.exact.schedule.alpha(t), x
        ) * self.error(x, t)


def scheduler(name: str, betas: torch.Tensor, steps: int, **options):
    """A scheduler of diffusers that takes our betas in double precision and steps at the trailing times."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        s = getattr(diffusers, name)(
            num_train_timesteps=T,
            trained_betas=betas.tolist(),
            timestep_spacing="trailing",
            prediction_type="epsilon",
            **options
        )
    s.betas, s.alphas = betas, 1 - betas
    s.alphas_cumprod = s.alphas.cumprod(0)
    if hasattr(s, "final_alpha_cumprod"): s.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    s.set_timesteps(steps)
    return s


def start(n: int = 64) -> torch.Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Noises:
    """The same noise for both: the k-th step's."""

    def __init__(self): self.g = torch.Generator().manual_seed(1)
    def __call__(self, x, t, s): return torch.randn(x.shape, generator=self.g, dtype=x.dtype)


def theirs(s, x: torch.Tensor, net: Network, schedule: DDPM) -> torch.Tensor:
    for i in s.timesteps:
        t = schedule.t_of(i).expand(len(x))
        x = s.step(net(s.scale_model_input(x, i), t), i, x).prev_sample
    return x


def close(ours: torch.Tensor, other: torch.Tensor, relative: float) -> None:
    assert ours.isfinite().all() and 0.1 < ours.std() < 10
    assert ((ours - other).norm() / other.norm()).item() < relative


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("steps", [10, 50, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_is_that_of_diffusers(betas, steps, eta):
    net = Network(schedule := DDPM(BETAS[betas]))
    s = scheduler("DDIMScheduler", BETAS[betas], steps, clip_sample=False, set_alpha_to_one=True)
    noise, x = Noises(), start()
    for i in s.timesteps:
        y = net(x, schedule.t_of(i).expand(len(x)))
        last = i == s.timesteps[-1]  # ours draws no noise where none is added
        z = torch.zeros_like(x) if last and not eta else noise(x, 0, 0) if eta else None
        x = s.step(y, i, x, eta=eta, variance_noise=z).prev_sample
    ours = sample(Denoiser(net, schedule, "eps"), start(), trailing_grid(steps, schedule), ddim(eta), noise=Noises())
    close(ours, x, 1e-5)


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("steps", [10, 50, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_ddpm_is_that_of_diffusers(betas, steps, variance, monkeypatch):
    net = Network(schedule := DDPM(BETAS[betas]))
    s = scheduler(
        "DDPMScheduler",
        BETAS[betas],
        steps,
        clip_sample=False,
        variance_type={"posterior": "fixed_small", "beta": "fixed_large"}[variance],
    )
    s.one = torch.tensor(1.0, dtype=torch.float64)
    noise, calls = Noises(), iter(range(1, steps + 1))

    def drawn(shape, **_):
        # Theirs adds noise in the step into clean data too, unless that step is from index 0; ours never does.
        return noise(torch.empty(shape, dtype=torch.float64), 0, 0) if next(calls) < steps else torch.zeros(shape)
    from diffusers.schedulers import scheduling_ddpm
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", drawn)
    other = theirs(s, start(), net, schedule)
    ours = sample(
        Denoiser(net, schedule, "eps"),
        start(),
        trailing_grid(steps, schedule),
        ancestral(variance),
        noise=Noises(),
    )
    close(ours, other, 1e-5)


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("steps", [10, 50])
def test_dpm_solver_is_that_of_diffusers(betas, steps):
    net = Network(schedule := DDPM(BETAS[betas]))
    s = scheduler(
        "DPMSolverMultistepScheduler",
        BETAS[betas],
        steps,
        algorithm_type="dpmsolver++",
        solver_order=2,
        final_sigmas_type="zero",
        lower_order_final=True,
    )
    s.sigmas = torch.cat(
        [
            ((1 - s.alphas_cumprod) / s.alphas_cumprod).sqrt()[s.timesteps],
            torch.zeros(1, dtype=torch.float64),
        ]
    )
    ours = sample(Denoiser(net, schedule, "eps"), start(), trailing_grid(steps, schedule), dpmpp_2m())
    close(ours, theirs(s, start(), net, schedule), 1e-4)


@pytest.mark.parametrize("steps", [10, 50])
def test_euler_discrete_is_our_ddim(steps):
    """Theirs is Euler in x / alpha and sigma / alpha, in single precision: with cosine betas it begins at 40,000 and
    keeps three digits."""
    net = Network(schedule := DDPM(BETAS["linear"]))
    s = scheduler("EulerDiscreteScheduler", BETAS["linear"], steps)
    s.sigmas = torch.cat(
        [
            ((1 - s.alphas_cumprod) / s.alphas_cumprod).sqrt()[s.timesteps.long()],
            torch.zeros(1, dtype=torch.float64),
        ]
    )
    x = start() / schedule.alpha(0.0)
    ours = sample(Denoiser(net, schedule, "eps"), start(), trailing_grid(steps, schedule), ddim())
    close(ours, theirs(s, x, net, schedule), 1e-4)


@pytest.mark.parametrize("steps", [10, 50])
def test_flow_match_euler_is_our_euler(steps):
    net = Network(Linear(), "velocity")
    s = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=T)
    s.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps, dtype=torch.float64).tolist())
    x, ts = start(), uniform_grid(steps)
    for i, t in zip(s.timesteps, ts, strict=False):
        x = s.step(-net(x, t.expand(len(x))), i, x).prev_sample  # their velocity points to the noise
    close(sample(Denoiser(net, Linear(), "velocity"), start(), ts, euler()), x, 1e-4)
