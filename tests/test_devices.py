"""The whole library beside an accelerator: nothing mixes devices, needs float64 or what Apple's MPS has not, or
waits in vain."""
from __future__ import annotations

import copy
import dataclasses
import importlib
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import pytest
import torch
from devices import DeviceError, Pretended, pretend
from helpers import rng
from torch import Tensor, nn

from diffusion_course import cold, few_step, latent, metrics, plots
from diffusion_course.checking import LESSONS
from diffusion_course.checkpoints import load, save
from diffusion_course.classifier import Classifier, ClassifierConfig
from diffusion_course.couplings import ot_matching_loss, pair, path_energy, reflow_pairs
from diffusion_course.ddpm import (
    cosine_betas, ddpm_loss, finish_noising, invert, linear_betas, posterior, q_sample,
)
from diffusion_course.discrete import (
    ExactTokens, GuidedTokens, TokenChain, TokenNet, TokenNetConfig, TokenRecipe, TokenTable, as_tokens, bits,
    confident_step, fill, hidden, jump_step, likelihood, masked, masked_loss, reveal_step,
)
from diffusion_course.discrete import pixels as pixels_of
from diffusion_course.distributions import GaussianMixture, running_mixture
from diffusion_course.edm import (
    edm_heun, edm_loss, log_normal_times, preconditioned, preconditioning,
)
from diffusion_course.evaluation import (
    ClassifierRecipe, as_bytes, bits_per_dim, compare_features, evaluate, features,
    frechet_distance, information_rate, kernel_distance, label_agreement, log_prob, name_of,
    nearest, precision_recall,
)
from diffusion_course.few_step import FlowEnd, consistency, consistency_loss, teacher_pairs
from diffusion_course.flow_maps import (
    ExactFlowMap, FlowMapRecipe, TwoTimes, composition_loss, draw_times, jump, mean_flow_loss, mean_velocity, path_loss,
    teacher_paths, two_times,
)
from diffusion_course.generation import (
    InPrecision, SampleConfig, as_samples, generate, noise, previews, sample_to_files,
)
from diffusion_course.guidance import classifier_free, classifier_guided, tilted_log_prob
from diffusion_course.images import DenoiseNet, Images, digit_classifier, digits, radial_spectrum, to_bytes
from diffusion_course.inpainting import (
    box, brush, crop_around, half, known_region, latent_inpaint, latent_mask, noised_again,
    paste_back, reconstruction_guided, resampling, seam,
)
from diffusion_course.latent import (
    Discriminator, LatentUNet, LatentUNetConfig, adversarial_losses, encode_all, perceptual_loss,
)
from diffusion_course.matching import MLP, ConditionEmbedding, drop_conditions, fit, matching_loss
from diffusion_course.predictions import KINDS, Denoiser, EmpiricalDenoiser, ExactDenoiser, to_prediction
from diffusion_course.samplers import (
    BrownianPath,
    adaptive,
    ancestral,
    ddim,
    dpmpp_2m,
    euler,
    euler_maruyama,
    heun,
    karras_grid,
    log_snr_grid,
    midpoint,
    rk4,
    sample,
    trailing_grid,
    trajectory,
    uniform_grid,
    with_langevin,
)
from diffusion_course.schedules import (
    DDPM,
    Cosine,
    Linear,
    Schedule,
    VarianceExploding,
    VariancePreserving,
    as_time,
    marginal,
    per_sample,
)
from diffusion_course.sde import diffusion, drift, langevin_correct, sde_step
from diffusion_course.solvers import (
    em_step, euler_step, heun_step, integrate, midpoint_step, rk4_step, standard_normal,
)
from diffusion_course.training import DenoiserRecipe, Recipe, Run, runs_bf16, train
from diffusion_course.transformer import (
    DiT, DiTBlock, DiTConfig, MultiHead, TransformerRecipe, attention_maps, attention_weights, modulate, patchify,
    positional_codes, prompted, tokens, unpatchify, waves,
)
from diffusion_course.unet import UNet, UNetConfig
from diffusion_course.vae import VAE, DiagonalGaussian, VAEConfig, VAERecipe, psnr, reconstruct, round_trips, vae_loss

SCHEDULES = {
    "linear": Linear(), "cosine": Cosine(), "vp": VariancePreserving(), "ve": VarianceExploding(),
    "ddpm": DDPM(linear_betas(53, 1e-3, 0.2)),
}
TINY = UNetConfig(shape=(1, 8, 8), widths=(16,), attention=(2,), patch=4, head=16)
SMALL_VAE = VAEConfig(shape=(1, 8, 8), latent=(4, 2, 2), widths=(16, 32), blocks=(1, 1), blocks_back=(1, 1))
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=["mps", "cuda"])
def world(request, monkeypatch) -> Iterator[Pretended]:
    with pretend(request.param) as found:
        monkeypatch.setattr(accelerate.Accelerator, "device", property(lambda self: found.device))
        yield found


@pytest.fixture
def device(world) -> torch.device: return world.device


@dataclasses.dataclass
class Stays:
    """A tensor that `agree` leaves on the CPU."""

    value: Tensor


def on(device: torch.device, value: Any) -> Any:
    """Tensors, networks and data, also in tuples and dictionaries, as copies on a device."""
    if isinstance(value, Stays): return value.value
    if isinstance(value, nn.Module): return copy.deepcopy(value).to(device)
    if isinstance(value, (tuple, list)): return type(value)(on(device, v) for v in value)
    if isinstance(value, dict): return {k: on(device, v) for k, v in value.items()}
    return value.to(device) if hasattr(value, "to") else value


def agree(device: torch.device, f: Callable, *args: Any, atol: float = 1e-4, **kwargs: Any) -> None:
    """What f makes of arguments on the device lies there, and is what it makes of them on the CPU."""
    found = f(*on(device, args), **on(device, kwargs))
    expected = f(*on(CPU, args), **on(CPU, kwargs))
    pairs = [(found, expected)] if isinstance(found, Tensor) else zip(found, expected, strict=True)
    for a, b in pairs:
        assert a.device == device and b.device == CPU
        torch.testing.assert_close(a.cpu(), b, atol=atol, rtol=1e-3, check_dtype=False)


def generators(device: torch.device) -> list[torch.Generator | None]:
    """Each source of randomness that a caller may hand on."""
    return [None, rng(), torch.Generator(device).manual_seed(0)]


def shaken(net: nn.Module, seed: int = 0) -> nn.Module:
    """A network that no longer begins as zero, in eval mode."""
    g = rng(seed)
    with torch.no_grad():
        for p in net.parameters(): p.add_(0.05 * torch.randn(p.shape, generator=g))
    return net.eval()


def points(n: int = 12) -> Tensor: return torch.randn(n, 2, generator=rng())


def mlp(schedule: Schedule = SCHEDULES["linear"], kind: str = "velocity") -> Denoiser:
    return Denoiser(shaken(MLP(width=16, depth=2, n_labels=3)), schedule, kind).eval()


def unet(config: UNetConfig = TINY) -> Denoiser: return Denoiser(shaken(UNet(config)), Linear()).eval()


def images(n: int = 12) -> Images:
    found = digits()
    return Images(found.x[:n], found.y[:n], found.names)


