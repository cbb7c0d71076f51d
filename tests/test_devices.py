"""The whole library beside an accelerator: nothing mixes devices, needs float64 or what Apple's MPS has not, or
waits in vain."""
from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import accelerate
import numpy as np
import pytest
import torch
from devices import DeviceError, Pretended, pretend
from helpers import rng
from torch import Tensor, nn

from diffusion_course import cold, few_step, latent, metrics, plots
from diffusion_course.checkpoints import load, save
from diffusion_course.classifier import Classifier, ClassifierConfig
from diffusion_course.couplings import ot_matching_loss, pair, path_energy, reflow_pairs
from diffusion_course.ddpm import ddpm_loss, invert, linear_betas, posterior, q_sample
from diffusion_course.distributions import GaussianMixture, running_mixture
from diffusion_course.edm import edm_heun, edm_loss
from diffusion_course.evaluation import (
    ClassifierRecipe, bits_per_dim, evaluate, features, information_rate, kernel_distance, label_agreement, log_prob,
    name_of, nearest, frechet_distance, precision_recall,
)
from diffusion_course.few_step import FlowEnd, consistency, consistency_loss, teacher_pairs
from diffusion_course.generation import InPrecision, generate, noise, previews
from diffusion_course.guidance import classifier_free, classifier_guided, tilted_log_prob
from diffusion_course.images import DenoiseNet, Images, digit_classifier, digits, radial_spectrum, to_bytes
from diffusion_course.inpainting import (
    box, half, known_region, latent_inpaint, noised_again, paste_back, reconstruction_guided, resampling, seam,
)
from diffusion_course.latent import LatentUNet, LatentUNetConfig, encode_all, perceptual_loss
from diffusion_course.matching import MLP, fit, matching_loss
from diffusion_course.predictions import KINDS, Denoiser, EmpiricalDenoiser, ExactDenoiser, to_prediction
from diffusion_course.samplers import (
    BrownianPath, adaptive, ancestral, ddim, dpmpp_2m, euler, euler_maruyama, heun, karras_grid, log_snr_grid, midpoint,
    rk4, sample, trailing_grid, trajectory, uniform_grid, with_langevin,
)
from diffusion_course.schedules import DDPM, Cosine, Linear, VarianceExploding, VariancePreserving, marginal
from diffusion_course.sde import diffusion, drift, langevin_correct, sde_step
from diffusion_course.solvers import em_step, euler_step, heun_step, integrate, midpoint_step, rk4_step
from diffusion_course.training import PRESETS, Run, runs_bf16, train
from diffusion_course.unet import UNet, UNetConfig
from diffusion_course.vae import VAE, VAEConfig, VAERecipe, psnr, reconstruct, round_trips, vae_loss

SCHEDULES = {
    "linear": Linear(), "cosine": Cosine(), "vp": VariancePreserving(), "ve": VarianceExploding(),
    "ddpm": DDPM(linear_betas(53, 1e-3, 0.2)),
}
TINY = UNetConfig(shape=(1, 8, 8), widths=(16,), attention=(2,), patch=4, head=16)
SMALL_VAE = VAEConfig(shape=(1, 8, 8), latent=(4, 2, 2), widths=(16, 32), blocks=(1, 1), blocks_back=(1, 1))
BLOB = UNetConfig(shape=(1, 16, 16), widths=(16,), attention=(), patch=4, head=16, n_labels=2)


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


def shaken(net: nn.Module, seed: int = 0) -> nn.Module:
    """A network that no longer begins as zero, in eval mode."""
    g = rng(seed)
    with torch.no_grad():
        for p in net.parameters(): p.add_(0.05 * torch.randn(p.shape, generator=g))
    return net.eval()


def points(n: int = 12, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, 2, generator=rng(), dtype=dtype)


def mlp(schedule=SCHEDULES["linear"], kind: str = "velocity", n_labels: int = 3) -> Denoiser:
    return Denoiser(shaken(MLP(width=16, depth=2, n_labels=n_labels)), schedule, kind).eval()


def unet(config: UNetConfig = TINY) -> Denoiser: return Denoiser(shaken(UNet(config)), Linear()).eval()


def images(n: int = 12) -> Images:
    found = digits()
    return Images(found.x[:n], found.y[:n], found.names)


def judge(shape: tuple[int, int, int] = (1, 8, 8)) -> Classifier:
    return Classifier(ClassifierConfig(shape, stem=8, widths=(8, 16), blocks=(0, 1), n_labels=10)).eval()


def generators(device: torch.device) -> list[torch.Generator | None]:
    """Each source of randomness that a caller may hand on."""
    return [None, rng(), torch.Generator(device).manual_seed(0)]


def same(on_device: Tensor, on_cpu: Tensor, device: torch.device, atol: float = 1e-4) -> None:
    """A result lies on the device, and says what it says on the CPU."""
    assert on_device.device == device
    torch.testing.assert_close(on_device.cpu(), on_cpu, atol=atol, rtol=1e-3, check_dtype=False)


