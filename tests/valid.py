"""Valid arguments for every public function and class: what `test_properties` changes one by one.

`CALLS` maps "module.name", and "module.Class.method", to a function that makes the arguments anew. An argument called
`self` is what the method is called on; it is not changed.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from helpers import rng
from PIL import Image
from torch import Tensor, nn

import diffusion_course as dc
from diffusion_course import (
    checkpoints,
    classifier,
    cold,
    discrete,
    evaluation,
    few_step,
    flow_maps,
    folders,
    generation,
    images,
    inpainting,
    latent,
    matching,
    predictions,
    samplers,
    scenes,
    style,
    textures,
    training,
    transformer,
    unet,
    vae,
    widgets,
)

CALLS: dict[str, Callable[[], dict[str, Any]]] = {}


def valid(name: str, /, **make: Callable[[], Any] | Any) -> None:
    """Enter the arguments of a public name; functions of this file without arguments are called each time."""

    def arguments() -> dict[str, Any]:
        torch.manual_seed(0)  # of layers that have no seed
        return {k: v() if v in MADE else v for k, v in make.items()}

    CALLS[name] = arguments


MADE: list[Callable] = []


def made(f: Callable[[], Any]) -> Callable[[], Any]:
    """Mark a function whose result is the argument."""
    MADE.append(f)
    return f


# ---- what arguments are made of: small, seeded, float32 -----


def floats(*shape: int, seed: int = 0) -> Callable[[], Tensor]:
    """Standard normal numbers."""
    return made(lambda: torch.randn(*shape, generator=rng(seed)))


def within(*shape: int, seed: int = 0) -> Callable[[], Tensor]:
    """Uniform numbers in (0, 1), not at its ends."""
    return made(lambda: 0.1 + 0.8 * torch.rand(*shape, generator=rng(seed)))


def pixels(*shape: int, seed: int = 0) -> Callable[[], Tensor]:
    """Images in [-1, 1]."""
    return made(lambda: torch.rand(*shape, generator=rng(seed)) * 2 - 1)


def whole(*values: int) -> Callable[[], Tensor]:
    """Whole numbers (n,)."""
    return made(lambda: torch.tensor(values))


X, X0, T = floats(6, 2), floats(6, 2, seed=1), within(6)
Y = whole(0, 1, 0, 1, 1, 0)
PIX, PIX0 = pixels(2, 1, 8, 8), floats(2, 1, 8, 8, seed=1)
FEATURES, FEATURES1 = floats(12, 3), floats(12, 3, seed=1)
TINY = unet.UNetConfig(
    shape=(1, 8, 8), widths=(16, 16), attention=(4,), head=16, patch=1, n_labels=3
)
TINY_VAE = vae.VAEConfig(
    shape=(1, 8, 8), latent=(2, 4, 4), widths=(16,), blocks=(0,), blocks_back=(0,)
)
TINY_JUDGE = classifier.ClassifierConfig(
    (1, 8, 8), stem=8, widths=(8, 16), blocks=(0, 1), n_labels=3
)
BETAS = made(lambda: dc.linear_betas(10, 0.01, 0.3))


@made
@cache
def mixture() -> dc.GaussianMixture:
    return dc.GaussianMixture([[1.0, 0.0], [-1.0, 0.5]], [0.3, 0.4], labels=[0, 1])


@made
@cache
def linear() -> dc.Schedule:
    return dc.Linear()


@made
@cache
def ddpm() -> dc.DDPM:
    return dc.DDPM(BETAS())


@made
def exact() -> dc.ExactDenoiser:
    return dc.ExactDenoiser(mixture(), dc.Linear())


@made
def learned() -> dc.Denoiser:
    return dc.Denoiser(dc.MLP(2, 8, 1, n_labels=2), dc.Linear()).eval()


@made
def exact_ddpm() -> dc.ExactDenoiser:
    return dc.ExactDenoiser(mixture(), ddpm())


@cache
def _net() -> nn.Module:
    net = dc.UNet(TINY).eval().requires_grad_(False)
    for k, p in enumerate(net.parameters()):
        p.copy_(torch.randn(p.shape, generator=rng(k)) / max(1, p[0].numel()) ** 0.5)
    return net


@made
def painter() -> dc.Denoiser:
    return dc.Denoiser(_net(), dc.Linear())


@made
def prediction() -> dc.Prediction:
    return exact()(X(), T())


@made
@cache
def judge() -> classifier.Classifier:
    return classifier.Classifier(TINY_JUDGE).eval()


@made
@cache
def coder() -> vae.VAE:
    return vae.VAE(TINY_VAE).eval()


@made
@cache
def pictures() -> images.Images:
    data = images.digits()
    return images.Images(data.x[:12], data.y[:12] % 3, ("a", "b", "c"))


@made
def codes() -> vae.DiagonalGaussian:
    return vae.DiagonalGaussian(floats(2, 2, 4, 4)(), floats(2, 2, 4, 4, seed=1)())


@made
def mask() -> Tensor:
    return inpainting.half("right", (8, 8))


GENERATOR = made(rng)
STEPPER, STOCHASTIC = made(dc.heun), made(dc.ancestral)
GRID = made(lambda: dc.uniform_grid(3))
FOLDER = made(lambda: Path(tempfile.mkdtemp(dir=SCRATCH[0])))
SCRATCH: list[str] = []  # where files go; the test sets it


def field(x: Tensor, t: Tensor) -> Tensor:
    return -x * (1 + t)


def logits(x: Tensor, t: Tensor) -> Tensor:
    return torch.stack([x.flatten(1).sum(1), -x.flatten(1).sum(1)], 1)


def one_step(x: Tensor, t: float, s: float) -> Tensor:
    return x + (s - t) * x


# ---- lessons -----

valid("distributions.toy_names")
valid("distributions.toy", name="moons", n=5, seed=1)
valid(
    "distributions.GaussianMixture",
    means=floats(3, 2),
    stds=within(3),
    weights=within(3),
    labels=whole(0, 1, 1),
)
valid("distributions.running_mixture")
for method in ("log_prob", "responsibilities", "score"):
    valid(f"distributions.GaussianMixture.{method}", self=mixture, x=X, y=Y)
valid("distributions.GaussianMixture.log_weights", self=mixture, n=6, y=Y)
valid("distributions.GaussianMixture.label_probs", self=mixture, x=X)
for method in ("sample", "sample_labelled"):
    valid(f"distributions.GaussianMixture.{method}", self=mixture, n=4, generator=GENERATOR)

for step in ("euler_step", "midpoint_step", "heun_step", "rk4_step"):
    valid(f"solvers.{step}", u=field, x=X, t=0.25, s=0.5)
valid("solvers.em_step", u=field, g=0.5, x=X, t=0.25, s=0.5, generator=GENERATOR)
valid("solvers.integrate", step=one_step, x=X, ts=GRID)
valid("solvers.as_times", ts=GRID)
valid("solvers.standard_normal", x=X, generator=GENERATOR)

valid("schedules.per_sample", a=T, x=X)
valid("schedules.combine", a=T, x=X, b=T, y=X0)
valid("schedules.as_time", t=T)
valid("schedules.Schedule")
valid("schedules.marginal", mixture=mixture, schedule=linear, t=0.5)
valid("schedules.VariancePreserving", beta_min=0.1, beta_max=20.0)
valid("schedules.VarianceExploding", sigma_min=0.01, sigma_max=50.0)
valid("schedules.DDPM", betas=BETAS)
for name, schedule in dict(
    Linear=dc.Linear(),
    Cosine=dc.Cosine(),
    VariancePreserving=dc.VariancePreserving(),
    VarianceExploding=dc.VarianceExploding(),
    DDPM=ddpm(),
).items():
    if name in ("Linear", "Cosine"):
        valid(f"schedules.{name}")
    for method in ("alpha", "sigma", "d_alpha", "d_sigma", "log_snr"):
        valid(f"schedules.{name}.{method}", self=schedule, t=T)
    for method in ("weights", "slopes"):
        valid(f"schedules.{name}.{method}", self=schedule, t=0.5)
    valid(f"schedules.{name}.t_from_log_snr", self=schedule, l=T)
    valid(f"schedules.{name}.mix", self=schedule, x1=X, eps=X0, t=T)
valid("schedules.DDPM.t_of", self=ddpm, i=Y)
valid("schedules.DDPM.index_of", self=ddpm, t=T)

for kind in predictions.KINDS:
    valid(f"predictions.to_prediction [{kind}]", y=X, kind=kind, x=X0, t=T, schedule=linear)
    valid(f"predictions.Prediction.target [{kind}]", self=prediction, kind=kind, sigma_data=0.5)
valid("predictions.Prediction", x=X, t=T, schedule=linear, x1=X0, eps=X)
valid("predictions.Prediction.mix", self=prediction, p=0.5, q=0.5)
valid("predictions.Prediction.with_x1", self=prediction, x1=X)
valid("predictions.target_row", kind="velocity", t=T, schedule=linear, sigma_data=0.5)
valid(
    "predictions.Denoiser",
    net=made(lambda: dc.MLP(2, 8, 1)),
    schedule=linear,
    kind="velocity",
    sigma_data=0.5,
)
valid("predictions.Denoiser.forward", self=learned, x=X, t=T, y=Y)
valid("predictions.Denoiser.singular", self=learned, t=0.5)
valid("predictions.ModelWrapper", model=learned)
valid(
    "predictions.ModelWrapper.forward", self=made(lambda: dc.ModelWrapper(learned())), x=X, t=T, y=Y
)
for name in (
    "has_cost",
    "network",
    "target_kind",
    "n_labels",
    "null_label",
    "n_cond",
    "sample_shape",
    "device_of",
    "eval_mode",
):
    valid(f"predictions.{name}", model=learned)
valid("predictions.latent_network", model=learned)
for name in ("singular", "cost"):
    valid(f"predictions.{name}", model=learned, t=0.5)
valid("predictions.differentiable", x=X)
valid("predictions.without_inference", value=X)
valid("predictions.ExactDenoiser", mixture=mixture, schedule=linear)
valid("predictions.ExactDenoiser.__call__", self=exact, x=X, t=T, y=Y)
valid(
    "predictions.EmpiricalDenoiser",
    data=floats(8, 2),
    schedule=linear,
    labels=whole(0, 1, 0, 1, 0, 1, 0, 1),
)
valid(
    "predictions.EmpiricalDenoiser.__call__",
    self=made(lambda: dc.EmpiricalDenoiser(floats(8, 2)(), dc.Linear(), torch.arange(8) % 2)),
    x=X,
    t=T,
    y=Y,
)

valid("matching.MLP", dim=2, width=8, depth=1, n_labels=2, seed=0, n_cond=1)
valid(
    "matching.MLP.forward",
    self=made(lambda: dc.MLP(2, 8, 1, n_labels=2, n_cond=1)),
    x=X,
    t=T,
    y=Y,
    cond=floats(6, 1),
)
valid("matching.ConditionEmbedding", n=2, width=8)
valid(
    "matching.ConditionEmbedding.forward",
    self=made(lambda: matching.ConditionEmbedding(2, 8)),
    cond=floats(6, 2),
    x=X,
)
valid("matching.matching_loss", model=learned, x1=X, t=T, x0=X0, generator=GENERATOR, y=Y)
valid("matching.one_thread_if_small", train=dc.fit)
valid("matching.drop_conditions", y=Y, cond=floats(6, 1), drop=0.5, null=2, generator=GENERATOR)
valid("matching.History", model=learned, loss=floats(3))
valid(
    "matching.fit",
    model=learned,
    data=X,
    steps=2,
    labels=Y,
    drop=0.1,
    batch_size=3,
    lr=1e-3,
    seed=0,
    progress=False,
)

valid("sde.diffusion", schedule=linear, t=T, churn=1.0)
valid("sde.drift", prediction=prediction, churn=1.0, backwards=False)
valid("sde.sde_step", model=exact, churn=1.0, x=X, t=0.25, s=0.5, noise=X0)
valid("sde.langevin_correct", model=exact, x=X, t=0.5, steps=2, step=0.1, generator=GENERATOR)

valid("samplers.Recorder", model=exact, generator=GENERATOR)
valid(
    "samplers.Recorder.noise",
    self=made(lambda: samplers.Recorder(exact(), generator=rng())),
    x=X,
    t=0.25,
    s=0.5,
)
valid("samplers.Recorder.singular", self=made(lambda: samplers.Recorder(exact())), t=0.5)
valid(
    "samplers.Recorder.step",
    self=made(lambda: samplers.Recorder(exact())),
    stepper=STEPPER,
    x=X,
    t=0.25,
    s=0.5,
)
valid(
    "samplers.Recorder.walk",
    self=made(lambda: samplers.Recorder(exact())),
    stepper=STEPPER,
    x=X,
    ts=GRID,
)
for name in (
    "handling_singular_ends",
    "handles_singular_ends",
    "ending_with_data",
    "ends_with_data",
):
    valid(f"samplers.{name}", stepper=STEPPER)
valid("samplers.sample", model=exact, x=X, ts=GRID, stepper=STEPPER, y=Y)
valid(
    "samplers.trajectory", model=exact, x=X, ts=GRID, stepper=STOCHASTIC, generator=GENERATOR, y=Y
)
valid("samplers.Trajectory", ts=GRID, xs=floats(4, 6, 2), x1s=floats(4, 6, 2), nfe=3)
for name in ("euler", "midpoint", "heun", "rk4", "dpmpp_2m"):
    valid(f"samplers.{name}")
valid("samplers.euler_maruyama", churn=1.0)
valid("samplers.ddim", eta=0.5)
valid("samplers.ancestral", variance="posterior")
valid("samplers.adaptive", rtol=1e-3, atol=1e-3)
valid("samplers.uniform_grid", n=3, start=0.0, stop=1.0)
valid("samplers.karras_grid", n=3, schedule=linear, rho=7.0, ratio_min=0.002, ratio_max=80.0)
valid("samplers.log_snr_grid", n=3, schedule=linear, ratio_min=0.002, ratio_max=80.0)
valid("samplers.trailing_grid", n=3, schedule=ddpm)
valid("samplers.BrownianPath", x=X, n=16, seed=0)
valid("samplers.with_langevin", stepper=STEPPER, steps=1, step=0.05)

valid("ddpm.linear_betas", n=10, first=1e-4, last=0.02)
valid("ddpm.cosine_betas", n=10, offset=0.008, largest=0.999)
valid("ddpm.q_sample", x1=X, i=whole(0, 1, 2, 3, 4, 9), schedule=ddpm, eps=X0)
valid("ddpm.finish_noising", betas=BETAS, alpha=0.001)
valid("ddpm.ddpm_loss", model=exact_ddpm, x1=X, generator=GENERATOR)
valid("ddpm.posterior", x1=X, x=X0, i=whole(0, 1, 2, 3, 4, 9), schedule=ddpm)
valid("ddpm.invert", model=exact, x1=X, ts=GRID, stepper=STEPPER, y=Y)

guided = made(lambda: dc.classifier_free(learned(), 2.0))
helped = made(lambda: dc.classifier_guided(exact(), logits, 1.0))
valid("guidance.classifier_free", model=learned, w=2.0, null=2, interval=(0.1, 0.9), keep="")
valid("guidance.ClassifierFree", model=learned, w=2.0, null=2, interval=(0.1, 0.9), keep="")
valid("guidance.ClassifierFree.forward", self=guided, x=X, t=T, y=Y)
valid("guidance.ClassifierFree.cost", self=guided, t=0.5)
valid("guidance.classifier_guided", model=exact, classifier=logits, w=1.0)
valid("guidance.ClassifierGuided", model=exact, classifier=logits, w=1.0)
valid("guidance.ClassifierGuided.forward", self=helped, x=X, t=T, y=Y)
valid("guidance.ClassifierGuided.cost", self=helped, t=0.5)
valid("guidance.ClassifierGuided.singular", self=helped, t=0.5)
valid("guidance.tilted_log_prob", mixture=mixture, y=1, w=2.0)

plain_net = made(lambda: dc.MLP(2, 8, 1))
valid("edm.preconditioning", t=T, schedule=linear, sigma_data=0.5)
valid("edm.ScaledInput", net=plain_net, schedule=linear, sigma_data=0.5)
valid(
    "edm.ScaledInput.forward",
    self=made(
        lambda: __import__("diffusion_course.edm").edm.ScaledInput(dc.MLP(2, 8, 1), dc.Linear())
    ),
    x=X,
    t=T,
)
valid("edm.preconditioned", net=plain_net, schedule=linear, sigma_data=0.5)
valid("edm.log_normal_times", n=4, schedule=linear, mean=-1.2, std=1.2, generator=GENERATOR)
valid("edm.edm_loss", model=learned, x1=X, mean=-1.2, std=1.2, generator=GENERATOR)
valid("edm.edm_heun", gamma=0.1, ratios=(0.1, 10.0), noise=1.0)

valid("couplings.pair", x0=X0, x1=X, labels=Y)
valid("couplings.ot_matching_loss", model=learned, x1=X, y=Y, generator=GENERATOR)
valid("couplings.reflow_pairs", model=exact, x0=X0, steps=2, stepper=STEPPER, batch_size=4, y=Y)
valid("couplings.path_energy", model=exact, x0=X0, steps=2, stepper=STEPPER, y=Y)

valid("images.to_float", x=made(lambda: pictures().x[:2]))
valid("images.to_bytes", x=PIX)
valid(
    "images.Images",
    x=made(lambda: pictures().x[:2]),
    y=whole(0, 1),
    names=("a", "b"),
    cond=floats(2, 1),
)
valid(
    "images.Images.batch",
    self=pictures,
    i=whole(0, 1),
    flip=made(lambda: torch.tensor([True, False])),
)
valid("images.Images.to", self=pictures, device="cpu")
valid("images.digits", split="train")
valid("images.cifar10_at_hand", split="train")
valid(
    "images.image_folder",
    folder=made(lambda: painted()),
    split="train",
    size=8,
    channels=1,
    on_error="stop",
    progress=False,
)
valid("images.radial_spectrum", x=PIX)
valid("images.sinusoidal", t=T, width=8)
valid("images.DenoiseNet", shape=(1, 8, 8), width=8, time=True, n_labels=2, seed=0)
valid(
    "images.DenoiseNet.forward",
    self=made(lambda: images.DenoiseNet((1, 8, 8), 8, n_labels=3)),
    x=PIX,
    t=within(2),
    y=whole(0, 1),
)
valid("images.check_input", x=PIX, t=within(2), shape=(1, 8, 8), weight=floats(1))
valid("images.digit_classifier")

valid("unet.TimeEmbedding", width=8, kind="sinusoidal")
valid("unet.TimeEmbedding.forward", self=made(lambda: unet.TimeEmbedding(16)), t=T)
valid("unet.ResidualBlock", width_in=16, width=16, embedding=8, dropout=0.0, modulate=True)
valid(
    "unet.ResidualBlock.forward",
    self=made(lambda: unet.ResidualBlock(16, 16, 8)),
    x=floats(2, 16, 4, 4),
    e=floats(2, 8),
)
valid("unet.Attention", width=16, head=8)
valid("unet.Attention.forward", self=made(lambda: unet.Attention(16, 8)), x=floats(2, 16, 4, 4))
valid("unet.Upsample", width=16)
valid("unet.Upsample.forward", self=made(lambda: unet.Upsample(16)), x=floats(2, 16, 4, 4))
valid("unet.part_costs", config=made(lambda: TINY))
valid("unet.UNetConfig", **vars(TINY))
valid("unet.UNet", config=made(lambda: TINY), seed=0)
valid("unet.UNet.forward", self=made(_net), x=PIX, t=within(2), y=whole(0, 2))

valid("training.runs_bf16", device=made(lambda: torch.device("cpu")))
valid("training.dtype_of_products", device=made(lambda: torch.device("cpu")), precision="auto")
valid("training.autocast", device=made(lambda: torch.device("cpu")), precision="auto")
valid("training.is_folder", data="digits")
valid("training.images_of", data="digits", split="test", shape=(1, 8, 8))
valid("training.batch_indices", n=20, batch=4, step=3, seed=0)
valid("training.label_names", info=made(lambda: {"labels": ["a", "b"]}))
valid(
    "training.check_previews",
    recipe=made(lambda: training.PRESETS["digits"]),
    shape=(1, 8, 8),
    of_test_images=True,
)

valid("generation.noise", model=painter, n=2, seed=0, shape=(1, 8, 8))
valid("generation.InPrecision", model=painter, precision="fp32")
valid(
    "generation.InPrecision.forward",
    self=made(lambda: generation.InPrecision(painter(), "fp32")),
    x=PIX,
    t=within(2),
    y=whole(0, 1),
)
valid("generation.stepper_of", sampler="euler_maruyama", churn=0.5)
valid("generation.Preview", step=1, t=0.5, x=PIX, x1=PIX, nfe=3)
generating = dict(
    model=painter,
    n=2,
    steps=2,
    sampler="euler_maruyama",
    guidance=1.5,
    seed=0,
    churn=0.5,
    grid="uniform",
    precision="fp32",
    interval=(0.1, 0.9),
    shape=(1, 8, 8),
    start=PIX,
    strength=0.6,
    y=whole(0, 1),
)
valid("generation.generate", **generating, batch=2, progress=False)
valid("generation.previews", model=painter, n=2, steps=2, seed=0, precision="fp32", y=whole(0, 1))
valid("generation.as_images", model=painter, x=PIX)
valid("generation.as_samples", model=painter, images=PIX)
valid("generation.read_image", path=made(lambda: one_picture()), shape=(1, 8, 8))
valid(
    "generation.sample_to_files",
    model=painter,
    config=made(
        lambda: generation.SampleConfig(
            n=2,
            steps=1,
            labels="a",
            guidance=1.0,
            precision="fp32",
            out=str(Path(SCRATCH[0]) / "samples.png"),
        )
    ),
    progress=False,
    names=("a", "b", "c"),
)

score = partial(evaluation.Score, "Fréchet distance", 1.0, 10, "x")
valid("evaluation.features", x=PIX, extractor=judge, batch=2)
valid("evaluation.label_agreement", classifier=judge, x=PIX, y=whole(0, 1), batch=2)
valid("evaluation.name_of", extractor=judge)
valid("evaluation.as_bytes", x=PIX)
valid("evaluation.frechet_distance", a=FEATURES, b=FEATURES1)
valid("evaluation.kernel_distance", a=FEATURES, b=FEATURES1, rows=5)
valid("evaluation.precision_recall", real=FEATURES, fake=FEATURES1, k=3, rows=5)
valid(
    "evaluation.Score",
    name="Fréchet distance",
    value=1.0,
    n=10,
    extractor="x",
    floor=0.5,
    error=0.1,
)
valid("evaluation.compare_features", real=FEATURES, fake=FEATURES1, extractor="x")
valid("evaluation.split", n=5, among=12, seed=0)
valid("evaluation.real_scores", real=floats(24, 3), n=12, extractor="x", seed=0)
valid(
    "evaluation.evaluate",
    model=painter,
    classifier=judge,
    real=pictures,
    n=4,
    steps=1,
    sampler="ddim",
    seed=0,
    batch=2,
    progress=False,
)
valid("evaluation.likelihood_grid", n=3, start=1.0, stop=0.0)
valid("evaluation.log_prob", model=exact, x=X, ts=3, probe=X0, y=Y)
valid(
    "evaluation.bits_per_dim",
    model=painter,
    x=made(lambda: pictures().x[:2]),
    ts=2,
    probes=1,
    batch=2,
    generator=GENERATOR,
    y=whole(0, 1),
)
valid("evaluation.information_rate", model=exact, x1=X, log_snr=0.5, noise=X0, y=Y)
valid(
    "evaluation.Nearest",
    distance=floats(2, 1),
    index=whole(0, 1),
    flipped=made(lambda: torch.tensor([True, False])),
)
valid("evaluation.nearest", x=PIX, data=made(lambda: pictures()), k=2, flips=True, batch=5)

valid("vae.DiagonalGaussian", mean=floats(2, 2, 4, 4), log_var=floats(2, 2, 4, 4, seed=1))
valid("vae.DiagonalGaussian.sample", self=codes, generator=GENERATOR)
valid("vae.DiagonalGaussian.kl", self=codes)
valid("vae.VAEConfig", **vars(TINY_VAE))
valid("vae.Block", width=16)
valid("vae.Block.forward", self=made(lambda: vae.Block(16)), x=floats(2, 16, 4, 4))
valid("vae.VAE", config=made(lambda: TINY_VAE), seed=0)
valid("vae.VAE.encode", self=coder, x=PIX)
for method in ("decode", "to_unit", "from_unit"):
    valid(f"vae.VAE.{method}", self=coder, z=floats(2, 2, 4, 4))
valid(
    "vae.VAE.standardise", self=made(lambda: vae.VAE(TINY_VAE)), z=floats(2, 2, 4, 4), fraction=0.5
)
valid("vae.vae_loss", x=PIX, x_hat=pixels(2, 1, 8, 8, seed=3), q=codes, kl=1e-3)
valid("vae.psnr", a=PIX, b=pixels(2, 1, 8, 8, seed=3))
valid("vae.reconstruct", vae=coder, x=PIX, batch=2)
valid("vae.round_trips", vae=coder, x=PIX, n=2, rounding=True)

valid(
    "latent.Latents",
    mean=floats(2, 2, 2, 4, 4),
    std=within(2, 2, 2, 4, 4),
    y=whole(0, 1),
    names=("a", "b"),
)
valid(
    "latent.Latents.batch", self=made(lambda: latent.encode_all(coder(), pictures())), i=whole(0, 1)
)
valid("latent.encode_all", vae=coder, images=pictures, batch=5)
valid("latent.checksum", vae=coder)
valid("latent.DecoderConfig", **vars(TINY_VAE), code=3)
valid("latent.Decoder", config=made(lambda: latent.DecoderConfig(**vars(TINY_VAE))), seed=0)
valid(
    "latent.Decoder.forward",
    self=made(lambda: latent.Decoder(latent.DecoderConfig(**vars(TINY_VAE)))),
    z=floats(2, 2, 4, 4),
)
valid(
    "latent.LatentUNetConfig",
    **{**vars(TINY), "shape": (2, 4, 4), "attention": (4,)},
    vae="vae-small",
    decoder="",
)
valid("latent.decode", model=coder, z=floats(2, 2, 4, 4), batch=2)
valid("textures.Textures.features", self=made(lambda: textures.Textures()), x=PIX)
valid("latent.perceptual_loss", critic=judge, x=PIX, x_hat=pixels(2, 1, 8, 8, seed=3))

student = made(lambda: few_step.FlowEnd(learned(), steps=2))
valid("few_step.FlowEnd", model=learned, steps=2, stepper=STEPPER)
valid("few_step.FlowEnd.forward", self=student, x=X, t=0.5, y=Y)
valid("few_step.FlowEnd.cost", self=student, t=0.5)
valid("few_step.FlowEnd.singular", self=student, t=0.5)
valid("few_step.consistency")
valid(
    "few_step.consistency_loss",
    student=learned,
    target=learned,
    teacher=learned,
    x1=X,
    steps=4,
    t=T,
    x0=X0,
    huber=0.03,
    generator=GENERATOR,
    y=Y,
)
valid("few_step.Pairs", x0=PIX0, x1=PIX, y=whole(0, 1))
valid(
    "few_step.Pairs.batch",
    self=made(lambda: few_step.Pairs(PIX0(), PIX(), torch.tensor([0, 1]))),
    i=whole(0, 1),
)
valid(
    "few_step.teacher_pairs", teacher=painter, n=3, w=1.0, steps=2, seed=0, part=2, progress=False
)



@made
def mapped() -> dc.Denoiser:
    net = flow_maps.TwoTimes(dc.MLP(2, 8, 1, n_labels=2, n_cond=1), fresh=False)
    return dc.Denoiser(net, dc.Linear()).eval()


MARKS = floats(2, 3, 1, 8, 8)
jumps = dict(model=mapped, x1=X, teacher=learned, t=made(lambda: 0.5 * T()), s=made(lambda: 0.5 + 0.5 * T()), x0=X0,
             same=0.5, robust=0.01, generator=GENERATOR, y=Y)
finely = made(lambda: flow_maps.ExactFlowMap(learned(), steps=2))
valid("flow_maps.mean_velocity", model=mapped, x=X, t=0.3, s=0.7, y=Y)
valid("flow_maps.ExactFlowMap", model=learned, steps=2)
valid("flow_maps.ExactFlowMap.forward", self=finely, x=X, t=0.3, s=0.7, y=Y)
valid("flow_maps.ExactFlowMap.cost", self=finely, t=0.5)
valid("flow_maps.TwoTimes", net=made(lambda: dc.MLP(n_cond=1)), fresh=True)
valid("flow_maps.TwoTimes.forward", self=made(lambda: mapped().net), x=X, t=T, s=0.7, y=Y)
valid("flow_maps.two_times", model=learned)
valid("flow_maps.jump")
valid("flow_maps.draw_times", n=4, same=0.5, first=0.2, generator=GENERATOR, device="cpu")
valid("flow_maps.mean_flow_loss", **jumps)
valid("flow_maps.composition_loss", **jumps, step=0.1)
valid("flow_maps.path_loss", model=mapped, x=X, t=made(lambda: 0.5 * T()), end=X0, v=X0, robust=0.01, y=Y,
      s=made(lambda: torch.where(torch.arange(6) < 3, 0.5 * T(), 0.5 + 0.5 * T())))
valid("flow_maps.Paths", xs=MARKS, y=whole(0, 1))
valid("flow_maps.Paths.batch", self=made(lambda: flow_maps.Paths(MARKS(), torch.tensor([0, 1]))), i=whole(0, 1))
valid("flow_maps.teacher_paths", teacher=painter, n=3, w=1.0, steps=2, marks=2, seed=0, part=2, progress=False)

valid("inpainting.as_mask", mask=mask, x=PIX)
valid("inpainting.half", side="left", shape=(8, 8))
valid("inpainting.box", top=1, left=2, height=3, width=4, shape=(8, 8))
valid("inpainting.brush", points=((1.0, 2.0), (3.0, 4.0)), radius=1.0, shape=(8, 8))
valid("inpainting.known_region", stepper=STEPPER, x1=PIX, mask=mask)
valid("inpainting.noised_again", schedule=linear, x=PIX, s=0.6, t=0.4, noise=PIX0)
valid("inpainting.resampling", stepper=STEPPER, x1=PIX, mask=mask, repeats=2, jump=1)
valid("inpainting.reconstruction_guided", model=painter, x1=PIX, mask=mask, weight=1.0)
valid("inpainting.ReconstructionGuided", model=painter, x1=PIX, mask=mask, weight=1.0)
rebuilt = made(lambda: inpainting.reconstruction_guided(painter(), PIX(), mask()))
valid("inpainting.ReconstructionGuided.forward", self=rebuilt, x=PIX0, t=0.5, y=whole(0, 1))
valid("inpainting.ReconstructionGuided.cost", self=rebuilt, t=0.5)
valid("inpainting.ReconstructionGuided.singular", self=rebuilt, t=0.5)
valid("inpainting.seam", x=PIX, mask=mask)
valid(
    "inpainting.paste_back", edited=PIX, original=pixels(2, 1, 8, 8, seed=3), mask=mask, feather=2
)
valid("inpainting.crop_around", mask=mask, margin=1, size=(8, 8))
valid("inpainting.latent_mask", mask=mask, cells=(4, 4))
latent_painter = made(
    lambda: dc.Denoiser(
        dc.UNet(
            unet.UNetConfig(
                shape=(2, 4, 4), widths=(16,), attention=(), head=16, patch=1, n_labels=0
            )
        ).eval(),
        dc.Linear(),
    )
)
valid(
    "inpainting.latent_inpaint",
    model=latent_painter,
    vae=coder,
    x=PIX,
    mask=mask,
    ts=GRID,
    stepper=STEPPER,
    paste=True,
    generator=GENERATOR,
)

valid("cold.Blur", width=0.1)
valid("cold.Blur.__call__", self=made(cold.Blur), x1=PIX, t=within(2))
valid("cold.Blur.sigma", self=made(cold.Blur), t=T)
valid("cold.Masking", seed=0)
valid("cold.Masking.__call__", self=made(cold.Masking), x1=PIX, t=within(2))
valid("cold.Masking.mask", self=made(cold.Masking), t=T, height=8, width=8)
valid("cold.Pixelate")
valid("cold.Pixelate.__call__", self=made(cold.Pixelate), x1=PIX, t=within(2))
valid("cold.Pixelate.block", self=made(cold.Pixelate), t=T, side=8)
restorer = made(
    lambda: dc.Denoiser(
        cold.Restorer(unet.UNetConfig(**{**vars(TINY), "n_labels": 3})).eval(), dc.Linear(), "x1"
    )
)
valid("cold.Restorer", config=made(lambda: TINY), seed=0)
valid("cold.naive", degrade=made(cold.Blur))
valid("cold.improved", degrade=made(cold.Blur))
valid("cold.restore", model=restorer, x=PIX, kind="blur", steps=2, start=0.5)

valid("clinic.normals", seed=3)
valid("clinic.Chart", picture=made(lambda: Image.new("RGB", (4, 4))), samples=X, real=X0)
valid("your_own.draw_letter", letter="A", font="DejaVuSans", slant=0.1, weight=1, side=16)
valid("your_own.write_letters", folder=FOLDER, letters="AK", each=20, seed=0, inverted=False)

# ---- toolbox -----

valid(
    "checkpoints.write_tensors",
    path=made(lambda: Path(SCRATCH[0]) / "t.safetensors"),
    tensors=made(lambda: {"a": X()}),
    about=made(lambda: {"b": 1}),
)
valid("checkpoints.read_tensors", path=made(lambda: checkpoints.WEIGHTS / "digits.safetensors"))
valid("checkpoints.register", cls=made(lambda: type("Registered", (nn.Module,), {})), config=None)
valid(
    "checkpoints.save",
    model=learned,
    path=made(lambda: Path(SCRATCH[0]) / "m.safetensors"),
    half=True,
    note="x",
)
valid("checkpoints.shipped", denoisers=True)
valid("checkpoints.load", name_or_path="digits", device="cpu")
valid("checkpoints.info", name_or_path="digits")

valid("classifier.ClassifierConfig", **vars(TINY_JUDGE))
valid("classifier.Classifier", config=made(lambda: TINY_JUDGE), seed=0)
for method in ("maps", "features", "forward"):
    valid(f"classifier.Classifier.{method}", self=judge, x=PIX)
valid("classifier.shifted", x=PIX, max_shift=2, generator=GENERATOR)

valid("expect.described", x=X)
valid("expect.having", x=X)
valid("expect.short", value="x")
valid("expect.whole", name="n", value=3, least=1, most=5, of="steps")
valid("expect.number", name="w", value=0.5, low=0.0, high=1.0, expected="a fraction")
valid("expect.as_scalar", value=0.5)
valid("expect.as_floats", a=X)
valid("expect.as_double", a=X)
valid("expect.one_of", name="grid", value="a", options=("a", "b"))
valid("expect.floats", name="x", x=X)
valid("expect.finite", name="x", x=X)
valid("expect.unit_range", name="x", x=PIX, right="-1 to 1")
valid("expect.same_shape", name="x", x=X, like_name="y", like=X0)
valid("expect.one_or_each", name="t", a=T, x=X)
valid("expect.as_labels", y=Y, n_labels=2, x=X)
valid("expect.as_cond", cond=floats(6, 1), n_cond=1, x=X)
valid("expect.as_whole_numbers", name="y", y=Y)
valid("expect.device", name="cpu")
valid("expect.tensor", name="x", x=X)
valid("expect.floating", name="x", x=X)
valid("expect.one_time", t=0.5)
valid("expect.pair", name="view", value=(0.0, 1.0), low=0.0, expected="two numbers")
valid("expect.sizes", name="shape", value=(8, 8), of="height, width")
valid("expect.as_index", name="i", i=whole(0, 1), n=4)

valid(
    "files.file_format", path="a.png", formats=made(lambda: {"": "png", ".png": "png"}), name="path"
)

valid("folders.list_folder", folder=made(lambda: painted()))
valid("folders.read_image", path=made(lambda: one_picture()), size=8)
valid("folders.read_attributes", folder=made(lambda: painted()))
valid(
    "folders.read_folder",
    folder=made(lambda: painted()),
    size=8,
    channels=1,
    on_error="stop",
    progress=False,
)
valid(
    "folders.FolderImages",
    x=made(lambda: torch.zeros(4, 1, 8, 8, dtype=torch.uint8)),
    y=whole(0, 0, 1, 1),
    names=("a", "b"),
    held_out=2,
    notes=(),
)

valid("metrics.energy_distance", x=X, y=X0)
valid("metrics.sliced_wasserstein", x=X, y=X0, n_projections=5, seed=0)
valid("metrics.wasserstein2", x=X, y=X0)
valid("metrics.strays", x=X, log_prob=made(lambda: mixture().log_prob), real=X0, level=0.9)
valid(
    "metrics.width",
    x=X,
    means=floats(2, 2),
    stds=within(2),
    responsibilities=made(lambda: mixture().responsibilities(X())),
)
valid("metrics.Floor", mean=1.0, std=0.1, q99=1.2, n=10, against=10)
valid(
    "metrics.real_floor",
    metric=made(lambda: __import__("diffusion_course.metrics").metrics.energy_distance),
    draw=made(lambda: mixture().sample),
    n=5,
    repeats=2,
    seed=0,
    against=6,
)
valid("metrics.kept_floor", metric="energy distance", data="running mixture", n=50)

valid("options.as_dict", config=made(lambda: TINY))
valid(
    "options.add_options",
    parser=made(argparse.ArgumentParser),
    config=made(generation.SampleConfig),
)
valid("options.with_options", config=made(generation.SampleConfig), values=made(lambda: {"n": 3}))

valid("panes.quantise", x=made(lambda: X().numpy()), view=(-3.0, 3.0))
valid("panes.dequantise", q=made(lambda: np.zeros((3, 2), np.int16)), view=(-3.0, 3.0))

valid(
    "player.play",
    paths=floats(4, 5, 2),
    ts=GRID,
    titles="a",
    labels=whole(0, 1, 0, 1, 0),
    extent=3.0,
    seconds=2.0,
    tail=0.25,
)

valid("plots.show_samples", x=X, labels=Y, color="data", extent=3.0, title="t")
valid("plots.show_density", p=made(lambda: mixture().log_prob), extent=3.0, n=10)
valid("plots.show_field", f=field, t=0.5, extent=3.0, n=5, power=1.0)
valid("plots.show_arrows", at=X, u=X0, extent=3.0)
valid("plots.speed", u=X)
valid("plots.mass_levels", values=made(lambda: within(5, 5)().numpy()), fractions=(0.2, 0.5))
valid("plots.grid", extent=3.0, n=5)
valid("plots.scalars", f=made(lambda: mixture().log_prob), x=X)
valid("plots.vectors", f=field, x=X, t=0.5)
valid("plots.as_points", x=X, name="x", dim=2)
valid("plots.compare", learned=field, exact=field, t=0.5, extent=3.0)
valid("plots.show_paths", xs=floats(4, 5, 2), ts=GRID, extent=3.0)
valid("plots.slope", x=(1.0, 2.0, 4.0), y=(1.0, 0.5, 0.25))
valid(
    "plots.show_curves", curves=made(lambda: {"a": ([1.0, 2.0], [3.0, 4.0])}), log="xy", slopes=True
)
valid("plots.show_histogram", values=floats(20), bins=5)
valid("plots.show_images", x=PIX, ncols=2, titles=("a", "b"), width=2.0)
valid("plots.tile", x=PIX, ncols=2, scale=1, gap=1)
valid(
    "plots.save_grid",
    x=PIX,
    path=made(lambda: Path(SCRATCH[0]) / "grid.png"),
    ncols=2,
    scale=1,
    gap=1,
)
valid(
    "plots.Film",
    frames=made(lambda: [Image.new("RGB", (4, 4), c) for c in ("red", "blue")]),
    seconds=1.0,
    pause=0.5,
)
valid("plots.as_images", x=PIX, name="x")
valid("plots.show_stages", stages=made(lambda: {"a": (0, 2), "b": (1, 3)}))

CAPTIONS = ("a red circle", "two small green squares")
SCENE = made(lambda: scenes.draw_scenes(CAPTIONS, 0)[0])
READER = transformer.DiTConfig((1, 8, 8), patch=4, width=16, depth=1, head=8)


@made
def reader() -> dc.Denoiser:
    net = transformer.DiT(READER).eval().requires_grad_(False)
    for k, p in enumerate(net.parameters()):
        p.add_(0.1 * torch.randn(p.shape, generator=rng(k)))
    return dc.Denoiser(net, dc.Linear())


WORDS = made(lambda: transformer.tokens(CAPTIONS))
valid("scenes.all_captions")
valid("scenes.parse_caption", text="a red circle")
valid("scenes.draw_captions", n=4, seed=0, shares=(0.15, 0.2, 0.65))
valid("scenes.draw_scenes", captions=CAPTIONS, seed=0, batch=8)
valid("scenes.read_scene", image=SCENE)
valid(
    "scenes.judge",
    things=made(lambda: scenes.read_scene(SCENE())),
    caption=made(lambda: scenes.parse_caption("a red circle")),
)
valid("scenes.verdict", image=SCENE, caption="a red circle")

valid("transformer.patchify", x=PIX, p=4)
valid("transformer.unpatchify", tokens=floats(2, 4, 16), shape=(1, 8, 8), p=4)
valid("transformer.waves", position=floats(4), width=8, longest=100.0)
valid("transformer.positional_codes", rows=2, columns=3, width=8)
valid("transformer.tokens", captions=CAPTIONS, n_words=10)
valid("transformer.DiTConfig", **vars(READER))
valid("transformer.DiT", config=made(lambda: READER), seed=0)
valid("transformer.DiT.forward", self=made(lambda: reader().net), x=PIX, t=within(2), cond=WORDS)
valid("transformer.prompted", model=reader, w=2.0, negative="red")
valid("transformer.attention_maps", model=reader, x=PIX, t=0.5, cond=WORDS)

CHAIN = made(lambda: discrete.TokenChain(torch.ones(3), torch.eye(3) + 0.5, 4))
TABLE = made(lambda: discrete.TokenTable(1 + torch.arange(9.0).reshape(3, 3)))
TOKENS = made(lambda: torch.tensor([[0, 1, 2, 1], [2, 2, 0, 1]]))
SEEN = made(lambda: torch.tensor([[0, 3, 2, 3], [3, 3, 0, 3]]))
HIDE = made(lambda: SEEN() == 3)
LETTER_NET = discrete.TokenNetConfig(length=4, n_letters=3, width=16, depth=1, head=8, n_labels=2)


@made
def exact_tokens() -> discrete.ExactTokens:
    return discrete.ExactTokens(CHAIN())


@made
def letter_net() -> discrete.TokenNet:
    return discrete.TokenNet(LETTER_NET).eval().requires_grad_(False)


valid("discrete.as_tokens", name="x", x=SEEN, n_letters=3, length=4)
valid("discrete.masked", x1=TOKENS, t=within(2), n_letters=3, generator=made(rng))
valid("discrete.encode", text="the quick fox")
valid("discrete.decode", x=SEEN, mask="_")
valid("discrete.TokenTable", p=made(lambda: 1 + torch.arange(9.0).reshape(3, 3)))
valid("discrete.TokenTable.sample", self=TABLE, n=4, generator=made(rng))
valid("discrete.TokenTable.posterior", self=TABLE, x=made(lambda: torch.tensor([[0, 3], [3, 3]])))
valid("discrete.TokenTable.path", self=TABLE, t=0.4)
valid("discrete.TokenTable.rate", self=TABLE, t=0.4)
valid("discrete.TokenChain", start=made(lambda: torch.ones(3)), step=made(lambda: torch.eye(3) + 0.5), length=4)
valid("discrete.TokenChain.counted", x=TOKENS, n_letters=3, more=0.1)
valid("discrete.TokenChain.log_prob", self=CHAIN, x=TOKENS)
valid("discrete.TokenChain.posterior", self=CHAIN, x=SEEN)
valid("discrete.ExactTokens", source=CHAIN, noise="mask")
valid("discrete.hidden", n=4, length=5, generator=made(rng))
valid("discrete.masked_loss", model=exact_tokens, x1=TOKENS, hide=HIDE)
valid("discrete.bits", model=exact_tokens, x1=TOKENS, draws=2, generator=made(rng))
valid("discrete.TokenNet", config=made(lambda: LETTER_NET), seed=0)
valid("discrete.TokenNet.forward", self=letter_net, x=SEEN, y=whole(0, 1))
valid("discrete.fill", model=exact_tokens, x=SEEN, ts=3, temperature=0.8, generator=made(rng))
valid("discrete.GuidedTokens", model=letter_net, w=2.0)
valid("discrete.pixels", x=made(lambda: torch.tensor([[0, 1, 2, 0]])), columns=2)
valid("plots.text_image", lines=("ab_", "c"), mask="_", before=("a__", "c"), rows=("1", "2"), size=13)

valid("runs.saved_config", config=made(lambda: training.PRESETS["digits"]), folder=FOLDER)
valid(
    "runs.can_resume", config=made(lambda: training.PRESETS["digits"]), folder=FOLDER, resume=True
)

valid("seeds.seeded", device="cpu")
valid("seeds.generator_of", seed=3, device="cpu")
valid("seeds.seeded_weights", seed=3)
valid("seeds.stratified", n=4, generator=GENERATOR)
valid("seeds.normal_quantile", u=T)

valid("style.color_of", role="data")
valid("style.colormap", role="data")
valid("style.figure", ncols=1, nrows=2, size=(2.0, 2.0))
valid("style.CourseFigure", figsize=(2.0, 2.0))
valid("style.png", fig=made(lambda: style.figure()[0]))
valid("style.axes_or_new", ax=None, size=(2.0, 2.0))
valid("style.plane", ax=made(lambda: style.axes_or_new(None)), extent=3.0, title="t")

valid("widgets.slider", lo=0.0, hi=1.0, value=0.5, step=0.1, label="a", help="b")
valid("widgets.choice", options=("a", "b"), value="b", label="a", help="b")
valid("widgets.toggle", value=True, label="a", help="b")
valid("widgets.text", value="a", suggestions=("b", "c"), label="a", help="b")
valid("widgets.panel", draw=made(lambda: lambda n: str(n)), n=made(lambda: widgets.slider(0, 3)))


@cache
def painted() -> Path:
    """A folder of small images, two labels, with a table of attributes."""
    folder = Path(tempfile.mkdtemp(dir=SCRATCH[0]))
    rows = ["file,size"]
    for label in ("a", "b"):
        (folder / label).mkdir()
        for k in range(15):
            Image.fromarray((np.random.default_rng(k).random((8, 8)) * 255).astype(np.uint8)).save(
                folder / label / f"{k}.png"
            )
            rows.append(f"{label}/{k}.png,{k}")
    (folder / folders.ATTRIBUTES).write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


@cache
def one_picture() -> Path:
    return painted() / "a" / "0.png"