def pixels(n: int = 6) -> Tensor: return images(n).batch(slice(None))[0]


def classifier() -> Classifier:
    return Classifier(
        ClassifierConfig((1, 8, 8), stem=8, widths=(8, 16), blocks=(0, 1), n_labels=10)
    ).eval()


class TestThePretendedDevice:
    """The tool itself: each kind of fault is found, and nothing else is."""

    @staticmethod
    def refused(says: str, f: Callable) -> None:
        with pytest.raises(DeviceError, match=says): f()

    def test_tensors_say_where_they_are(self, device):
        x = torch.randn(3, 2, device=device)
        made = (
            torch.zeros_like(x),
            x.new_zeros(2),
            torch.tensor(1.0, device=device),
            torch.asarray(1, device=device),
        )
        moved = (torch.ones(2).to(x), x.cpu().to(device), copy.deepcopy(x), nn.Parameter(x))
        computed = (
            x * 2,
            x > 0,
            x.sum(),
            x.long(),
            nn.functional.one_hot(torch.tensor([1, 2], device=device)),
        )
        for y in (x, x[1:], x.T, x.detach(), *made, *moved, *computed):
            assert y.device == device and not y.is_cpu
            assert y.is_mps == (device.type == "mps") and y.is_cuda == (device.type == "cuda")
        for y in (
            torch.randn(3),
            x.cpu(),
            x.to("cpu"),
            torch.zeros_like(x, device="cpu"),
            x.new_zeros(2, device="cpu"),
            torch.tensor(x.tolist()),
            torch.ones(3) * 2,
        ):
            assert y.device == torch.device("cpu") and y.is_cpu
        assert x.to("meta").device == torch.device("meta")

    def test_values_are_those_of_the_cpu(self, device):
        x = torch.randn(3, 2)
        torch.testing.assert_close((x.to(device) @ x.to(device).T).cpu(), x @ x.T)

    def test_mixed_devices(self, device):
        x, y, says = torch.ones(3, device=device), torch.ones(3), "different devices.* on (mps|cuda):0"
        for f in (
            lambda: x + y,
            lambda: torch.cat([x, y]),
            lambda: x @ y,
            lambda: y[x.long()],
            lambda: y.add_(x),
            lambda: y * x.sum(),
            lambda: torch.stack([x.sum(), y.sum()]),
            lambda: torch.zeros(()).add_(x.sum()),
            lambda: nn.Linear(3, 2)(x),
            lambda: nn.Linear(3, 2).to(device)(y),
            lambda: torch.where(x > 0, x, y),
            lambda: nn.functional.embedding(y.long(), torch.ones(4, 2, device=device)),
            lambda: torch.equal(x, y),
        ):
            self.refused(says, f)

    def test_the_refusal_names_call_kernel_and_devices(self, device):
        with pytest.raises(DeviceError) as error: nn.Linear(3, 2).to(device)(torch.ones(4, 3))
        assert (
            "linear (addmm)" in str(error.value)
            and str(device) in str(error.value)
            and "cpu" in str(error.value)
        )
        with pytest.raises(DeviceError, match=r"schedules\.py:\d+ combine"):
            Linear().mix(torch.ones(2, 2, device=device), torch.ones(2, 2), 0.5)

    def test_backward_passes_are_watched(self, device):
        class Forgetful(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x): return x * 2

            @staticmethod
            def backward(ctx, grad): return grad + left_behind

        left_behind = torch.ones(3)
        x = torch.ones(3, device=device, requires_grad=True)
        self.refused("different devices", lambda: Forgetful.apply(x).sum().backward())

    def test_numbers_and_indices_of_the_cpu_are_welcome(self, device):
        x = torch.arange(4.0, device=device)
        half, two = torch.tensor(0.5, dtype=torch.float64), torch.tensor([2])
        for y in (
            half * x,
            x - half,
            x.masked_fill(x > 1, half),
            torch.where(x > 1, x, half),
            x[two],
            x[torch.tensor(1)],
            x.clone().fill_(half),
        ):
            assert y.device == device and y.dtype == torch.float32
        x[two] = half.float()
        x[two] = x[:1].clone()
        x.copy_(torch.zeros(4))
        assert x.tolist() == [0.0, 0.0, 0.0, 0.0]

    def test_modules_optimisers_and_gradients_across_devices(self, world, device):
        for options in (dict(fused=True), dict(foreach=True), dict(foreach=False)):
            net = nn.Sequential(
                nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), nn.Flatten(), nn.Linear(64, 1)
            ).to(device)
            twin = copy.deepcopy(net).cpu()
            for model, at in ((net, device), (twin, torch.device("cpu"))):
                optimizer = torch.optim.AdamW(model.parameters(), 1e-2, **options)
                for k in range(3):
                    loss = model(torch.randn(5, 1, 6, 6, generator=rng(k)).to(at)).square().mean()
                    optimizer.zero_grad()
                    loss.backward()
                    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
                assert all(p.device == at and p.grad.device == at for p in model.parameters())
            for a, b in zip(net.state_dict().values(), twin.state_dict().values(), strict=True):
                torch.testing.assert_close(a.cpu(), b)
            net.load_state_dict(twin.state_dict())
            assert {v.device for v in net.state_dict().values()} == {device}
        x = torch.ones(3, requires_grad=True)
        (x.to(device) * torch.ones(3, device=device)).sum().backward()
        assert x.grad.device == torch.device("cpu")

    def test_float64_on_mps(self):
        with pretend("mps"):
            x, d = torch.ones(3, device="mps"), torch.ones(3, dtype=torch.float64)
            for f in (
                lambda: x.double(),
                lambda: d.to("mps"),
                lambda: d.to(x.device),
                lambda: torch.zeros(3, dtype=torch.float64, device="mps"),
                lambda: x.sum(dtype=torch.float64),
                lambda: torch.tensor(1.0, dtype=torch.float64, device="mps"),
                lambda: torch.as_tensor(np.ones(3), device="mps"),
                lambda: torch.linspace(0, 1, 3, dtype=torch.float64, device="mps"),
                lambda: x.to("cpu", torch.float64),
                lambda: d.copy_(x),
                lambda: torch.fft.fft(x).to(torch.complex128),
                lambda: nn.Linear(2, 2).double().to("mps"),
                lambda: torch.tensor(1.0, device="mps", dtype=torch.float64) * 2,
            ):
                self.refused("float64|complex128", f)
            assert (
                x.cpu().double().to("mps", torch.float32).device.type == "mps"
                and d.to(x).dtype == torch.float32
            )
            assert torch.zeros_like(x, dtype=torch.float64, device="cpu").is_cpu
        with pretend("cuda"): assert torch.ones(3, device="cuda").double().dtype == torch.float64

    def test_kernels_that_mps_lacks(self, device):
        x = torch.rand(3, 3, device=device)
        for f in (
            torch.special.ndtri,
            torch.linalg.eigh,
            torch.linalg.svd,
            torch.mode,
            lambda x: x.kthvalue(1),
            lambda x: torch.logspace(0, 1, 3, device=device),
        ):
            if device.type == "mps": self.refused("no such kernel", partial(f, x))
            else: f(x)

    def test_generators_of_another_device(self, device):
        here, there, x = torch.Generator(device), torch.Generator(), torch.ones(3, device=device)
        assert (
            here.device == device
            and isinstance(here, torch.Generator)
            and isinstance(torch.default_generator, torch.Generator)
        )
        for f in (
            lambda: torch.randn(3, device=device, generator=there),
            lambda: torch.rand(3, generator=here),
            lambda: torch.randint(3, (2,), generator=here),
            lambda: x.normal_(generator=there),
            lambda: torch.randperm(3, generator=here),
            lambda: nn.init.normal_(x, generator=there),
            lambda: torch.multinomial(x, 1, generator=there),
            lambda: torch.bernoulli(x, generator=there),
        ):
            self.refused("with a generator of", f)
        draw = lambda: torch.randn(3, device=device, generator=here.manual_seed(1)).tolist()
        assert draw() == draw() == torch.randn(3, generator=there.manual_seed(1)).tolist()

    def test_numpy_arrays_of_tensors_on_the_device(self, device):
        x = torch.ones(3, device=device)
        for f in (
            lambda: x.numpy(),
            lambda: np.asarray(x),
            lambda: np.quantile(x, 0.5),
            lambda: np.concatenate([x, x]),
        ):
            self.refused("numpy", f)
        assert x.cpu().numpy().sum() == 3 and x.numpy(force=True).sum() == 3

    def test_waits_are_counted(self, world, device):
        x = torch.ones(3, device=device)
        assert (x + x * 2).sum().mul(2).device == device and not world.syncs
        assert x.sum().item() == 3 and bool((x > 0).all()) and len(x[x > 0]) == 3 and len(x.nonzero()) == 3
        assert x.tolist() == x.cpu().tolist()
        assert sum(world.syncs.values()) == 6

    def test_autocast_of_the_device(self, device):
        net, x = nn.Linear(2, 2).to(device), torch.ones(1, 2, device=device)
        with torch.autocast(device.type, torch.bfloat16): assert net(x).dtype == torch.bfloat16
        assert net(x).dtype == torch.float32

    def test_nothing_is_left_behind(self):
        before = torch.Generator, torch.autocast, torch.accelerator.is_available(), torch.cuda._lazy_init
        with pretend("cuda"): x = torch.ones(3, device="cuda")
        assert x.device == torch.device("cpu") and (x + torch.ones(3)).tolist() == [2, 2, 2]
        assert before == (
            torch.Generator,
            torch.autocast,
            torch.accelerator.is_available(),
            torch.cuda._lazy_init,
        )