class TestThePretendedDevice:
    """The tool itself: each kind of fault is found, and nothing else is."""

    @staticmethod
    def refused(says: str, f: Callable) -> None:
        with pytest.raises(DeviceError, match=says): f()

    def test_tensors_say_where_they_are(self, device):
        x = torch.randn(3, 2, device=device)
        for y in (
            x,
            x * 2,
            x[1:],
            x.T,
            x.detach(),
            x.sum(),
            x > 0,
            torch.zeros_like(x),
            x.new_zeros(2),
            nn.Parameter(x),
            torch.tensor([1.0], device=device),
            torch.ones(2).to(x),
            x.cpu().to(device),
            copy.deepcopy(x),
            x.long(),
            torch.as_tensor([1], device=device),
            nn.functional.one_hot(torch.tensor([1, 2], device=device)),
        ):
            assert y.device == device and not y.is_cpu
            assert y.is_mps == (device.type == "mps") and y.is_cuda == (device.type == "cuda")
        for y in (torch.randn(3), x.cpu(), x.to("cpu"), torch.zeros_like(x, device="cpu"), x.new_zeros(2, device="cpu"),
                  torch.tensor(x.tolist()), torch.ones(3) * 2):
            assert y.device == torch.device("cpu") and y.is_cpu
        assert x.to("meta").device == torch.device("meta")

    def test_values_are_those_of_the_cpu(self, device):
        x = torch.randn(3, 2)
        torch.testing.assert_close((x.to(device) @ x.to(device).T).cpu(), x @ x.T)

    def test_mixed_devices(self, device):
        x, y, says = torch.ones(3, device=device), torch.ones(3), "different devices.* on (mps|cuda):0"
        for f in (lambda: x + y, lambda: torch.cat([x, y]), lambda: x @ y, lambda: y[x.long()], lambda: y.add_(x),
                  lambda: y * x.sum(), lambda: torch.stack([x.sum(), y.sum()]), lambda: torch.zeros(()).add_(x.sum()),
                  lambda: nn.Linear(3, 2)(x), lambda: nn.Linear(3, 2).to(device)(y), lambda: torch.where(x > 0, x, y),
                  lambda: nn.functional.embedding(y.long(), torch.ones(4, 2, device=device)),
                  lambda: torch.equal(x, y)):
            self.refused(says, f)

    def test_the_refusal_names_call_kernel_and_devices(self, device):
        with pytest.raises(DeviceError) as error: nn.Linear(3, 2).to(device)(torch.ones(4, 3))
        assert "linear (addmm)" in str(error.value) and str(device) in str(error.value) and "cpu" in str(error.value)
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
            assert x.cpu().double().to("mps", torch.float32).device.type == "mps" and d.to(x).dtype == torch.float32
            assert torch.zeros_like(x, dtype=torch.float64, device="cpu").is_cpu
        with pretend("cuda"): assert torch.ones(3, device="cuda").double().dtype == torch.float64

    def test_kernels_that_mps_lacks(self):
        for kind in ("mps", "cuda"):
            with pretend(kind):
                x = torch.rand(3, 3, device=kind)
                for f in (
                    lambda: torch.special.ndtri(x),
                    lambda: torch.linalg.eigh(x),
                    lambda: torch.linalg.svd(x),
                    lambda: x.kthvalue(1),
                    lambda: torch.logspace(0, 1, 3, device=kind),
                    lambda: x.mode(),
                ):
                    if kind == "mps": self.refused("no such kernel", f)
                    else: f()

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
        assert before == (torch.Generator, torch.autocast, torch.accelerator.is_available(), torch.cuda._lazy_init)


class TestPartI:
    """Points in the plane."""

    @pytest.mark.parametrize("name", SCHEDULES)
    def test_schedules(self, device, name):
        schedule, t = SCHEDULES[name], torch.linspace(0.05, 0.95, 7)
        for f in (schedule.alpha, schedule.sigma, schedule.d_alpha, schedule.d_sigma, schedule.log_snr):
            same(f(t.to(device)), f(t), device, 1e-3)
            assert f(0.5).is_cpu
        l = schedule.log_snr(t)
        same(schedule.t_from_log_snr(l.to(device)), schedule.t_from_log_snr(l), device)
        x1, x0 = points(7), points(7).flip(0)
        for at in (0.3, torch.tensor(0.3), t):
            same(schedule.mix(x1.to(device), x0.to(device), at), schedule.mix(x1, x0, at), device)
        same(schedule.mix(x1.to(device), x0.to(device), t.to(device)), schedule.mix(x1, x0, t), device)

    @pytest.mark.parametrize("name", SCHEDULES)
    @pytest.mark.parametrize("kind", KINDS)
    def test_predictions(self, device, kind, name):
        x, y, schedule = points(), points().flip(0), SCHEDULES[name]
        t = torch.linspace(0.1, 0.9, len(x))
        for at_cpu, at in (
            (0.4, 0.4),
            (torch.tensor(0.4), torch.tensor(0.4)),
            (torch.tensor(0.4), torch.tensor(0.4, device=device)),
            (t, t),
            (t, t.to(device)),
        ):
            p, q = to_prediction(y.to(device), kind, x.to(device), at, schedule), to_prediction(
                y, kind, x, at_cpu, schedule
            )
            for part in ("x1", "eps", "velocity", "v", "score"): same(getattr(p, part), getattr(q, part), device, 0.1)

    def test_fields_and_solvers(self, device):
        u, ts, x = lambda x, t: -x * t, uniform_grid(3), points()
        for step in (euler_step, midpoint_step, heun_step, rk4_step):
            same([*integrate(lambda x, t, s, step=step: step(u, x, t, s), x.to(device), ts)][-1],
                 [*integrate(lambda x, t, s, step=step: step(u, x, t, s), x, ts)][-1], device)
        for g in generators(device):
            for std in (0.3, lambda x, t: torch.full_like(x, 0.3)):
                assert em_step(u, std, x.to(device), 0.0, 0.1, generator=g).device == device

    def test_exact_models_and_mixtures(self, device):
        mixture, x, y = running_mixture(), points(), torch.arange(12) % 3
        for f in (mixture.log_prob, mixture.score, mixture.responsibilities): same(f(x.to(device)), f(x), device)
        for label in (1, y, y.to(device)):
            same(
                mixture.log_prob(x.to(device), label),
                mixture.log_prob(x, 1 if isinstance(label, int) else y),
                device,
            )
        same(mixture.label_probs(x.to(device)), mixture.label_probs(x), device)
        same(tilted_log_prob(mixture, 1, 2.0)(x.to(device)), tilted_log_prob(mixture, 1, 2.0)(x), device)
        assert marginal(mixture, Cosine(), 0.5).log_prob(x.to(device)).device == device
        for schedule in SCHEDULES.values():
            for model in (
                ExactDenoiser(mixture, schedule),
                EmpiricalDenoiser(points(30), schedule, torch.arange(30) % 3),
            ):
                for t in (0.4, torch.linspace(0.1, 0.9, len(x)), torch.linspace(0.1, 0.9, len(x), device=device)):
                    for label in (None, 1, y, y.to(device)):
                        on_cpu = model(
                            x,
                            t.cpu() if isinstance(t, Tensor) else t,
                            y=None if label is None else 1 if isinstance(label, int) else y,
                        )
                        same(model(x.to(device), t, y=label).velocity, on_cpu.velocity, device, 0.1)

    def test_mixtures_made_on_the_device(self, device):
        cpu = running_mixture()
        mixture = GaussianMixture(
            cpu.means.to(device), cpu.stds.to(device), cpu.weights.to(device), cpu.labels.to(device)
        )
        g = torch.Generator(device).manual_seed(0)
        assert mixture.sample(5, g).device == device and all(v.device == device for v in mixture.sample_labelled(5, g))
        same(mixture.log_prob(points().to(device), 1), cpu.log_prob(points(), 1), device)
        assert GaussianMixture(cpu.means.to(device), [1.0] * 6, labels=[0, 0, 1, 1, 2, 2]).sample(3).device == device

    @pytest.mark.parametrize("name", SCHEDULES)
    @pytest.mark.parametrize("kind", KINDS)
    def test_losses(self, device, kind, name):
        model, x1 = mlp(SCHEDULES[name], kind).to(device), points().to(device)
        y, t = (torch.arange(12) % 3).to(device), torch.linspace(0.1, 0.9, 12)
        losses = [matching_loss, edm_loss, ot_matching_loss] + [ddpm_loss] * (name == "ddpm")
        for g in generators(device):
            for loss in losses:
                value = loss(model, x1, generator=g, y=y)
                value.backward()
                assert value.device == device
        assert matching_loss(model, x1, t=t.to(device), x0=x1.flip(0), weight=lambda t: 1 + t, y=1).device == device
        assert matching_loss(model, x1, t=t, y=y.cpu()).device == device

    def test_exact_models_have_losses_too(self, device):
        model = ExactDenoiser(running_mixture(), Linear())
        assert matching_loss(model, points().to(device), generator=rng()).device == device

    @pytest.mark.parametrize("loss", [matching_loss, ot_matching_loss, edm_loss, ddpm_loss])
    def test_fit(self, device, loss):
        schedule, x, y = SCHEDULES["ddpm" if loss is ddpm_loss else "linear"], points(40), torch.arange(40) % 3
        mlp = lambda schedule: Denoiser(
            shaken(MLP(width=16, depth=2, n_labels=3)),
            schedule,
            "eps" if loss is ddpm_loss else "velocity",
        )
        train_on = lambda model, *data, **kw: fit(model, *data, steps=6, batch_size=8, loss=loss, progress=False, **kw)
        for at in ("cpu", device):
            history = train_on(mlp(schedule).to(device), x.to(at), labels=y.to(at))
            assert history.loss.is_cpu and {p.device for p in history.model.parameters()} == {device}
        expected = train_on(mlp(schedule), x, labels=y)
        torch.testing.assert_close(history.loss, expected.loss, atol=1e-3, rtol=1e-2)
        if loss is matching_loss:
            train_on(
                mlp(schedule).to(device),
                (x.flip(0).to(device), x.to(device)),
                watch=lambda k, m: m(x.to(device), 0.5, y=1),
            )

    def test_pairs_and_reflow(self, device):
        x0, x1, y = points(), points().flip(0), torch.arange(12) % 3
        for labels in (None, y):
            same(
                pair(x0.to(device), x1.to(device), None if labels is None else y.to(device)),
                pair(x0, x1, labels),
                device,
            )
        model = mlp()
        same(
            reflow_pairs(model.to(device), x0.to(device), 2, batch_size=5, y=y.to(device))[1],
            reflow_pairs(model.cpu(), x0, 2, y=y)[1],
            device,
        )
        assert path_energy(model.to(device), x0.to(device), 2, y=1) > 0

    def test_ddpm(self, device):
        schedule, x1, i = SCHEDULES["ddpm"], points(), torch.arange(12)
        for index in (3, i, i.to(device)):
            on_cpu = index.cpu() if isinstance(index, Tensor) else index
            same(
                q_sample(x1.to(device), index, schedule, eps=x1.flip(0).to(device)),
                q_sample(x1, on_cpu, schedule, eps=x1.flip(0)),
                device,
            )
            for a, b in zip(
                posterior(x1.to(device), x1.flip(0).to(device), index, schedule),
                posterior(x1, x1.flip(0), on_cpu, schedule),
                strict=True,
            ):
                same(a, b, device)
            assert schedule.index_of(schedule.t_of(index)).tolist() == schedule.index_of(schedule.t_of(on_cpu)).tolist()
        for g in generators(device): assert q_sample(x1.to(device), 3, schedule, generator=g).device == device

    def test_sde(self, device):
        model, x = mlp().to(device), points().to(device)
        t = torch.linspace(0.1, 0.9, 12, device=device)
        for churn in (1.0, lambda t: 1 - t):
            assert diffusion(Linear(), t, churn).device == device and drift(model(x, t), churn).device == device
            for g in generators(device): assert sde_step(model, churn, x, 0.2, 0.4, generator=g, y=1).device == device
        for g in generators(device): assert langevin_correct(model, x, 0.5, 2, generator=g, y=1).device == device