class TestPartI:
    """Points in the plane."""

    @pytest.mark.parametrize("name", SCHEDULES)
    def test_schedules(self, device, name):
        schedule, t = SCHEDULES[name], torch.linspace(0.05, 0.95, 7)
        for f in (schedule.alpha, schedule.sigma, schedule.d_alpha, schedule.d_sigma, schedule.log_snr):
            agree(device, f, t, atol=1e-3)
            assert f(0.5).is_cpu
        agree(device, schedule.t_from_log_snr, schedule.log_snr(t))
        for at in (0.3, Stays(torch.tensor(0.3)), Stays(t), t):
            agree(device, schedule.mix, points(7), points(7).flip(0), at)

    @pytest.mark.parametrize("name", SCHEDULES)
    @pytest.mark.parametrize("kind", KINDS)
    def test_predictions(self, device, kind, name):
        def parts(y, x, t):
            p = to_prediction(y, kind, x, t, SCHEDULES[name])
            return [p.x1, p.eps, p.velocity, p.v, p.score]

        t = torch.linspace(0.1, 0.9, 12)
        for at in (0.4, torch.tensor(0.4), Stays(t), t):
            agree(device, parts, points().flip(0), points(), at, atol=0.1)

    def test_fields_and_solvers(self, device):
        def solve(step, x):
            return [*integrate(lambda x, t, s: step(lambda x, t: -x * t, x, t, s), x, uniform_grid(3))]

        for step in (euler_step, midpoint_step, heun_step, rk4_step): agree(device, solve, step, points())
        for g in generators(device):
            for std in (0.3, lambda x, t: torch.full_like(x, 0.3)):
                assert (
                    em_step(lambda x, t: -x, std, points().to(device), 0.0, 0.1, generator=g).device
                    == device
                )

    def test_mixtures(self, device):
        mixture, x, y = running_mixture(), points(), torch.arange(12) % 3
        for f in (mixture.log_prob, mixture.score, mixture.responsibilities):
            for label in (None, 1, Stays(y), y): agree(device, f, x, label)
        for f in (
            mixture.label_probs,
            tilted_log_prob(mixture, 1, 2.0),
            marginal(mixture, Cosine(), 0.5).log_prob,
        ):
            agree(device, f, x)

    def test_mixtures_made_on_the_device(self, device):
        cpu = running_mixture()
        mixture = GaussianMixture(*on(device, (cpu.means, cpu.stds, cpu.weights, cpu.labels)))
        g = torch.Generator(device).manual_seed(0)
        assert mixture.sample(5, g).device == device and all(
            v.device == device for v in mixture.sample_labelled(5, g)
        )
        assert (
            GaussianMixture(cpu.means.to(device), [1.0] * 6, labels=[0, 0, 1, 1, 2, 2])
            .sample(3)
            .device
            == device
        )
        torch.testing.assert_close(
            mixture.log_prob(points().to(device), 1).cpu(), cpu.log_prob(points(), 1)
        )

    @pytest.mark.parametrize("name", SCHEDULES)
    def test_exact_models(self, device, name):
        x, t, y, schedule = points(), torch.linspace(0.1, 0.9, 12), torch.arange(12) % 3, SCHEDULES[name]
        exact = ExactDenoiser(running_mixture(), schedule)
        empirical = EmpiricalDenoiser(points(30), schedule, torch.arange(30) % 3)
        for model in (exact, empirical):
            velocity = lambda x, t, y, model=model: model(x, t, y=y).velocity
            for at, label in ((0.4, None), (0.4, 1), (Stays(t), Stays(y)), (t, y)):
                agree(device, velocity, x, at, label, atol=0.1)
        assert matching_loss(exact, x.to(device), generator=rng()).device == device

    @pytest.mark.parametrize("name", SCHEDULES)
    @pytest.mark.parametrize("kind", KINDS)
    def test_losses(self, device, kind, name):
        model, x1, t = (
            mlp(SCHEDULES[name], kind).to(device),
            points().to(device),
            torch.linspace(0.1, 0.9, 12),
        )
        y = torch.arange(12) % 3
        for g in generators(device) if kind == "velocity" else [rng()]:
            for loss in [matching_loss, edm_loss, ot_matching_loss, *[ddpm_loss] * (name == "ddpm")]:
                value = loss(model, x1, generator=g, y=y.to(device))
                value.backward()
                assert value.device == device
        assert (
            matching_loss(
                model, x1, t=t.to(device), x0=x1.flip(0), weight=lambda t: 1 + t, y=1
            ).device
            == device
        )
        assert matching_loss(model, x1, t=t, y=y).device == device

    @pytest.mark.parametrize("loss", [matching_loss, ot_matching_loss, edm_loss, ddpm_loss])
    def test_fit(self, device, loss):
        schedule, kind = (SCHEDULES["ddpm"], "eps") if loss is ddpm_loss else (Linear(), "velocity")
        x, y = points(40), torch.arange(40) % 3

        def losses(at: torch.device, data_at: torch.device) -> Tensor:
            model = mlp(schedule, kind).to(at)
            history = fit(
                model,
                x.to(data_at),
                6,
                labels=y.to(data_at),
                loss=loss,
                batch_size=8,
                progress=False,
            )
            assert history.loss.is_cpu and {p.device for p in history.model.parameters()} == {at}
            return history.loss

        expected = losses(CPU, CPU)
        for data_at in (CPU, device):
            torch.testing.assert_close(losses(device, data_at), expected, atol=1e-3, rtol=1e-2)

    def test_fit_told_numbers(self, device):
        net = Denoiser(MLP(2, 16, n_labels=3, n_cond=2), Linear()).to(device)
        numbers, labels = torch.randn(64, 2), torch.arange(64) % 3
        fit(net, torch.randn(64, 2), 3, labels=labels, cond=numbers, batch_size=16, progress=False)
        g = torch.Generator().manual_seed(0)
        told = drop_conditions(labels.to(device), numbers.to(device), 0.5, 3, g)
        assert {v.device for v in told.values()} == {device}

    def test_fit_on_pairs(self, device):
        x = points(40).to(device)
        fit(
            mlp().to(device),
            (x.flip(0), x),
            3,
            batch_size=8,
            progress=False,
            watch=lambda k, m: m(x, 0.5, y=1),
        )

    def test_pairs_and_reflow(self, device):
        x0, x1, y = points(), points().flip(0), torch.arange(12) % 3
        for labels in (None, y): agree(device, pair, x0, x1, labels)
        agree(device, lambda m, x0, y: reflow_pairs(m, x0, 2, batch_size=5, y=y), mlp(), x0, y)
        assert path_energy(mlp().to(device), x0.to(device), 2, y=1) > 0

    def test_ddpm(self, device):
        schedule, x1, i = SCHEDULES["ddpm"], points(), torch.arange(12)
        for index in (3, Stays(i), i):
            agree(device, lambda x1, i, eps: q_sample(x1, i, schedule, eps=eps), x1, index, x1.flip(0))
            agree(device, lambda x1, x, i: posterior(x1, x, i, schedule), x1, x1.flip(0), index)
        agree(device, lambda i: schedule.index_of(schedule.t_of(i)), i)
        for g in generators(device):
            assert q_sample(x1.to(device), 3, schedule, generator=g).device == device

    def test_sde(self, device):
        model, x = mlp().to(device), points().to(device)
        t = torch.linspace(0.1, 0.9, 12, device=device)
        for churn in (1.0, lambda t: 1 - t):
            assert (
                diffusion(Linear(), t, churn).device == device
                and drift(model(x, t), churn).device == device
            )
            for g in generators(device):
                assert sde_step(model, churn, x, 0.2, 0.4, generator=g, y=1).device == device
        for g in generators(device):
            assert langevin_correct(model, x, 0.5, 2, generator=g, y=1).device == device