STEPPERS = {
    "euler": euler,
    "midpoint": midpoint,
    "heun": heun,
    "rk4": rk4,
    "euler_maruyama": euler_maruyama,
    "churn(t)": lambda: euler_maruyama(lambda t: 1 - t),
    "ddim": ddim,
    "ddim(1)": lambda: ddim(1.0),
    "dpmpp_2m": dpmpp_2m,
    "ancestral": ancestral,
    "ancestral(beta)": lambda: ancestral("beta"),
    "edm_heun": edm_heun,
    "edm_heun(0.3)": lambda: edm_heun(0.3),
    "langevin": lambda: with_langevin(heun()),
    "consistency": consistency,
    "adaptive": lambda: adaptive(1e-2, 1e-2),
}


class TestSampling:
    """Every stepper on every schedule, and what is made of them."""

    @pytest.mark.parametrize("stepper", STEPPERS)
    def test_steppers(self, device, stepper):
        for name, schedule in SCHEDULES.items():
            if stepper == "adaptive" and name != "linear": continue
            x = points(3) * float(schedule.sigma(0.0))
            for kind in ("velocity", "x1", "eps"):
                model, ts = mlp(schedule, kind), uniform_grid(3)
                draw = lambda m, x, **kw: trajectory(m, x, ts, STEPPERS[stepper](), **kw, y=1)
                run = draw(model.to(device), x.to(device), generator=rng())
                expected = draw(model.cpu(), x, generator=rng())
                assert run.ts.is_cpu and run.x1s.device == device
                same(run.xs, expected.xs, device, 0.05)
                assert sample(model.to(device), x.to(device), ts, STEPPERS[stepper](), y=1).device == device

    def test_sources_of_noise_labels_and_grids(self, device):
        model, x, y = mlp(SCHEDULES["ddpm"]).to(device), points(3).to(device), torch.tensor([0, 1, 2])
        schedule = model.schedule
        grids = (
            uniform_grid(3),
            uniform_grid(3).tolist(),
            karras_grid(3, schedule),
            log_snr_grid(3, schedule),
            trailing_grid(3, schedule),
            uniform_grid(3).float().to(device),
        )
        for ts in grids: assert sample(model, x, ts, ddim(1.0), y=y.to(device)).device == device
        for g in generators(device):
            assert sample(model, x, uniform_grid(3), ancestral(), generator=g, y=y).device == device
        assert sample(model, x, uniform_grid(4), euler_maruyama(), noise=BrownianPath(x, 8), y=1).device == device

    @pytest.mark.parametrize("name", SCHEDULES)
    def test_invert(self, device, name):
        model, x1 = mlp(SCHEDULES[name]), points(3)
        for stepper in (ddim, heun, dpmpp_2m, edm_heun):
            inverted = invert(model.to(device), x1.to(device), uniform_grid(3), stepper(), y=1)
            same(inverted, invert(model.cpu(), x1, uniform_grid(3), stepper(), y=1), device, 0.05)

    def test_guidance(self, device):
        mixture, x, y = running_mixture(), points(6), torch.arange(6) % 3
        classify = lambda x, t: mixture.label_probs(x).clamp_min(1e-4).log()
        for base in (mlp(), ExactDenoiser(mixture, Linear())):
            for make in (lambda m: classifier_free(m, 2.0), lambda m: classifier_free(m, 1.5, interval=(0.2, 0.8)),
                         lambda m: classifier_free(m, 0.0), lambda m: classifier_guided(m, classify, 2.0)):
                for label in (1, y, y.to(device)):
                    on_cpu = 1 if isinstance(label, int) else y
                    expected = sample(make(base), x, uniform_grid(3), heun(), y=on_cpu)
                    guided = make(base)
                    if isinstance(base, nn.Module): guided = make(copy.deepcopy(base).to(device))
                    same(sample(guided, x.to(device), uniform_grid(3), heun(), y=label), expected, device, 0.05)

    def test_wrappers_move_as_modules(self, device):
        x = points(6)
        model = classifier_free(classifier_guided(mlp(), lambda x, t: running_mixture().label_probs(x).log(), 0.0), 2.0)
        expected = model(x, 0.5, y=1).velocity
        same(model.to(device)(x.to(device), 0.5, y=1).velocity, expected, device)
        assert {v.device for v in model.state_dict().values()} == {device}
        same(FlowEnd(mlp().to(device), 3)(x.to(device), 0.3, y=1).x1, FlowEnd(mlp(), 3)(x, 0.3, y=1).x1, device)
        assert InPrecision(mlp().to(device))(x.to(device), 0.3, y=1).x1.device == device

    @pytest.mark.parametrize("name", ["linear", "ve"])
    def test_inpainting(self, device, name):
        x1 = points(3)
        mask, x, schedule = torch.tensor([True, False]), points(3).flip(0), SCHEDULES[name]
        for at in (torch.device("cpu"), device):  # where what is known lies
            for make in (known_region, lambda *a: resampling(*a, repeats=2, jump=2)):
                run = lambda m, stepper, x: sample(m, x, uniform_grid(3), stepper, generator=rng(), y=1)
                found = run(mlp(schedule).to(device), make(heun(), x1.to(at), mask.to(at)), x.to(device))
                same(found, run(mlp(schedule), make(heun(), x1, mask), x), device, 0.05)
            guided = reconstruction_guided(mlp(schedule), x1.to(at), mask.to(at)).to(device)
            expected = reconstruction_guided(mlp(schedule), x1, mask)(x, 0.5, y=1).x1
            same(guided(x.to(device), 0.5, y=1).x1, expected, device)
        same(
            noised_again(schedule, x.to(device), 0.6, 0.4, x.to(device)),
            noised_again(schedule, x, 0.6, 0.4, x),
            device,
        )


class TestImages:
    """Networks of images, and what is drawn and measured with them."""

    def test_data(self, device):
        found, on = images(), images().to(device)
        i, flip = torch.tensor([0, 3, 5]), torch.tensor([True, False, True])
        for index, mirror in ((i, flip), (i.to(device), flip.to(device)), (slice(3), None)):
            x, y = on.batch(index, mirror)
            same(
                x,
                found.batch(
                    index.cpu() if isinstance(index, Tensor) else index,
                    flip if mirror is not None else None,
                )[0],
                device,
            )
            assert y.device == device
        x = on.batch(slice(4))[0]
        same(to_bytes(x), images().x[:4], device)
        assert all(v.device == device for v in radial_spectrum(x)[1:])
        assert digit_classifier()(x).tolist() == digit_classifier()(x.cpu()).tolist()

    @pytest.mark.parametrize("embedding", ["sinusoidal", "fourier"])
    def test_networks(self, device, embedding):
        x, t, y = images(3).batch(slice(None))[0], torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0, 4, 10])
        nets = (
            UNet(dataclasses.replace(TINY, embedding=embedding)),
            DenoiseNet(width=16, n_labels=10),
            cold.Restorer(TINY),
        )
        for net in map(shaken, nets):
            for label in (None, 3, y, y.to(device)):
                expected = net.cpu()(x, t, label.cpu() if isinstance(label, Tensor) else label)
                same(net.to(device)(x.to(device), t.to(device), label), expected, device)

    @pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m", "euler_maruyama", "ancestral"])
    def test_generate(self, device, sampler):
        model, y = unet(), torch.arange(4)
        for options in (dict(), dict(guidance=2.0, grid="karras"), dict(guidance=0.0, batch=3), dict(precision="bf16")):
            for label in (3, y, y.to(device)):
                on_cpu = dict(options, precision="fp32", y=3 if isinstance(label, int) else y)
                draw = lambda m, **kw: generate(m, 4, 3, sampler, seed=1, **kw)
                expected = draw(model.cpu(), **on_cpu)
                same(
                    draw(model.to(device), **{"precision": "fp32"} | options, y=label),
                    expected,
                    device,
                    0.2 if "precision" in options else 0.02,
                )
        *_, last = previews(model.to(device), 4, 3, sampler, 2.0, seed=1, y=y)
        assert last.x.device == device and noise(model, 4, 1).device == device

    def test_generate_in_the_default_precision(self, device):
        assert generate(unet().to(device), 2, 2, seed=0, y=1).device == device
        assert isinstance(runs_bf16(device), bool)

    def test_likelihoods(self, device):
        model, x = mlp(), points(4)
        probe = torch.where(points(4) > 0, 1.0, -1.0)
        for how in (dict(), dict(probe=probe)):
            moved = {k: v.to(device) for k, v in how.items()}
            found = log_prob(model.to(device), x.to(device), 3, y=1, **moved)
            torch.testing.assert_close(
                found.cpu().double(),
                log_prob(model.cpu(), x, 3, y=1, **how).double(),
                atol=1e-3,
                rtol=1e-3,
            )
        assert information_rate(model.to(device), x.to(device), 0.0, generator=rng(), y=1).device == device
        net, data = unet(BLOB), torch.randint(256, (4, 1, 16, 16), generator=rng(), dtype=torch.uint8)
        for y in (None, torch.tensor([0, 1, 0, 1])):
            on_cpu = bits_per_dim(net.cpu(), data, 2, y=y)
            for at in (torch.device("cpu"), device):
                found = bits_per_dim(net.to(device), data.to(at), 2, y=None if y is None else y.to(at))
                assert found.value == pytest.approx(on_cpu.value, abs=1e-3)

    def test_scores(self, device):
        real, model, classifier = images(40), unet(), judge()
        on_cpu = evaluate(model, classifier, real, 10, steps=2, progress=False)
        for at in (torch.device("cpu"), device):  # where the classifier is
            for data in (real, real.to(device)):
                found = evaluate(model.to(device), classifier.to(at), data, 10, steps=2, progress=False)
                for name, score in on_cpu.items():
                    assert found[name].value == pytest.approx(score.value, abs=0.02, rel=0.02), name
        x, y = images(8).batch(slice(None))
        for classifier in (judge(), judge().to(device)):
            f = features(x.to(device), classifier)
            assert f.is_cpu and f.dtype == torch.float64 and features(images(8), classifier).is_cpu
            assert 0 <= label_agreement(classifier, x.to(device), y.to(device)) <= 1 and name_of(
                classifier
            ) == name_of(judge())
        a, b = f[:4].float().to(device), f[4:].float().to(device)
        for score in (frechet_distance, kernel_distance, lambda a, b: precision_recall(a, b, 1)[0]):
            assert score(a, b) == pytest.approx(score(a.cpu(), b.cpu()), abs=1e-4, rel=1e-4)

    def test_nearest(self, device):
        x, data = images(4).batch(slice(None))[0], images(20)
        expected = nearest(x, data, k=2)
        for found in (
            nearest(x.to(device), data, k=2),
            nearest(x.to(device), data.to(device), k=2),
            nearest(images(4), data, judge().to(device)),
        ):
            assert found.index[:, 0].tolist() == expected.index[:, 0].tolist()

    def test_autoencoders(self, device, tmp_path):
        vae, x = shaken(VAE(SMALL_VAE)), images(6).batch(slice(None))[0]
        expected = reconstruct(vae, x)
        vae.to(device)
        x = x.to(device)
        q = vae.encode(x)
        for g in generators(device):
            z = q.sample(g)
            loss = vae_loss(x, vae.decode(z), q, 0.1)
            loss.backward()
            assert z.device == loss.device == device
        vae.standardise(z)
        vae.standardise(z, 0.1)
        same(vae.from_unit(vae.to_unit(z)), z.detach().cpu(), device)
        same(reconstruct(vae, x, 4), expected, device, 0.05)
        assert round_trips(vae, x, 2).device == device
        torch.testing.assert_close(
            psnr(x, expected.to(device)).cpu().double(),
            psnr(x.cpu(), expected).double(),
            atol=1e-3,
            rtol=1e-3,
        )
        latents = encode_all(vae, images(6), batch=4)
        assert (
            latents.to(device)
            .batch(torch.tensor([1, 2], device=device), torch.tensor([True, False], device=device))[
                0
            ]
            .device
            == device
        )

    def test_latents(self, device, tmp_path):
        vae = shaken(VAE(SMALL_VAE))
        vae.standardise(vae.encode(images(6).batch(slice(None))[0]).mean)
        save(vae, tmp_path / "vae.safetensors")
        config = LatentUNetConfig(
            shape=(4, 2, 2),
            widths=(16,),
            attention=(),
            head=16,
            vae=str(tmp_path / "vae.safetensors"),
        )
        model = Denoiser(shaken(LatentUNet(config)), Linear()).eval().to(device)
        z = generate(model, 3, 2, seed=0, y=1)
        assert latent.decode(model, z).device == model.net.decode(z).device == device
        x = images(3).batch(slice(None))[0]
        for at in (torch.device("cpu"), device):
            for g in generators(device):
                filled = latent_inpaint(
                    model,
                    vae.to(device),
                    x.to(device),
                    half(shape=(8, 8)).to(at),
                    uniform_grid(2),
                    ddim(),
                    generator=g,
                    y=1,
                )
                assert filled.device == device

    def test_masks(self, device):
        x, mask = images(3).batch(slice(None))[0], half(shape=(8, 8))
        for m in (mask, mask.to(device)):
            same(seam(x.to(device), m), seam(x, mask), device)
            for feather in (0, 2):
                same(
                    paste_back(x.flip(0).to(device), x.to(device), m, feather),
                    paste_back(x.flip(0), x, mask, feather),
                    device,
                )
            stepper = known_region(dpmpp_2m(), x[:1], m)
            model = unet().to(device)
            assert sample(model, torch.randn(3, 1, 8, 8, device=device), uniform_grid(2), stepper, y=1).device == device
        assert box(1, 1, 3, 3, (8, 8)).is_cpu

    @pytest.mark.parametrize("kind", cold.DEGRADATIONS)
    def test_cold(self, device, kind):
        degrade, x = cold.DEGRADATIONS[kind], images(6).batch(slice(None))[0]
        t = torch.linspace(0, 1, 6)
        for at in (0.3, torch.tensor(0.3), t): same(degrade(x.to(device), at), degrade(x, at), device)
        for at in (torch.tensor(0.3), t): same(degrade(x.to(device), at.to(device)), degrade(x, at), device)
        net = Denoiser(shaken(cold.Restorer(dataclasses.replace(TINY, n_labels=3))), Linear(), "x1").eval()
        for sampler in (cold.naive, cold.improved):
            same(
                cold.restore(net.to(device), x.to(device), kind, 3, sampler),
                cold.restore(net.cpu(), x, kind, 3, sampler),
                device,
                0.01,
            )

    def test_few_steps(self, device):
        teacher, x1, y = mlp(), points(), torch.arange(12) % 3
        for g in generators(device):
            student = copy.deepcopy(teacher).train().to(device)
            value = consistency_loss(
                student,
                student,
                classifier_free(teacher.to(device), 2.0),
                x1.to(device),
                steps=3,
                generator=g,
                y=y.to(device),
            )
            value.backward()
            assert value.device == device
        same(
            consistency_loss(
                student,
                student,
                teacher,
                x1.to(device),
                t=torch.linspace(0, 0.9, 12),
                x0=x1.flip(0).to(device),
                y=1,
            ),
            consistency_loss(
                student.cpu(),
                student,
                teacher.cpu(),
                x1,
                t=torch.linspace(0, 0.9, 12),
                x0=x1.flip(0),
                y=1,
            ),
            device,
        )
        pairs = teacher_pairs(unet().to(device), 5, 2.0, 2, part=3)
        assert pairs.x1.is_cpu and pairs.to(device).batch(torch.tensor([0, 1], device=device))[0].device == device

    def test_perceptual_loss(self, device):
        x = images(3).batch(slice(None))[0].to(device)
        assert perceptual_loss(judge().to(device), x, x.flip(0)).device == device

    def test_distances(self, device):
        x, y = points(20), points(20).flip(1)
        for f in (metrics.energy_distance, metrics.sliced_wasserstein, metrics.wasserstein2):
            assert (
                f(x.to(device), y.to(device))
                == pytest.approx(f(x, y), rel=1e-4)
                == pytest.approx(f(x.to(device), y), rel=1e-4)
            )

    def test_figures(self, device, tmp_path):
        import matplotlib.pyplot as plt

        x, labels, mixture = points(20).to(device), (torch.arange(20) % 3).to(device), running_mixture()
        on = GaussianMixture(mixture.means.to(device), mixture.stds.to(device), mixture.weights.to(device))
        xs = torch.randn(4, 5, 2, device=device)
        plots.show_samples(x, labels)
        plots.show_histogram(x[:, 0], lambda v: v.exp())
        plots.show_paths(xs, torch.linspace(0, 1, 4, device=device))
        plots.show_paths(xs[..., 0], torch.linspace(0, 1, 4, device=device))
        plots.show_curves({"a": (torch.arange(1, 5, device=device), torch.rand(4, device=device) + 0.1)}, slopes=True)
        plots.show_density(lambda v: on.log_prob(v.to(device)).exp(), n=20)
        plots.show_field(lambda v, t: v.to(device), 0.5)
        plots.compare(lambda v: on.log_prob(v.to(device)).exp(), lambda v: mixture.log_prob(v).exp())
        pictures = images(4).batch(slice(None))[0].to(device)
        plots.show_images(pictures)
        assert plots.tile(pictures).size == plots.tile(pictures.cpu()).size
        plots.save_grid(pictures, tmp_path / "grid.png")
        plt.close("all")

    def test_files(self, device, tmp_path):
        model = unet().to(device)
        save(model, tmp_path / "model.safetensors")
        again = load(tmp_path / "model.safetensors")
        assert {p.device for p in again.parameters()} == {torch.device("cpu")}

    def test_meta_tensors_tell_shapes(self):
        x, t = torch.empty(5, 1, 8, 8, device="meta"), torch.empty(5, device="meta")
        y = torch.zeros(5, dtype=torch.long, device="meta")
        assert (
            unet().to("meta").net(x, t, y).shape == x.shape
            and DenoiseNet(width=16).to("meta")(x, t).shape == x.shape
        )
        assert judge().to("meta")(x).shape == (5, 10)
        q = VAE(SMALL_VAE).to("meta").encode(x)
        assert q.mean.shape == (5, 4, 2, 2) and VAE(SMALL_VAE).to("meta").decode(q.mean).shape == x.shape