STEPPERS = {
    "euler": euler, "midpoint": midpoint, "heun": heun, "rk4": rk4, "euler_maruyama": euler_maruyama,
    "churn(t)": lambda: euler_maruyama(lambda t: 1 - t), "ddim": ddim, "ddim(1)": lambda: ddim(1.0),
    "dpmpp_2m": dpmpp_2m, "ancestral": ancestral, "ancestral(beta)": lambda: ancestral("beta"),
    "edm_heun": edm_heun, "edm_heun(0.3)": lambda: edm_heun(0.3), "langevin": lambda: with_langevin(heun()),
    "consistency": consistency,
}


class TestSampling:
    """Every stepper on every schedule, and what is made of them."""

    @pytest.mark.parametrize("stepper", STEPPERS)
    def test_steppers(self, device, stepper):
        def draw(model, x):
            run = trajectory(model, x, uniform_grid(3), STEPPERS[stepper](), generator=rng(), y=1)
            assert run.ts.is_cpu and run.x1s.device == x.device
            return run.xs

        for name, schedule in SCHEDULES.items():
            for kind in ("velocity", "x1", "eps") if name in ("vp", "ddpm") else ("velocity",):
                agree(device, draw, mlp(schedule, kind), points(3) * float(schedule.sigma(0.0)), atol=0.05)

    def test_adaptive(self, device):
        agree(
            device,
            lambda m, x: sample(m, x, [0.0, 1.0], adaptive(0.1, 0.1), y=1),
            mlp(),
            points(3),
            atol=0.05,
        )

    def test_sources_of_noise_labels_and_grids(self, device):
        schedule = SCHEDULES["ddpm"]
        model, x, y = mlp(schedule).to(device), points(3).to(device), torch.tensor([0, 1, 2])
        uniform, ratios = uniform_grid(3), (karras_grid(3, schedule), log_snr_grid(3, schedule))
        for ts in (
            uniform,
            uniform.tolist(),
            uniform.float().to(device),
            trailing_grid(3, schedule),
            *ratios,
        ):
            assert sample(model, x, ts, ddim(1.0), y=y.to(device)).device == device
        for g in generators(device):
            assert sample(model, x, uniform_grid(3), ancestral(), generator=g, y=y).device == device
        assert (
            sample(
                model, x, uniform_grid(4), euler_maruyama(), noise=BrownianPath(x, 8), y=1
            ).device
            == device
        )

    @pytest.mark.parametrize("name", SCHEDULES)
    def test_invert(self, device, name):
        for stepper in (ddim, heun, dpmpp_2m, edm_heun):
            there = lambda m, x1, stepper=stepper: invert(m, x1, uniform_grid(3), stepper(), y=1)
            agree(device, there, mlp(SCHEDULES[name]), points(3), atol=0.05)

    def test_guidance(self, device):
        mixture, y = running_mixture(), torch.arange(6) % 3
        classify = lambda x, t: mixture.label_probs(x).clamp_min(1e-4).log()
        for model in (mlp(), ExactDenoiser(mixture, Linear())):
            draw = lambda m, x, y: sample(m, x, uniform_grid(2), heun(), y=y)
            guided = [classifier_free(model, w) for w in (0.0, 1.0, 2.0)]
            guided += [
                classifier_free(model, 1.5, interval=(0.2, 0.8)),
                classifier_guided(model, classify, 2.0),
            ]
            for m in guided:
                for label in (1, Stays(y), y): agree(device, draw, m, points(6), label, atol=0.05)

    def test_wrappers_move_as_modules(self, device):
        classify = lambda x, t: running_mixture().label_probs(x).clamp_min(1e-4).log()
        nested = classifier_free(classifier_guided(mlp(), classify, 0.0), 2.0)
        pulled = reconstruction_guided(mlp(), points(6), torch.tensor([True, False]))
        for model in (nested, FlowEnd(mlp(), 3), InPrecision(mlp(), "fp32"), pulled):
            agree(device, lambda m, x: m(x, 0.5, y=1).x1, model, points(6))
            assert {v.device for v in on(device, model).state_dict().values()} == {device}

    @pytest.mark.parametrize("name", ["linear", "ve"])
    def test_inpainting(self, device, name):
        schedule, mask = SCHEDULES[name], torch.tensor([True, False])

        def fill(model, x, x1, mask, repeats):
            stepper = resampling(heun(), x1, mask, repeats, repeats)
            return sample(model, x, uniform_grid(3), stepper, generator=rng(), y=1)

        def pull(model, x, x1, mask): return reconstruction_guided(model, x1, mask)(x, 0.5, y=1).x1

        for known in ((points(3), mask), (Stays(points(3)), Stays(mask)), (points(1), Stays(mask))):
            for repeats in (1, 2):
                agree(device, fill, mlp(schedule), points(3).flip(0), *known, repeats, atol=0.05)
            agree(device, pull, mlp(schedule), points(3).flip(0), *known)
        agree(device, lambda x, z: noised_again(schedule, x, 0.6, 0.4, z), points(3), points(3).flip(0))


class TestImages:
    """Networks of images, and what is drawn and measured with them."""

    def test_data(self, device):
        i, flip = torch.tensor([0, 3, 5]), torch.tensor([True, False, True])
        for index, mirrored in ((i, flip), (Stays(i), Stays(flip)), (slice(3), None)):
            agree(device, lambda data, i, flip: data.batch(i, flip), images(), index, mirrored)
        agree(device, to_bytes, pixels())
        assert radial_spectrum(pixels().to(device))[1].device == device
        assert digit_classifier()(pixels().to(device)).tolist() == digit_classifier()(pixels()).tolist()

    @pytest.mark.parametrize("embedding", ["sinusoidal", "fourier"])
    def test_networks(self, device, embedding):
        t, y = torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0, 4, 10])
        config = dataclasses.replace(TINY, embedding=embedding)
        for net in map(shaken, (UNet(config), DenoiseNet(width=16, n_labels=10), cold.Restorer(config))):
            for label in (None, 3, Stays(y), y):
                agree(device, lambda net, *args: net(*args), net, pixels(3), t, label)
        net = shaken(UNet(dataclasses.replace(TINY, n_cond=2)))
        cond = torch.tensor([[0.5, -1.0], [torch.nan, 0.3], [0.0, 2.0]])
        for numbers in (None, Stays(cond[0]), Stays(cond), cond):
            agree(device, lambda net, *args: net(*args), net, pixels(3), t, y, numbers)
        agree(device, lambda embed, c, x: embed(c, x), ConditionEmbedding(2, 4), cond, pixels(3))

    @pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m", "euler_maruyama", "ancestral"])
    def test_generate(self, device, sampler):
        def draw(model, y, precision="fp32", **options):
            return generate(model, 4, 2, sampler, seed=1, y=y, precision=precision, **options)

        y = torch.arange(4)
        for label in (3, Stays(y), y):
            agree(device, draw, unet(), label, guidance=2.0, grid="karras", atol=0.02)
        for options in (dict(), dict(guidance=0.0, batch=3), dict(precision="bf16")):
            agree(device, draw, unet(), y, **options, atol=0.2 if options.get("precision") else 0.02)
        for start in (pixels(4), pixels(1)[0]):
            agree(device, draw, unet(), y, start=start, strength=0.5, atol=0.02)
        told = unet(dataclasses.replace(TINY, n_cond=2))
        for numbers in (Stays(torch.tensor([0.5, -1.0])), torch.randn(4, 2)):
            agree(device, draw, told, y, cond=numbers, guidance=2.0, atol=0.02)
        *_, last = previews(unet().to(device), 4, 2, sampler, 2.0, seed=1, y=y)
        assert last.x.device == last.x1.device == noise(unet().to(device), 4, 1).device == device

    def test_generate_in_the_default_precision(self, device):
        assert generate(unet().to(device), 2, 2, seed=0, y=1).device == device
        assert isinstance(runs_bf16(device), bool)

    def test_likelihoods(self, device):
        for probe in (None, points(4).sign()):
            density = lambda m, x, probe: log_prob(m, x, 2, y=1, probe=probe).cpu().double()
            found, expected = (density(*on(at, (mlp(), points(4), probe))) for at in (device, CPU))
            torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
        for g in generators(device):
            assert (
                information_rate(
                    mlp().to(device), points().to(device), 0.0, generator=g, y=1
                ).device
                == device
            )

    def test_bits(self, device):
        labelled = dataclasses.replace(TINY, attention=(), n_labels=2)
        data, y = torch.randint(
            256, (4, 1, 8, 8), generator=rng(), dtype=torch.uint8
        ), torch.tensor([0, 1, 0, 1])
        bits = lambda model, x, y: bits_per_dim(model, x, 1, y=y).value
        expected = bits(unet(labelled), data, y)
        for at in (CPU, device):
            assert bits(unet(labelled).to(device), data.to(at), y.to(at)) == pytest.approx(
                expected, abs=1e-3
            )

    def test_scores(self, device):
        def scores(model, classifier, real):
            return evaluate(model, classifier, real, 10, steps=2, progress=False)

        expected = scores(unet(), classifier(), images(40))
        for at in (CPU, device):  # where the classifier and the data are
            found = scores(unet().to(device), classifier().to(at), images(40).to(at))
            for name, score in expected.items():
                assert found[name].value == pytest.approx(score.value, abs=0.02, rel=0.02), name

    def test_features_and_distances_of_them(self, device):
        x, y = images(8).batch(slice(None))
        for c in (classifier(), classifier().to(device)):
            f = features(x.to(device), c)
            assert f.is_cpu and f.dtype == torch.float64 and features(images(8), c).is_cpu
            assert 0 <= label_agreement(c, x.to(device), y.to(device)) <= 1
            assert name_of(c) == name_of(classifier())
        a, b = f[:4].float(), f[4:].float()
        for score in (frechet_distance, kernel_distance, lambda a, b: precision_recall(a, b, 1)[0]):
            assert score(*on(device, (a, b))) == pytest.approx(score(a, b), abs=1e-4, rel=1e-4)

    def test_nearest(self, device):
        x, data = pixels(4), images(20)
        expected = nearest(x, data, k=2).index[:, 0].tolist()
        for at in (CPU, device):
            assert nearest(x.to(device), data.to(at), k=2).index[:, 0].tolist() == expected
        assert nearest(images(4), data, classifier().to(device)).index[:, 0].tolist() == expected

    def test_autoencoders(self, device):
        vae, x = shaken(VAE(SMALL_VAE)).to(device), pixels().to(device)
        for g in generators(device):
            q = vae.encode(x)
            z = q.sample(g)
            loss = vae_loss(x, vae.decode(z), q, 0.1)
            loss.backward()
            assert z.device == loss.device == device
            vae.standardise(z, 0.5)
        torch.testing.assert_close(vae.from_unit(vae.to_unit(z)), z)
        assert round_trips(vae, x, 2).device == device
        agree(device, lambda vae, x: reconstruct(vae, x, 4), vae, pixels(), atol=0.05)
        found, expected = (psnr(*on(at, (pixels(), pixels().flip(3)))) for at in (device, CPU))
        torch.testing.assert_close(found.cpu().double(), expected.double(), atol=1e-3, rtol=1e-3)

    def test_latents(self, device, tmp_path):
        vae = shaken(VAE(SMALL_VAE))
        with torch.no_grad(): vae.standardise(vae.encode(pixels()).mean)
        save(vae, tmp_path / "vae.safetensors")
        model = Denoiser(shaken(LatentUNet(latent_config(tmp_path))), Linear()).eval().to(device)
        z = generate(model, 3, 2, seed=0, y=1)
        assert latent.decode(model, z).device == model.net.decode(z).device == device
        assert as_samples(model, pixels(3).to(device)).device == device
        for at in (CPU, device):
            for g in generators(device):
                mask, ts, x = (
                    half(shape=(8, 8)).to(at),
                    uniform_grid(2).float().to(at),
                    pixels(3).to(device),
                )
                filled = latent_inpaint(model, vae.to(device), x, mask, ts, ddim(), generator=g, y=1)
                assert filled.device == device

    def test_latents_in_memory(self, device):
        latents = encode_all(shaken(VAE(SMALL_VAE)).to(device), images(), batch=4)
        assert latents.mean.is_cpu
        i, flip = torch.tensor([1, 2]), torch.tensor([True, False])
        for index, mirrored in ((i, flip), (Stays(i), Stays(flip)), (slice(3), None)):
            agree(device, lambda data, i, flip: data.batch(i, flip), latents, index, mirrored)

    def test_masks(self, device):
        x, mask = pixels(3), half(shape=(8, 8))
        for m in (mask, Stays(mask)):
            agree(device, seam, x, m)
            for feather in (0, 2): agree(device, paste_back, x.flip(0), x, m, feather)

    @pytest.mark.parametrize("kind", cold.DEGRADATIONS)
    def test_cold(self, device, kind):
        t = torch.linspace(0, 1, 6)
        for at in (0.3, Stays(torch.tensor(0.3)), torch.tensor(0.3), Stays(t), t):
            agree(device, cold.DEGRADATIONS[kind], pixels(), at)
        model = Denoiser(
            shaken(cold.Restorer(dataclasses.replace(TINY, n_labels=3))), Linear(), "x1"
        ).eval()
        for sampler in (cold.naive, cold.improved):
            agree(device, cold.restore, model, pixels(), kind, 3, sampler, atol=0.01)

    def test_few_steps(self, device):
        x1, y = points(), torch.arange(12) % 3
        for g in generators(device):
            student, teacher = mlp().train().to(device), classifier_free(mlp().to(device), 2.0)
            value = consistency_loss(
                student, student, teacher, x1.to(device), steps=3, generator=g, y=y.to(device)
            )
            value.backward()
            assert value.device == device
        loss = lambda m, x1, x0, t: consistency_loss(m, m, m, x1, t=t, x0=x0, y=1)
        agree(device, loss, mlp(), x1, x1.flip(0), Stays(torch.linspace(0, 0.9, 12)))
        pairs = teacher_pairs(unet().to(device), 5, 2.0, 2, part=3)
        assert pairs.x1.is_cpu
        i = torch.tensor([0, 1])
        for index in (i, Stays(i)): agree(device, lambda pairs, i: pairs.batch(i), pairs, index)

    def test_flow_maps(self, device):
        x, x0 = points(), points().flip(0)
        t, s = torch.linspace(0, 0.4, 12), torch.linspace(0.4, 1, 12)
        model = Denoiser(shaken(TwoTimes(MLP(width=16, depth=2, n_cond=1))), Linear()).eval()
        agree(device, mean_velocity, model, x, t, s)
        agree(device, lambda m, x: sample(m, x, uniform_grid(3), jump()), model, x)
        agree(device, lambda m, x, t, s: mean_velocity(ExactFlowMap(m, 2), x, t, s), mlp(), x, t, s, atol=1e-3)
        agree(device, lambda m, x: mean_velocity(two_times(m), x, 0.2, 0.7), unet(), pixels(), atol=1e-3)
        for f in (mean_flow_loss, composition_loss):
            loss = lambda m, x1, x0, t, s, f=f: f(m, x1, x0=x0, t=t, s=s)
            agree(device, loss, model, x, x0, t, s)
        agree(device, path_loss, model, x, 0.9 * t, x0, s)
        for g in generators(device):
            assert {a.device for a in draw_times(5, generator=g, device=device)} == {torch.device(device)}
        paths = teacher_paths(unet().to(device), 5, 2.0, 2, 1, part=3)
        assert paths.xs.is_cpu
        i = torch.tensor([0, 1])
        for index in (i, Stays(i)): agree(device, lambda paths, i: paths.batch(i), paths, index)

    def test_perceptual_loss(self, device):
        agree(device, perceptual_loss, classifier(), pixels(), pixels().flip(0))

    def test_adversarial_losses(self, device):
        judge, maps = Discriminator((5,)), [torch.randn(3, 5, 4, 4, generator=torch.Generator().manual_seed(0))]
        for on in (judge.to(device), judge):
            at = next(on.parameters()).device
            losses = adversarial_losses(on, [m.to(at) for m in maps], [m.flip(0).to(at) for m in maps])
            assert {v.device for v in losses} == {at}

    def test_distances_of_points(self, device):
        x, y = points(20), points(20).flip(1)
        for f in (metrics.energy_distance, metrics.sliced_wasserstein, metrics.wasserstein2):
            for x_at, y_at in ((device, device), (device, CPU)):
                assert f(x.to(x_at), y.to(y_at)) == pytest.approx(f(x, y), rel=1e-4)

    def test_figures(self, device, tmp_path):
        import matplotlib.pyplot as plt

        x, labels = on(device, (points(20), torch.arange(20) % 3))
        xs, ts = on(device, (torch.randn(4, 5, 2), torch.linspace(0.1, 1, 4)))
        density = lambda v: running_mixture().log_prob(v.to(device)).exp()
        plots.show_samples(x, labels)
        plots.show_histogram(x[:, 0], lambda v: v.to(device).exp())
        plots.show_paths(xs, ts)
        plots.show_paths(xs[..., 0], ts)
        plots.show_curves({"a": (ts, ts.square())}, slopes=True)
        plots.show_density(density, n=20)
        plots.show_field(lambda v, t: v.to(device), 0.5, n=5)
        plots.compare(density, lambda v: running_mixture().log_prob(v).exp())
        plots.show_images(pixels(4).to(device))
        plots.save_grid(pixels(4).to(device), tmp_path / "grid.png")
        assert plots.tile(pixels(4).to(device)).tobytes() == plots.tile(pixels(4)).tobytes()
        plt.close("all")

    def test_files(self, device, tmp_path):
        save(unet().to(device), tmp_path / "model.safetensors")
        assert {p.device for p in load(tmp_path / "model.safetensors").parameters()} == {CPU}

    def test_meta_tensors_tell_shapes(self):
        x, t, y = on(torch.device("meta"), (pixels(5), torch.zeros(5), torch.zeros(5, dtype=torch.long)))
        for net in (UNet(TINY), DenoiseNet(width=16, n_labels=10), cold.Restorer(TINY)):
            assert net.to("meta")(x, t, y).shape == x.shape
        assert classifier().to("meta")(x).shape == (5, 10)
        vae = VAE(SMALL_VAE).to("meta")
        assert vae.encode(x).mean.shape == (5, 4, 2, 2) and vae.decode(vae.encode(x).mean).shape == x.shape