SHORT = dict(data="digits", images=96, batch=32, warmup=32, log_every=32, save_every=64, flip=False)


def recipe(name: str, folder: Path) -> object:
    """The smallest training of each kind."""
    if name == "denoiser": return dataclasses.replace(PRESETS["digits"], net=TINY, **SHORT, stages=(32,))
    if name == "flipped":
        return dataclasses.replace(
            PRESETS["digits"],
            net=dataclasses.replace(TINY, dropout=0.1),
            times="uniform",
            **SHORT | dict(flip=True)
        )
    if name == "vae": return VAERecipe(net=SMALL_VAE, stages=(32,), **SHORT)
    if name == "cold": return cold.ColdRecipe(net=dataclasses.replace(TINY, n_labels=3), stages=(32,), **SHORT)
    if name == "classifier": return ClassifierRecipe(net=judge().config, shift=1, **SHORT | dict(flip=True))
    save(shaken(VAE(SMALL_VAE)), folder / "vae.safetensors")
    if name == "latent":
        net = LatentUNetConfig(
            shape=(4, 2, 2),
            widths=(16,),
            attention=(),
            head=16,
            vae=str(folder / "vae.safetensors"),
        )
        return latent.LatentRecipe(net=net, stages=(32,), **SHORT | dict(flip=True))
    if name == "decoder":
        save(judge(), folder / "critic.safetensors")
        return latent.DecoderRecipe(
            vae=str(folder / "vae.safetensors"),
            critic=str(folder / "critic.safetensors"),
            stages=(32,),
            **SHORT
        )
    save(unet(), folder / "teacher.safetensors")
    make = few_step.ReflowRecipe if name == "reflow" else few_step.ConsistencyRecipe
    return make(
        teacher=str(folder / "teacher.safetensors"),
        w=2.0,
        pairs=40,
        pair_steps=2,
        kept=str(folder),
        stages=(32,),
        **SHORT
    )