def latent_config(folder: Path) -> LatentUNetConfig:
    return LatentUNetConfig(
        shape=(4, 2, 2), widths=(16,), attention=(), head=16, vae=str(folder / "vae.safetensors")
    )


def recipe(name: str, folder: Path) -> Recipe:
    """The smallest training of each kind, on digits: three steps."""
    short = dict(data="digits", images=96, batch=32, warmup=32, log_every=32, save_every=64, stages=(32,))
    whole, mirrored = short | dict(flip=False), short | dict(flip=True)
    if name == "denoiser": return DenoiserRecipe(net=TINY, **whole)
    if name == "dropout":
        return DenoiserRecipe(
            net=dataclasses.replace(TINY, dropout=0.1), times="uniform", **mirrored
        )
    if name == "vae": return VAERecipe(net=SMALL_VAE, **whole)
    if name == "cold": return cold.ColdRecipe(net=dataclasses.replace(TINY, n_labels=3), **whole)
    if name == "classifier": return ClassifierRecipe(net=classifier().config, shift=1, **mirrored)
    save(shaken(VAE(SMALL_VAE)), folder / "vae.safetensors")
    if name == "latent": return latent.LatentRecipe(net=latent_config(folder), **mirrored)
    if name == "decoder":
        save(classifier(), folder / "critic.safetensors")
        files = {part: str(folder / f"{part}.safetensors") for part in ("vae", "critic")}
        return latent.DecoderRecipe(**files, **whole)
    save(unet(), folder / "teacher.safetensors")
    kinds = {"reflow": few_step.ReflowRecipe, "consistency": few_step.ConsistencyRecipe, "flow map": FlowMapRecipe}
    more = dict(marks=2) if name == "flow map" else {}
    return kinds[name](
        **more,
        teacher=str(folder / "teacher.safetensors"),
        w=2.0,
        pairs=40,
        pair_steps=2,
        kept=str(folder),
        **whole
    )


class TestTraining:
    """Runs of `train` whose device is the accelerator."""

    @pytest.mark.parametrize("name", [
        "denoiser", "dropout", "vae", "latent", "decoder", "cold", "reflow", "consistency", "flow map",
        "classifier",
    ])
    def test_train_hands_back_a_model_on_the_cpu(self, device, name, tmp_path):
        model = train(recipe(name, tmp_path), tmp_path / "run", progress=name == "denoiser")
        assert {v.device for v in model.state_dict().values()} == {CPU}

    def test_resume(self, device, tmp_path):
        config = recipe("denoiser", tmp_path)
        train(config, tmp_path / "run", progress=False)
        train(dataclasses.replace(config, images=128), tmp_path / "run", resume=True, progress=False)

    def test_a_training_step_does_not_wait_for_the_device(self, world, tmp_path):
        run = Run(recipe("denoiser", tmp_path), tmp_path, accelerate.Accelerator(mixed_precision="no"))
        for _ in range(2): run.step()  # the average begins with the second step
        world.syncs.clear()
        run.step()
        assert not world.syncs

    def test_sampling_waits_for_the_check_of_its_input_alone(self, world):
        model, x = classifier_free(unet().to(world.device), 2.0), torch.randn(
            2, 1, 8, 8, device=world.device
        )
        for stepper in (euler(), heun(), dpmpp_2m()):
            world.syncs.clear()
            sample(model, x, uniform_grid(5), stepper, y=torch.tensor([1, 2], device=world.device))
            assert sum(world.syncs.values()) <= 1, world.syncs


class TestTheOtherPublicNames:
    """What the classes above don't come by: with the test below, every public name of a lesson that computes."""

    def test_preconditioning(self, device):
        model = preconditioned(shaken(MLP(width=16, depth=2)), SCHEDULES["ve"], 1.0).eval()
        t = torch.linspace(0.1, 0.9, 12)
        agree(device, lambda m, x, t: m(x, t).x1, model, points(), t, atol=1e-3)
        for g in generators(device):
            assert edm_loss(copy.deepcopy(model).to(device), points().to(device), generator=g).device == device
        for found in preconditioning(t.to(device), SCHEDULES["ve"], 1.0):
            assert not isinstance(found, Tensor) or found.device == device
        for g in generators(device): assert log_normal_times(5, SCHEDULES["ve"], generator=g).shape == (5,)

    def test_increments(self, device):
        for make in (cosine_betas, linear_betas): assert make(20).device == CPU
        betas = linear_betas(20).float()
        assert finish_noising(betas.to(device)).equal(finish_noising(betas))

    def test_times_and_normal_numbers(self, device):
        agree(device, lambda a, x: per_sample(a, x) * x, Stays(torch.tensor([1.0, 2.0])), points(2))
        assert as_time(torch.tensor([0.2, 0.4], device=device)).device == device
        for g in generators(device): assert standard_normal(points().to(device), g).device == device

    @pytest.mark.parametrize("schedule", ["linear", "ve"])
    def test_known_regions(self, device, schedule):
        mask = torch.tensor([True, False])
        model, path = ExactDenoiser(running_mixture(), SCHEDULES[schedule]), SCHEDULES[schedule]

        def fill(x1, mask):
            x = path.sigma(0.0).item() * points(3).to(x1.device)
            stepper = known_region(ddim(), x1, mask)
            return sample(model, x, uniform_grid(4), stepper, noise=lambda x, t, s: torch.ones_like(x))

        for where in (mask, Stays(mask)): agree(device, fill, points(3), where, atol=1e-3)

    def test_masks_may_stay_on_the_cpu(self, device):
        x, mask = pixels(2), box(2, 2, 4, 4, shape=(8, 8)) & brush([(1, 1), (6, 6)], 1.5, shape=(8, 8))
        agree(device, lambda x, m: paste_back(-x, x, m), x, Stays(mask))
        assert crop_around(mask.to(device)) == crop_around(mask)
        assert latent_mask(mask.to(device), (2, 2)).cpu().equal(latent_mask(mask, (2, 2)))

    def test_degradations(self, device):
        for degrade in cold.DEGRADATIONS.values():
            agree(device, lambda x, t: degrade(x, t), torch.randn(2, 3, 32, 32, generator=rng()),
                  torch.tensor([0.3, 0.8]), atol=1e-3)

    def test_scores(self, device):
        real, made = torch.randn(8, 5, generator=rng(1)).double(), torch.randn(8, 5, generator=rng(2)).double()
        compare = lambda a, b: {name: score.value for name, score in compare_features(a, b, "net").items()}
        assert compare(real, made).keys() == {"Fréchet distance", "kernel distance", "precision", "recall"}
        assert as_bytes(pixels().to(device)).device == device

    def test_files(self, device, tmp_path):
        config = SampleConfig(n=4, steps=2, out=str(tmp_path / "a.png"), gif=str(tmp_path / "a.gif"), scale=1)
        sample_to_files(unet().to(device), config, progress=False)
        assert (tmp_path / "a.png").exists() and (tmp_path / "a.gif").exists()

    def test_codes(self, device):
        def draw(mean, log_var):
            q = DiagonalGaussian(mean, log_var)
            return q.mean, q.std, q.kl()

        agree(device, draw, torch.randn(2, 4, 2, 2, generator=rng()), torch.randn(2, 4, 2, 2, generator=rng(1)))
        for g in generators(device):
            q = DiagonalGaussian(*torch.zeros(2, 1, 4, 2, 2, device=device))
            assert q.sample(g).device == device