class TestTraining:
    """Runs of `train` whose device is the accelerator."""

    @pytest.mark.parametrize(
        "name",
        [
            "denoiser",
            "flipped",
            "vae",
            "latent",
            "decoder",
            "cold",
            "reflow",
            "consistency",
            "classifier",
        ],
    )
    def test_train(self, device, name, tmp_path):
        config = recipe(name, tmp_path)
        model = train(config, tmp_path / "run", progress=name == "denoiser")
        assert {v.device for v in model.state_dict().values()} == {
            torch.device("cpu")
        }, "train hands back a model on the CPU"

    def test_resume(self, device, tmp_path):
        config = recipe("denoiser", tmp_path)
        train(config, tmp_path / "run", progress=False)
        train(dataclasses.replace(config, images=160), tmp_path / "run", resume=True, progress=False)

    def test_a_step_does_not_wait_for_the_device(self, world, tmp_path):
        for name in ("denoiser", "flipped"):
            run = Run(recipe(name, tmp_path), tmp_path, accelerate.Accelerator(mixed_precision="no"))
            for _ in range(2): run.step()  # the average begins with the second step
            world.syncs.clear()
            run.step()
            assert not world.syncs

    def test_sampling_waits_once_a_step_at_most(self, world):
        model, x = unet().to(world.device), torch.randn(2, 1, 8, 8, device=world.device)
        for stepper in (euler(), dpmpp_2m(), heun()):
            world.syncs.clear()
            sample(
                classifier_free(model, 2.0),
                x,
                uniform_grid(10),
                stepper,
                y=torch.tensor([1, 2], device=world.device),
            )
            assert sum(world.syncs.values()) <= 1, world.syncs  # the check of the input