class TestTransformers:
    """Patches, words and guidance by captions."""

    def reader(self) -> Denoiser:
        config = DiTConfig((1, 8, 8), patch=4, width=16, depth=1, head=8)
        return Denoiser(shaken(DiT(config)), Linear()).eval()

    def test_parts(self, device):
        agree(device, lambda x: unpatchify(patchify(x, 4), (1, 8, 8), 4), pixels())
        q, k, scale = (torch.randn(2, 3, 8, generator=rng(seed)) for seed in range(3))
        mask = torch.tensor([True, False, True])
        agree(device, attention_weights, q, k, mask)
        agree(device, modulate, q, scale, k)
        agree(device, lambda layer, h, c: layer(h, c), MultiHead(8, 4), q, k)
        agree(device, lambda layer, h, e: layer(h, e), shaken(DiTBlock(8, 4)), q, torch.randn(2, 8, generator=rng(5)))
        assert waves(torch.arange(3, device=device), 4).device == device
        assert positional_codes(2, 2, 8).shape == (4, 8)

    def test_captions(self, device):
        words = tokens(["a red circle", "two blue squares"])
        for cond in (words, Stays(words)):
            agree(device, lambda m, x, c: m(x, 0.4, cond=c).x1, self.reader(), pixels(2), cond, atol=1e-3)
            agree(device, lambda m, x, c: prompted(m, 3.0, "red")(x, 0.4, cond=c).x1, self.reader(), pixels(2), cond,
                  atol=1e-3)
            agree(device, lambda m, x, c: attention_maps(m, x, 0.4, c), self.reader(), pixels(2), cond, atol=1e-3)

    def test_training(self, device, tmp_path):
        net = DiTConfig((1, 8, 8), patch=4, width=16, depth=1, head=8, n_labels=10, n_cond=0, vocabulary=0)
        short = dict(images=64, batch=32, warmup=32, log_every=32, save_every=64, stages=(32,), flip=False)
        model = train(TransformerRecipe(data="digits", net=net, **short), tmp_path, progress=False)
        assert {v.device for v in model.state_dict().values()} == {CPU}


class TestTokens:
    """Tokens, exact and learned: where they are, there the answers are."""

    x1 = torch.tensor([[0, 1, 2, 1], [2, 2, 0, 1]])
    x = torch.tensor([[0, 3, 2, 3], [3, 3, 0, 3]])

    def chain(self) -> TokenChain: return TokenChain(torch.ones(3), torch.eye(3) + 0.5, 4)

    def table(self) -> TokenTable: return TokenTable(1 + torch.arange(81.0).reshape(3, 3, 3, 3))

    def net(self, labels: int = 2) -> TokenNet:
        return shaken(TokenNet(TokenNetConfig(4, 3, width=16, depth=1, head=8, n_labels=labels)))

    def test_exact(self, device):
        for source in (self.chain(), self.table()):
            agree(device, lambda x, s=source: s.posterior(x), self.x)
            agree(device, lambda x, s=source: s.log_prob(x), self.x1)
            agree(device, lambda x, s=source: ExactTokens(s, "uniform")(x, 0.4), self.x1)
        agree(device, likelihood, self.x, 3)
        agree(device, lambda x: pixels_of(x % 3, 2), self.x)
        agree(device, lambda x: as_tokens("x", x, 3), self.x)

    def test_learned(self, device):
        agree(device, lambda m, x: m(x), self.net(0), self.x)
        agree(device, lambda m, x, y: GuidedTokens(m, 2.0)(x, y=y), self.net(), self.x, torch.tensor([0, 1]))
        agree(device, lambda m, x, h: masked_loss(m, x, hide=h), self.net(), self.x1, self.x == 3)

    def test_random(self, device):
        x1, x, model = self.x1.to(device), self.x.to(device), self.net().to(device)
        for g in generators(device):
            assert masked(x1, 0.5, 3, g).device == device and hidden(2, 4, g, device).device == device
            assert bits(model, x1, 2, generator=g).device == device
            for step in (jump_step, reveal_step, confident_step):
                *_, found = fill(model, x, 3, step, y=1, generator=g)
                assert found.device == device and (found < 3).all()

    def test_training(self, device, tmp_path):
        net = TokenNetConfig(64, 2, width=16, depth=1, head=8, columns=8, n_labels=10)
        short = dict(images=64, batch=32, warmup=32, log_every=32, save_every=64, stages=(32,))
        model = train(TokenRecipe(data="binary-digits", net=net, **short), tmp_path, progress=False)
        assert {v.device for v in model.state_dict().values()} == {CPU}


# Public names of lessons that are constants, types, records or tables, look things up, or run inside others
NOT_CALLED = set("""
    toy_names toy Field as_times Prediction target_row Model ModelWrapper singular cost target_kind null_label has_cost
    latent_network sample_shape device_of eval_mode differentiable without_inference one_thread_if_small History Churn
    with_labels TEXTURES PRECISIONS dtype_of_products
    Noise Stepper Recorder handling_singular_ends handles_singular_ends ending_with_data ends_with_data Trajectory
    Posterior ClassifierGuided ClassifierFree Preconditioning ScaledInput CIFAR10_URL CIFAR10_MD5 CIFAR10_NAMES to_float
    cifar10 cifar10_at_hand check_input EMBEDDINGS TimeEmbedding ResidualBlock Attention Upsample Stage PartCost
    part_costs DATA PRESETS CHANGEABLE COLUMNS batch_indices Objective Metrics saved_config ladder SAMPLERS stepper_of
    Preview as_images read_image INCEPTION_WEIGHTS INCEPTION_URL Score split real_scores likelihood_grid Nearest
    EvaluateConfig scores_of Block check_previews Latents checksum DecoderConfig Decoder as_mask ReconstructionGuided
    Degradation START Blur Masking Pixelate Pairs Paths image_folder is_folder images_of started label_names
    ImagesRecipe own_classifier inception_fid FAULTS Chart examine normals n_cond FONTS draw_letter write_letters
    TextBlock TextEncoder Prompted WORDS N_WORDS PREVIEW scenes
    LETTERS TokenModel TokenStep binary_digits reference_text text_windows
""".split())


@pytest.mark.parametrize("lesson", LESSONS)
def test_every_public_name_that_computes_is_tried_here(lesson):
    source = Path(__file__).read_text(encoding="utf-8").split("NOT_CALLED")[0]
    names = set(importlib.import_module(f"diffusion_course.{lesson}").__all__)
    missing = {n for n in names - NOT_CALLED if not re.search(rf"\b{n}\b", source)}
    assert not missing, f"not tried beside an accelerator: {sorted(missing)}"
