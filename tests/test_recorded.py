"""Regression test: with fixed seeds, the library computes what it computed when this was recorded.

`recorded.json` holds the shape, mean, standard deviation and up to twelve values of each case's
result. Nearly all is computed in double precision and compared to 1e-6, relative or absolute, so
that it holds on any processor. A change that is meant to change results records them anew, and its
commit says why:

    python tests/test_recorded.py --record                      all cases
    python tests/test_recorded.py --record sample/ddim grid     those whose names begin so
"""
from __future__ import annotations

import argparse
import dataclasses
import json
import math
import subprocess
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from itertools import product
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from helpers import normal, rng, uniform
from PIL import Image
from torch import Tensor, nn

import diffusion_course
from diffusion_course import cold, evaluation, inpainting, latent, panes, plots, schedules, training
from diffusion_course.checkpoints import WEIGHTS, load, save, shipped
from diffusion_course.classifier import Classifier, ClassifierConfig, shifted
from diffusion_course.cli import presets
from diffusion_course.cold import DEGRADATIONS, ColdRecipe, Restorer, improved, naive, restore
from diffusion_course.couplings import ot_matching_loss, pair, path_energy, reflow_pairs
from diffusion_course.ddpm import (
    cosine_betas, ddpm_loss, finish_noising, invert, linear_betas, posterior, q_sample,
)
from diffusion_course.discrete import TokenNet
from diffusion_course.distributions import GaussianMixture, running_mixture, toy, toy_names
from diffusion_course.edm import (
    edm_heun, edm_loss, log_normal_times, preconditioned, preconditioning,
)
from diffusion_course.evaluation import ClassifierRecipe
from diffusion_course.few_step import (
    ConsistencyRecipe, FlowEnd, Pairs, ReflowRecipe, consistency, consistency_loss, teacher_pairs,
)
from diffusion_course.flow_maps import (
    ExactFlowMap, TwoTimes, composition_loss, draw_times, jump, mean_flow_loss, mean_velocity, path_loss, teacher_paths,
    two_times,
)
from diffusion_course.generation import (
    SAMPLERS, InPrecision, SampleConfig, generate, noise, previews, sample_to_files,
)
from diffusion_course.guidance import classifier_free, classifier_guided, tilted_log_prob
from diffusion_course.images import (
    DenoiseNet, Images, digit_classifier, digits, radial_spectrum, sinusoidal, to_bytes, to_float,
)
from diffusion_course.inpainting import (
    known_region, latent_inpaint, reconstruction_guided, resampling,
)
from diffusion_course.latent import DecoderRecipe, LatentRecipe, Latents, LatentUNetConfig
from diffusion_course.matching import MLP, as_labels, fit, matching_loss
from diffusion_course.metrics import energy_distance, real_floor, sliced_wasserstein, wasserstein2
from diffusion_course.options import as_dict
from diffusion_course.predictions import (
    KINDS, Denoiser, EmpiricalDenoiser, ExactDenoiser, Prediction, singular,
    target_row, to_prediction,
)
from diffusion_course.samplers import (
    BrownianPath, adaptive, ancestral, ddim, dpmpp_2m, euler, euler_maruyama, heun, karras_grid,
    log_snr_grid, midpoint, rk4, sample, trailing_grid, trajectory, uniform_grid, with_langevin,
)
from diffusion_course.schedules import DDPM, Cosine, Linear, VarianceExploding, VariancePreserving
from diffusion_course.sde import diffusion, drift, langevin_correct, sde_step
from diffusion_course.solvers import (
    em_step, euler_step, heun_step, integrate, midpoint_step, rk4_step,
)
from diffusion_course.training import (
    DenoiserRecipe, Recipe, batch_indices, ladder, seeded, train,
)
from diffusion_course.unet import (
    Attention, ResidualBlock, TimeEmbedding, UNet, UNetConfig, Upsample,
)
from diffusion_course.transformer import tokens
from diffusion_course.vae import (
    VAE, VAEConfig, VAERecipe, psnr, reconstruct, round_trips, vae_loss,
)
from diffusion_course.vae import DiagonalGaussian as LatentPosterior

RECORDED = Path(__file__).with_name("recorded.json")
DOUBLE = 1e-6  # tolerance, relative or absolute, of what is computed in double precision
SINGLE = 1e-5  # of single precision with few operations, networks in double precision among them
NETWORK = 1e-4  # of networks in single precision: processors add up in different orders

Result = Tensor | float | list | tuple | dict
CASES: dict[str, Callable[[], Result]] = {}
TOLERANCES: dict[str, float] = {}  # of the cases that can't keep DOUBLE
SLOW: set[str] = set()


def case(name: str, *choices: Iterable[str], tol: float = DOUBLE, slow: bool = False) -> Callable:
    """Makes cases of a function, one for each combination of choices, which are its arguments."""
    def register(compute: Callable[..., Result]) -> Callable[..., Result]:
        for arguments in product(*choices):
            full = "/".join([name, *arguments])
            assert full not in CASES, f"two cases are called {full}"
            CASES[full] = partial(compute, *arguments)
            if tol != DOUBLE: TOLERANCES[full] = tol
            if slow: SLOW.add(full)
        return compute
    return register


# ---- what is recorded of a result, and how it is compared ----------------------------------------

def parts(result: Result) -> Iterator[Tensor]:
    """The tensors of a result, in double precision."""
    if isinstance(result, dict): result = list(result.values())
    if isinstance(result, (list, tuple)):
        for part in result: yield from parts(part)
    else: yield torch.as_tensor(result).detach().double()


def evenly(n: int, most: int) -> list[int]:
    """Up to so many of the indices 0 to n - 1, evenly spaced."""
    if n <= most: return list(range(n))
    return [n // 2] if most == 1 else [k * (n - 1) // (most - 1) for k in range(most)]


def digest(result: Result) -> dict:
    """What is recorded: shapes, mean, standard deviation, up to twelve values from all tensors."""
    tensors = list(parts(result))
    flat = torch.cat([x.flatten() for x in tensors])
    chosen = [tensors[k].flatten() for k in evenly(len(tensors), 12)]
    some = torch.cat([x[evenly(len(x), 12 // len(chosen))] for x in chosen])
    return dict(shape=[list(x.shape) for x in tensors], mean=flat.mean().item(),
                std=flat.std(correction=0).item(), values=some.tolist())


@contextmanager
def steady() -> Iterator[None]:
    """One thread, and no 16-bit numbers where a function would choose them by the processor."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with mock.patch.object(training, "runs_bf16", lambda device: False): yield
    finally: torch.set_num_threads(threads)


# ---- what the cases use --------------------------------------------------------------------------

SCHEDULES = {
    "linear": Linear(), "cosine": Cosine(), "VP": VariancePreserving(),
    "VE": VarianceExploding(0.02, 20.0), "DDPM": DDPM(linear_betas(40, 1e-3, 0.2)),
}
MIXTURE = GaussianMixture(normal(4, 2, seed=9), [0.3, 0.5, 0.4, 0.2], [1, 2, 3, 2], [0, 1, 2, 1])
T = 0.02 + 0.96 * uniform(6, seed=8)  # inside all paths, and between the times of DDPM
X1 = normal(6, 2, seed=1)
X0 = normal(6, 2, seed=2)
Y = torch.tensor([0, 1, 2, 0, 1, 2])
IMAGES = uniform(4, 1, 8, 8, seed=3) * 2 - 1
COLOURED = uniform(3, 3, 16, 16, seed=4) * 2 - 1
SMALL = UNetConfig(shape=(1, 8, 8), widths=(16, 32), attention=(4,), head=16, patch=1, n_labels=10)
DIGITS_VAE = VAEConfig((1, 8, 8), (4, 2, 2), (16, 32), (1, 1), (1, 1))


def with_weights(net: nn.Module) -> nn.Module:
    """The network in double precision, with weights that depend on their names and shapes alone."""
    with torch.no_grad():
        for name, p in net.double().named_parameters():
            scale = 1 / math.sqrt(p[0].numel()) if p.ndim > 1 else 0.3
            p.copy_(scale * normal(*p.shape, seed=zlib.crc32(name.encode())))
    return net.eval()


def in_double(net: nn.Module) -> nn.Module:
    """The network for callers in single precision, double inside, so that processors agree."""
    def widen(_: nn.Module, inputs: tuple) -> tuple:
        return tuple(x.double() if x.is_floating_point() else x for x in inputs)

    net.double().register_forward_pre_hook(widen)
    net.register_forward_hook(lambda _, inputs, output: output.float())
    return net


class DoubleClassifier(Classifier):
    """A classifier that computes in double precision whatever it is given."""

    def maps(self, x: Tensor) -> list[Tensor]: return super().maps(x.double())


@cache
def point_net() -> nn.Module: return with_weights(MLP(2, 32, 2, n_labels=3))


def point_model(schedule: str, kind: str) -> Denoiser | ExactDenoiser:
    """A model of points for a target, or the exact one of a mixture."""
    if kind == "exact": return ExactDenoiser(MIXTURE, SCHEDULES[schedule])
    return Denoiser(point_net(), SCHEDULES[schedule], kind)


@cache
def image_model() -> Denoiser:
    """A small U-Net for digits, for functions whose samples are in single precision."""
    return Denoiser(in_double(with_weights(UNet(SMALL))), Linear())


@cache
def digits_model() -> Denoiser:
    model = load("digits")
    in_double(model.net)
    return model


@cache
def digits_vae() -> VAE:
    """A small autoencoder of digits; what its encoder returns is in single precision."""
    vae = VAE(DIGITS_VAE)
    for half in (vae.encoder, vae.decoder): in_double(with_weights(half))
    vae.standardise(0.5 + 2 * normal(50, 4, 2, 2).float())
    return vae


@cache
def small_classifier() -> DoubleClassifier:
    return with_weights(DoubleClassifier(ClassifierConfig((1, 8, 8), 16, (16, 16, 16), (0, 1, 1))))


def values(p: Prediction) -> list[Tensor]: return [p.x1, p.eps, p.velocity, p.v, p.score]


def with_gradient(loss: Tensor, model: nn.Module) -> list[Tensor]:
    """A loss, and its gradient at all weights, in the order of their names."""
    weights = [p for _, p in sorted(model.named_parameters())]
    gradients = torch.autograd.grad(loss, weights, allow_unused=True)
    return [loss, *(g for g in gradients if g is not None)]


def start(schedule: str) -> Tensor:
    """Points where sampling begins."""
    return X0 * SCHEDULES[schedule].sigma(0.0)


# ---- distributions, schedules, predictions -------------------------------------------------------

@case("toy", toy_names(), tol=SINGLE)
def _(name: str) -> Result: return toy(name, 200, seed=3)


@case("mixture")
def _() -> Result:
    return [MIXTURE.log_prob(X1), MIXTURE.score(X1), MIXTURE.responsibilities(X1),
            MIXTURE.label_probs(X1), MIXTURE.log_weights(6), MIXTURE.weights]


@case("mixture/conditional")
def _() -> Result:
    return [MIXTURE.log_prob(X1, Y), MIXTURE.score(X1, Y), MIXTURE.responsibilities(X1, 1),
            MIXTURE.log_prob(X1, 2)]


@case("mixture/samples")
def _() -> Result: return [MIXTURE.sample(50, rng(1)), *MIXTURE.sample_labelled(50, rng(2))]


@case("running mixture", tol=SINGLE)
def _() -> Result:
    m = running_mixture()
    return [m.means, m.stds, m.weights, m.labels, m.log_prob(X1), m.sample(20, rng())]


@case("schedule", SCHEDULES)
def _(name: str) -> Result:
    s = SCHEDULES[name]
    functions = (s.alpha, s.sigma, s.d_alpha, s.d_sigma, s.log_snr)
    numbers = torch.linspace(-12, 12, 9, dtype=torch.float64)
    return [[f(T) for f in functions], [f(0.37) for f in functions], s.alpha(0.0), s.sigma(0.0),
            s.alpha(1.0), s.sigma(1.0), s.t_from_log_snr(numbers), s.t_from_log_snr(0.3),
            list(s.weights(0.37)), list(s.t_range), s.mix(X1, X0, T)]


@case("schedule/other numbers")
def _() -> Result:
    vp = VariancePreserving(0.3, 12.0)
    ve = VarianceExploding(0.1, 5.0)
    return [f(T) for s in (vp, ve) for f in (s.alpha, s.sigma, s.d_alpha, s.d_sigma, s.log_snr)]


@case("schedule/discrete times")
def _() -> Result:
    s = SCHEDULES["DDPM"]
    return [s.t_of(torch.arange(40)), s.index_of(T), s.index_of(1.0)]


@case("marginal", SCHEDULES)
def _(name: str) -> Result:
    m = schedules.marginal(MIXTURE, SCHEDULES[name], 0.4)
    return [m.means, m.stds, m.weights, m.log_prob(X1)]


@case("combine")
def _() -> Result:
    return [schedules.per_sample(T, COLOURED[:1].expand(6, -1, -1, -1)),
            schedules.combine(0.3, X1, 0.7, X0), schedules.combine(T, X1, torch.tensor(0.2), X0),
            schedules.as_time(T), schedules.as_time(1)]


@case("target row", SCHEDULES, KINDS)
def _(schedule: str, kind: str) -> Result:
    return [target_row(kind, t, SCHEDULES[schedule], 0.7) for t in (T, 0.37)]


@case("prediction", SCHEDULES, KINDS)
def _(schedule: str, kind: str) -> Result:
    s = SCHEDULES[schedule]
    return [values(to_prediction(X1, kind, X0, t, s, 0.7)) for t in (T, 0.37)]


@case("denoiser", SCHEDULES, [*KINDS, "exact"])
def _(schedule: str, kind: str) -> Result:
    model = point_model(schedule, kind)
    ends = [singular(model, t) for t in (0.0, 0.5, 1.0)]
    return [values(model(X0, T, y=Y)), values(model(X0, 0.37, y=Y)), values(model(X0, 0.37)), ends]


@case("denoiser/empirical", SCHEDULES)
def _(schedule: str) -> Result:
    model = EmpiricalDenoiser(normal(30, 2, seed=5), SCHEDULES[schedule], torch.arange(30) % 3)
    return [values(model(X0, T)), values(model(X0, 0.6, y=Y)), values(model(X0, T, y=1)),
            singular(model, 1.0)]


# ---- solvers and SDEs ----------------------------------------------------------------------------

STEPS = {"euler": euler_step, "midpoint": midpoint_step, "heun": heun_step, "rk4": rk4_step}


def field(x: Tensor, t: Tensor | float) -> Tensor: return x.flip(1).sin() * (1 + float(t)) - 0.5 * x


@case("solver", STEPS)
def _(name: str) -> Result:
    forwards = list(integrate(partial(STEPS[name], field), X1, torch.linspace(0, 1, 6)))
    backwards = list(integrate(partial(STEPS[name], field), X1, [0.9, 0.5, 0.2]))
    return [torch.stack(forwards), torch.stack(backwards)]


@case("solver/euler-maruyama")
def _() -> Result:
    step = partial(em_step, field, lambda x, t: 0.3 + float(t) * x.cos(), generator=rng(1))
    return [torch.stack(list(integrate(step, X1, torch.linspace(0, 1, 6)))),
            em_step(field, 0.4, X1, 0.7, 0.5, noise=X0)]


CHURNS = {"1": 1.0, "0.3": 0.3, "1 over alpha": lambda t: 1 / (0.1 + t)}


@case("sde", SCHEDULES, CHURNS)
def _(schedule: str, churn: str) -> Result:
    model = point_model(schedule, "v")
    s = SCHEDULES[schedule]
    c = CHURNS[churn]
    p = model(X0, T, y=Y)
    return [diffusion(s, T, c), diffusion(s, 1.0, c), drift(p, c), drift(p, c, backwards=True),
            sde_step(model, c, X0, 0.3, 0.4, generator=rng(1), y=Y),
            sde_step(model, c, X0, 0.4, 0.3, noise=X1), sde_step(model, c, X0, 0.9, 1.0, noise=X1)]


@case("langevin", SCHEDULES)
def _(schedule: str) -> Result:
    return langevin_correct(point_model(schedule, "exact"), X0, 0.6, 4, 0.2, generator=rng(1), y=Y)


# ---- samplers ------------------------------------------------------------------------------------

HALF_KNOWN = (X1[:1], torch.tensor([True, False]))
STEPPERS = {
    "euler": euler(), "midpoint": midpoint(), "heun": heun(), "rk4": rk4(),
    "euler_maruyama": euler_maruyama(), "euler_maruyama(0.3)": euler_maruyama(0.3), "ddim": ddim(),
    "ddim(0.5)": ddim(0.5), "ancestral": ancestral(), "ancestral(beta)": ancestral("beta"),
    "dpmpp_2m": dpmpp_2m(), "edm_heun": edm_heun(),
    "edm_heun(0.3)": edm_heun(0.3, (0.05, 50.0), 1.003), "consistency": consistency(),
    "with_langevin": with_langevin(ddim(), 2, 0.1),
    "known_region": known_region(dpmpp_2m(), *HALF_KNOWN),
    "resampling": resampling(ddim(), *HALF_KNOWN, repeats=2, jump=2),
}
NOISE_FREE = ("euler", "midpoint", "heun", "rk4", "ddim", "dpmpp_2m", "edm_heun")


@case("sample", STEPPERS, SCHEDULES, [*KINDS, "exact"])
def _(stepper: str, schedule: str, kind: str) -> Result:
    model = point_model(schedule, kind)
    return sample(model, start(schedule), uniform_grid(5), STEPPERS[stepper], generator=rng(1), y=Y)


@case("trajectory", STEPPERS)
def _(stepper: str) -> Result:
    run = trajectory(point_model("VP", "v"), X0, uniform_grid(4), STEPPERS[stepper],
                     generator=rng(1))
    return [run.ts, run.xs, run.x1s, run.nfe]


@case("adaptive", SCHEDULES)
def _(schedule: str) -> Result:
    return sample(point_model(schedule, "exact"), start(schedule), [0.0, 0.5, 1.0],
                  adaptive(1e-4, 1e-4))


@case("brownian path", ("euler_maruyama", "ancestral", "consistency"))
def _(stepper: str) -> Result:
    path = BrownianPath(X0, 64, seed=2)
    model = point_model("linear", "exact")
    xs = [sample(model, X0, uniform_grid(n), STEPPERS[stepper], noise=path) for n in (4, 8)]
    return [path(X0, 0.25, 0.75), xs]


@case("grid")
def _() -> Result: return [uniform_grid(7), uniform_grid(3, 0.2, 0.9)]


@case("grid", ("karras", "log-SNR"), SCHEDULES)
def _(kind: str, schedule: str) -> Result:
    s = SCHEDULES[schedule]
    if kind == "karras": return [karras_grid(7, s), karras_grid(4, s, 3.0, 0.1, 10.0)]
    return [log_snr_grid(7, s), log_snr_grid(4, s, 0.1, 10.0)]


@case("grid/trailing")
def _() -> Result: return [trailing_grid(n, SCHEDULES["DDPM"]) for n in (1, 6, 40)]


@case("sample on a grid", ("heun", "dpmpp_2m", "ddim", "edm_heun(0.3)"), SCHEDULES)
def _(stepper: str, schedule: str) -> Result:
    ts = karras_grid(6, SCHEDULES[schedule])
    x = X0 * SCHEDULES[schedule].sigma(float(ts[0]))
    return sample(point_model(schedule, "exact"), x, ts, STEPPERS[stepper], generator=rng(1), y=Y)


@case("invert", NOISE_FREE, SCHEDULES)
def _(stepper: str, schedule: str) -> Result:
    ts = uniform_grid(6, 0.1, 0.95)
    x0 = invert(point_model(schedule, "exact"), X1, ts, STEPPERS[stepper], y=Y)
    return [x0, sample(point_model(schedule, "exact"), x0, ts, STEPPERS[stepper], y=Y)]


@case("invert/default")
def _() -> Result: return invert(point_model("linear", "velocity"), X1, uniform_grid(5))


# ---- DDPM and EDM --------------------------------------------------------------------------------

@case("betas")
def _() -> Result:
    return [linear_betas(20), cosine_betas(20), cosine_betas(10, 0.1, 0.9),
            finish_noising(linear_betas(1000)), finish_noising(cosine_betas(30), 1e-2)]


@case("ddpm")
def _() -> Result:
    s = SCHEDULES["DDPM"]
    i = torch.tensor([0, 3, 11, 20, 38, 39])
    return [q_sample(X1, i, s, eps=X0), q_sample(X1, 7, s, generator=rng(1)),
            list(posterior(X1, X0, i, s)), list(posterior(X1, X0, 12, s))]


@case("preconditioning", SCHEDULES)
def _(schedule: str) -> Result:
    s = SCHEDULES[schedule]
    model = preconditioned(point_net(), s, 0.7)
    times = log_normal_times(30, s, -0.5, 1.5, rng(1))
    return [list(preconditioning(T, s, 0.7)), list(preconditioning(0.37, s)),
            values(model(X0, T, y=Y)), times,
            sample(model, start(schedule), uniform_grid(4), heun(), y=Y)]


# ---- losses and training of points ---------------------------------------------------------------

@case("loss/matching", SCHEDULES, KINDS)
def _(schedule: str, kind: str) -> Result:
    model = point_model(schedule, kind)
    return with_gradient(matching_loss(model, X1, generator=rng(1), y=Y), model)


@case("loss/matching, everything given", SCHEDULES)
def _(schedule: str) -> Result:
    net, exact = (point_model(schedule, kind) for kind in ("v", "exact"))
    how = dict(t=T, x0=X0, weight=lambda t: 1 + t**2, y=Y)
    return [matching_loss(net, X1, **how), matching_loss(exact, X1, **how),
            matching_loss(exact, X1, generator=rng(2))]


@case("loss/ddpm", KINDS)
def _(kind: str) -> Result:
    model = point_model("DDPM", kind)
    return with_gradient(ddpm_loss(model, X1, generator=rng(1), y=Y), model)


@case("loss/edm", SCHEDULES)
def _(schedule: str) -> Result:
    model = preconditioned(point_net(), SCHEDULES[schedule], 0.7)
    return [edm_loss(model, X1, mean=-0.3, std=0.9, generator=rng(1)),
            *with_gradient(edm_loss(model, X1, generator=rng(1), y=Y), model)]


@case("loss/optimal transport")
def _() -> Result:
    model = point_model("linear", "velocity")
    return [ot_matching_loss(model, X1, generator=rng(1)),
            *with_gradient(ot_matching_loss(model, X1, y=Y, generator=rng(1)), model)]


@case("loss/consistency")
def _() -> Result:
    student, target, teacher = (point_model("linear", kind) for kind in ("F", "x1", "velocity"))
    given = partial(consistency_loss, student, target, teacher, X1, t=T, x0=X0, steps=4, y=Y)
    default = consistency_loss(student, student, classifier_free(teacher, 2.0), X1,
                               generator=rng(1), y=Y)
    return [given(huber=0.0), given(huber=0.1), *with_gradient(default, student)]


FITS = {
    "plain": dict(),
    "labels": dict(labels=torch.arange(64) % 3, drop=0.3),
    "edm": dict(loss=edm_loss),
    "optimal transport": dict(loss=ot_matching_loss),
}


@case("fit", FITS)
def _(name: str) -> Result:
    model = Denoiser(with_weights(MLP(2, 16, 2, n_labels=3)), Linear())
    seen = []

    def watch(step: int, smooth: Denoiser) -> None: seen.append(smooth(X0, 0.5).x1.detach().clone())

    history = fit(model, normal(64, 2, seed=4), 25, batch_size=16, seed=2, progress=False,
                  watch=watch, **FITS[name])
    return [history.loss, history.model(X0, T, y=Y).x1, model(X0, T, y=Y).x1, seen]


@case("fit/pairs")
def _() -> Result:
    model = Denoiser(with_weights(MLP(2, 16, 2)), VariancePreserving(), "eps")
    history = fit(model, (normal(64, 2, seed=3), normal(64, 2, seed=4)), 30, batch_size=16, lr=1e-2,
                  progress=False)
    return [history.loss, history.model(X0, T).x1]


@case("labels")
def _() -> Result: return [as_labels(None, 3, X0), as_labels(1, 3, X0), as_labels(Y, 3, X0)]


# ---- guidance ------------------------------------------------------------------------------------

@case("classifier_free", ("0", "1", "2.5"), SCHEDULES)
def _(w: str, schedule: str) -> Result:
    found = []
    for kind in ("v", "exact"):  # in one batch of twice the size, and in two calls
        model = classifier_free(point_model(schedule, kind), float(w))
        run = trajectory(model, start(schedule), uniform_grid(4), dpmpp_2m(), y=Y)
        found += [values(model(X0, T, y=Y)), values(model(X0, 0.37, y=1)), run.xs, run.x1s, run.nfe]
    return found


@case("classifier_free/interval")
def _() -> Result:
    model = classifier_free(point_model("linear", "v"), 3.0, interval=(0.2, 0.6))
    run = trajectory(model, X0, uniform_grid(5), heun(), y=2)
    return [run.xs, run.nfe, [model.cost(t) for t in (0.1, 0.4, 0.9)],
            classifier_free(model, 1.0)(X0, 0.5, y=2).x1]


@case("classifier_guided", SCHEDULES)
def _(schedule: str) -> Result:
    def classifier(x: Tensor, t: Tensor) -> Tensor:
        return x.sin() @ normal(2, 3, seed=5) * (1 + t.to(x).reshape(-1, 1))

    found = []
    for kind in ("x1", "exact"):
        model = classifier_guided(point_model(schedule, kind), classifier, 1.7)
        run = trajectory(model, start(schedule), uniform_grid(4), ddim(), y=Y)
        found += [values(model(X0, T, y=Y)), run.xs, run.nfe, singular(model, 0.0), model.cost(0.5)]
    return found


@case("tilted log_prob")
def _() -> Result: return tilted_log_prob(MIXTURE, 1, 2.5)(X1)


# ---- couplings -----------------------------------------------------------------------------------

@case("pair")
def _() -> Result:
    a, b = normal(40, 2, seed=5), normal(40, 2, seed=6)
    return [pair(a, b), pair(a, b, torch.arange(40) % 3)]


@case("reflow pairs")
def _() -> Result:
    model = point_model("linear", "exact")
    return [reflow_pairs(model, X0, 4, batch_size=4, y=Y), reflow_pairs(model, X0, 4, dpmpp_2m())]


@case("path energy")
def _() -> Result:
    return [path_energy(point_model("linear", "exact"), X0, 6, y=Y),
            path_energy(point_model("VP", "v"), X0, 6, euler())]


# ---- metrics and scores --------------------------------------------------------------------------

@case("metric")
def _() -> Result:
    a, b = normal(60, 2, seed=5), 0.3 + 1.2 * normal(60, 2, seed=6)
    c = normal(45, 3, seed=7)
    return [energy_distance(a, b), energy_distance(c, 1 - c[:30]), sliced_wasserstein(a, b),
            sliced_wasserstein(c, 1 - c[:30], 20, 1), wasserstein2(a, b)]


@case("metric/floor", ("energy", "sliced", "wasserstein2"))
def _(name: str) -> Result:
    metric = dict(energy=energy_distance, sliced=partial(sliced_wasserstein, n_projections=20),
                  wasserstein2=wasserstein2)
    floor = real_floor(metric[name], MIXTURE.sample, 40, repeats=5, seed=1)
    return [floor.mean, floor.std, floor.q99, floor.n]


FEATURES = (normal(120, 5, seed=5), 0.2 + 1.3 * normal(50, 5, seed=6))


@case("score")
def _() -> Result:
    a, b = FEATURES
    return [evaluation.frechet_distance(a, b), evaluation.kernel_distance(a, b),
            evaluation.kernel_distance(a, b, rows=7), *evaluation.precision_recall(a, b),
            *evaluation.precision_recall(b, a, k=5, rows=9)]


@case("score/compared")
def _() -> Result:
    a, b = FEATURES
    floor = evaluation.real_scores(a, 50, "none", seed=1)
    scores = evaluation.compare(a[:50], b, "none", floor)
    return [[s.value, s.floor, s.n] for s in scores.values()] + [evaluation.split(5, 30, seed=2)]


@case("score/evaluate", ("generated", "given"), tol=SINGLE)
def _(which: str) -> Result:
    real = digits("test")
    x, y = digits("train").batch(slice(30))
    how = dict(x=x, y=y) if which == "given" else dict(steps=2, guidance=1.5)
    scores = evaluation.evaluate(digits_model(), small_classifier(), real, 30, batch=20,
                                 progress=False, **how)
    return [[s.value, s.floor, s.n] for s in scores.values()]


@case("score/features", tol=SINGLE)
def _() -> Result:
    net = small_classifier()
    x = digits("test").x[:20]
    return [evaluation.features(x, net), evaluation.features(IMAGES, net, batch=3),
            evaluation.as_bytes(IMAGES), evaluation.label_agreement(net, x, torch.arange(20) % 10)]


@case("score/name")
def _() -> Result:
    return list(evaluation.name_of(load("cifar10-classifier")).encode())


@case("score/nearest", tol=SINGLE)
def _() -> Result:
    data = digits("train").x[:40]
    found = [evaluation.nearest(data[:9].flip(3), data, k=3, batch=13),
             evaluation.nearest(IMAGES, data, small_classifier(), k=2),
             evaluation.nearest(data[5:9].flip(3), data, flips=False)]
    return [[n.distance, n.index, n.flipped] for n in found]


@case("log_prob", SCHEDULES)
def _(schedule: str) -> Result:
    model = point_model(schedule, "exact")
    signs = normal(6, 2, seed=3).sign()
    return [
        evaluation.log_prob(model, X1, 8), evaluation.log_prob(model, X1, 6, probe=signs, y=Y),
        evaluation.log_prob(model, X1, evaluation.likelihood_grid(7, 0.95, 0.05), step=heun_step),
    ]


@case("log_prob/network")
def _() -> Result: return evaluation.log_prob(point_model("linear", "velocity"), X1, 5, y=Y)


@case("likelihood grid")
def _() -> Result: return [evaluation.likelihood_grid(8), evaluation.likelihood_grid(5, 0.9, 0.1)]


@case("bits per dimension", ("0", "2"), tol=SINGLE)
def _(probes: str) -> Result:
    model = Denoiser(in_double(with_weights(DenoiseNet((1, 8, 8), 8, n_labels=10))), Linear())
    data = digits("test")
    score = evaluation.bits_per_dim(model, data.x[:4], 2, step=euler_step, probes=int(probes),
                                    batch=3, y=data.y[:4])
    return [score.value, score.error, score.n]


@case("information rate", SCHEDULES)
def _(schedule: str) -> Result:
    model = point_model(schedule, "exact")
    return [evaluation.information_rate(model, X1, 0.5, noise=X0, y=Y),
            evaluation.information_rate(model, X1, -1.0, generator=rng(1))]


# ---- images and networks -------------------------------------------------------------------------

@case("digits")
def _() -> Result:
    train_set, test_set = digits("train"), digits("test")
    return [train_set.x, train_set.y, test_set.x, test_set.y]


@case("images")
def _() -> Result:
    images = Images(torch.arange(96, dtype=torch.uint8).reshape(2, 3, 4, 4), torch.tensor([1, 0]),
                    ("a", "b"))
    return [images.batch([1, 0], torch.tensor([True, False])), images.batch(slice(1)),
            to_bytes(COLOURED), to_float(images.x)]


@case("spectrum")
def _() -> Result: return [radial_spectrum(COLOURED), radial_spectrum(normal(2, 1, 8, 6))]


@case("digit classifier")
def _() -> Result: return digit_classifier()(digits("test").batch(slice(60))[0])


@case("shifted")
def _() -> Result: return shifted(COLOURED, 3, rng(1))


NETS = {
    "MLP": lambda: MLP(3, 16, 3, n_labels=4, seed=1),
    "DenoiseNet": lambda: DenoiseNet((1, 8, 8), 16, n_labels=4, seed=1),
    "DenoiseNet without time": lambda: DenoiseNet((3, 8, 8), 16, time=False, seed=1),
    "UNet": lambda: UNet(SMALL, seed=1),
    "UNet, other options": lambda: UNet(UNetConfig(
        shape=(3, 16, 16), widths=(16, 16, 32), blocks=2, attention=(8, 2), head=8, patch=2,
        n_labels=0, dropout=0.2, embedding="fourier", modulate=False), seed=1),
    "Restorer": lambda: Restorer(SMALL, seed=1),
    "Classifier": lambda: Classifier(
        ClassifierConfig((1, 8, 8), 16, (16, 16, 24), (0, 1, 2)), seed=1),
    "VAE": lambda: VAE(VAEConfig((3, 16, 16), (4, 4, 4), (16, 24), (1, 0), (0, 2)), seed=1),
}


@case("weights", NETS, tol=SINGLE)
def _(name: str) -> Result: return [v for _, v in sorted(NETS[name]().state_dict().items())]


@case("network", [k for k in NETS if k not in ("Classifier", "VAE")])
def _(name: str) -> Result:
    net = with_weights(NETS[name]())
    x = normal(2, *getattr(net, "shape", (3,)), seed=1)
    labels = getattr(net, "n_labels", 0)
    results = [net(x, T[:2])]
    if labels: results += [net(x, T[:2], torch.tensor([1, 3])), net(x, T[:2], 2)]
    torch.manual_seed(0)  # of dropout
    return [*results, net.train()(x, T[:2])]


@case("network/Classifier")
def _() -> Result:
    net = with_weights(NETS["Classifier"]())
    return [net(IMAGES), net.features(IMAGES), net.maps(IMAGES), net.train()(IMAGES)]


@case("network/blocks")
def _() -> Result:
    torch.manual_seed(0)
    x, e = normal(2, 32, 4, 4, seed=1), normal(2, 24, seed=2)
    blocks = [ResidualBlock(32, 16, 24), ResidualBlock(32, 32, 24, modulate=False)]
    return [[with_weights(b)(x, e) for b in blocks], with_weights(Attention(32, 8))(x),
            with_weights(Upsample(32))(x), with_weights(TimeEmbedding(16))(T), sinusoidal(T, 12)]


@case("checkpoint", ("half", "whole"))
def _(size: str) -> Result:
    model = Denoiser(with_weights(UNet(SMALL)), DDPM(linear_betas(30)), "F", 0.7)
    with tempfile.TemporaryDirectory() as folder:
        save(model, Path(folder) / "model.safetensors", half=size == "half")
        back = load(Path(folder) / "model.safetensors").double()
    return values(back(IMAGES, T[:4], y=Y[:4]))


# ---- recipes and training ------------------------------------------------------------------------

class DoubleDenoiserRecipe(DenoiserRecipe):
    def build(self) -> Denoiser:
        model = super().build()
        in_double(model.net)
        return model


class DoubleVAERecipe(VAERecipe):
    def build(self) -> VAE:
        vae = super().build()
        for half in (vae.encoder, vae.decoder): in_double(half)
        return vae


def numbers_in(setting: object) -> list[float]:
    """The settings of a configuration as numbers, texts by their checksum."""
    if isinstance(setting, dict): setting = [v for k, v in setting.items() if k != "about"]
    if isinstance(setting, list): return [n for v in setting for n in numbers_in(v)]
    return [float(zlib.crc32(setting.encode()) % 9973 if isinstance(setting, str) else setting)]


@case("preset", presets())
def _(name: str) -> Result: return numbers_in(as_dict(presets()[name]))


@case("recipe/rate")
def _() -> Result:
    recipe = DenoiserRecipe(images=10_000, warmup=1_000, decay=0.4, batch=100)
    return [recipe.rate(seen) for seen in range(0, 10_001, 500)]


@case("recipe/times", ("uniform", "logit-normal"))
def _(times: str) -> Result: return DenoiserRecipe(times=times).draw_times(20, rng(1))


@case("recipe/floor", ("uniform", "logit-normal"), tol=NETWORK)
def _(times: str) -> Result:
    return DenoiserRecipe(data="digits", net=SMALL, times=times).floor(digits(), 64)


@case("recipe/batches")
def _() -> Result:
    drawn = torch.rand(8, generator=seeded("cpu", 1, 2, 3), dtype=torch.float64)
    return [[batch_indices(23, 10, step, 5) for step in range(5)], batch_indices(3, 10, 1, 0),
            drawn]


def recipe_loss(recipe: Recipe, x: Tensor) -> list[Tensor]:
    """The loss of one batch, and its gradient."""
    model = recipe.build()
    nets = [model.encoder, model.decoder] if isinstance(model, VAE) else [model.net]
    for net in nets: in_double(with_weights(net))
    return with_gradient(recipe.loss(model, x, torch.arange(len(x)), rng(1)), model)


@case("recipe/DenoiserRecipe", ("uniform", "logit-normal"), tol=SINGLE)
def _(times: str) -> Result:
    recipe = DenoiserRecipe(data="digits", net=SMALL, times=times, drop=0.3, kind="v")
    return recipe_loss(recipe, IMAGES.float())


@case("recipe/LatentRecipe", ("sample", "mean"), tol=SINGLE)
def _(which: str) -> Result:
    net = LatentUNetConfig(widths=(16, 32), attention=(4,), head=16)
    x = torch.cat([normal(4, 4, 8, 8), uniform(4, 4, 8, 8)], 1)
    return recipe_loss(LatentRecipe(net=net, posterior=which), x.float())


@case("recipe/ClassifierRecipe")
def _() -> Result:
    net = ClassifierConfig((1, 8, 8), 16, (16, 16, 24), (0, 1, 0))
    recipe = ClassifierRecipe(net=net, shift=2, smoothing=0.2)
    model = with_weights(recipe.build())
    return with_gradient(recipe.loss(model, IMAGES, torch.arange(4), rng(1)), model)


@case("recipe/ColdRecipe", tol=SINGLE)
def _() -> Result:
    net = dataclasses.replace(SMALL, n_labels=3)
    return recipe_loss(ColdRecipe(data="digits", net=net), uniform(9, 1, 8, 8).float())


@case("recipe/VAERecipe", ("0", "0.02"), tol=SINGLE)
def _(kl: str) -> Result:
    return recipe_loss(VAERecipe(data="digits", kl=float(kl), net=DIGITS_VAE), IMAGES.float())


@case("recipe/DecoderRecipe", tol=NETWORK, slow=True)
def _() -> Result:
    recipe = DecoderRecipe(critic="cifar10-classifier", perceptual=0.7)
    model = recipe.build()
    x = uniform(2, 3, 32, 32).float() * 2 - 1
    return with_gradient(recipe.loss(model, x, torch.zeros(2), rng(1)), model)


PAIRS = torch.cat([normal(6, 1, 8, 8, seed=1), normal(6, 1, 8, 8, seed=2)], 1).float()


@case("recipe/ReflowRecipe", tol=SINGLE)
def _() -> Result: return recipe_loss(ReflowRecipe(teacher="digits", first=0.4), PAIRS)


@case("recipe/ConsistencyRecipe", tol=NETWORK)
def _() -> Result:
    return recipe_loss(ConsistencyRecipe(teacher="digits", w=2.0, grid=5, first=0.2), PAIRS)


@case("recipe/previews", tol=SINGLE, slow=True)
def _() -> Result:
    net = dataclasses.replace(SMALL, widths=(16,), attention=())
    drawing = Denoiser(in_double(with_weights(UNet(net))), Linear())
    restorer = Restorer(dataclasses.replace(net, n_labels=3))
    restoring = Denoiser(in_double(with_weights(restorer)), Linear(), "x1")
    return [DenoiserRecipe(data="digits", net=net).preview(drawing),
            ColdRecipe(data="digits").preview(restoring),
            VAERecipe(data="digits").preview(digits_vae()),
            ReflowRecipe(teacher="digits").preview(drawing)]


SHORT = dict(data="digits", batch=32, images=192, warmup=64, decay=0.5, ema=0.9, log_every=64,
             precision="fp32")


@case("train/denoiser", tol=SINGLE, slow=True)
def _() -> Result:
    recipe = DoubleDenoiserRecipe(net=dataclasses.replace(SMALL, dropout=0.1), **SHORT)
    losses = []
    with tempfile.TemporaryDirectory() as folder:
        model = train(recipe, folder, progress=False, watch=lambda run: losses.append(run.loss))
        kept = load(Path(folder) / "model.safetensors").double()
    return [losses, values(model(IMAGES.float(), T[:4], y=Y[:4])), values(kept(IMAGES, T[:4]))]


@case("train/autoencoder", tol=SINGLE, slow=True)
def _() -> Result:
    recipe = DoubleVAERecipe(net=DIGITS_VAE, flip=False, **SHORT)
    losses = []
    with tempfile.TemporaryDirectory() as folder:
        vae = train(recipe, folder, progress=False, watch=lambda run: losses.append(run.loss))
    return [losses, vae.shift, vae.scale, vae.encode(IMAGES.float()).mean]


@case("ladder")
def _() -> Result: return [seen for seen, _ in ladder()]


# ---- drawing images ------------------------------------------------------------------------------

@case("noise", tol=SINGLE)
def _() -> Result: return [noise(digits_model(), 3, seed=5), noise(digits_model(), 2, seed=6)]


@case("generate", SAMPLERS, tol=SINGLE)
def _(sampler: str) -> Result:
    return generate(image_model(), 3, 4, sampler, 2.0, seed=1, precision="fp32",
                    y=torch.tensor([0, 3, 9]))


GENERATED = {
    "no labels": dict(guidance=0.0), "churn": dict(sampler="euler_maruyama", churn=0.4),
    "karras": dict(grid="karras", y=3),
    "batches": dict(batch=2, y=torch.tensor([1, 2, 3]), guidance=1.5),
    "edm_heun": dict(sampler=edm_heun(0.2), y=1),
}


@case("generate", GENERATED, tol=SINGLE)
def _(name: str) -> Result:
    return generate(image_model(), 3, 4, seed=2, precision="fp32", **GENERATED[name])


@case("previews", tol=SINGLE)
def _() -> Result:
    run = previews(image_model(), 2, 3, "dpmpp_2m", 2.0, seed=1, y=4)
    return [[p.step, p.t, p.x, p.x1, p.nfe] for p in run]


@case("in precision")
def _() -> Result:
    model = InPrecision(point_model("linear", "F"), "fp32")
    return [values(model(X0, T, y=Y)), singular(model, 0.0)]


@case("sample to files", tol=SINGLE)
def _() -> Result:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "samples.png"
        sample_to_files(image_model(), SampleConfig(n=5, steps=2, scale=2, out=str(path)),
                        progress=False)
        with Image.open(path) as image: return torch.from_numpy(np.array(image))


# ---- autoencoders and latents --------------------------------------------------------------------

@case("vae", tol=SINGLE)
def _() -> Result:
    vae = digits_vae()
    x = IMAGES.float()
    q = vae.encode(x)
    z = q.sample(rng(1))
    return [q.mean, q.log_var, q.std, q.mode, z, q.kl(), vae.to_unit(z), vae.from_unit(z),
            vae.decode(z), vae.shift, vae.scale, vae_loss(x, vae.decode(z), q, 0.1)]


@case("vae/posterior")
def _() -> Result:
    q = LatentPosterior(normal(2, 4, 2, 2, seed=1), normal(2, 4, 2, 2, seed=2))
    return [q.std, q.mode, q.sample(rng(1)), q.kl(), vae_loss(IMAGES[:2], IMAGES[2:], q, 0.3)]


@case("vae/standardise")
def _() -> Result:
    vae = VAE(DIGITS_VAE).double()
    found = []
    for fraction in (1.0, 0.1):
        vae.standardise(1 + 3 * normal(20, 4, 2, 2), fraction)
        found += [vae.shift.clone(), vae.scale.clone()]
    return found


@case("vae/round trips", tol=SINGLE)
def _() -> Result:
    x = digits().batch(slice(5))[0]
    return [reconstruct(digits_vae(), x, batch=2), round_trips(digits_vae(), x, 2),
            round_trips(digits_vae(), x, 2, False)]


@case("psnr")
def _() -> Result: return psnr(COLOURED, COLOURED.flip(3))


@case("latents", tol=SINGLE)
def _() -> Result:
    found = latent.encode_all(digits_vae(), Images(digits().x[:7], digits().y[:7], digits().names),
                              batch=3)
    return [found.mean, found.std, found.y,
            found.batch(slice(4), torch.tensor([True, False, True, False]))]


@case("latents/batch")
def _() -> Result:
    latents = Latents(normal(2, 5, 4, 2, 2, seed=1), uniform(2, 5, 4, 2, 2, seed=2),
                      torch.arange(5), tuple("abcde"))
    return [latents.batch(torch.tensor([3, 1]), torch.tensor([True, False])),
            latents.batch(slice(None))]


@case("latents/decoded", tol=SINGLE)
def _() -> Result: return latent.decode(digits_vae(), normal(5, 4, 2, 2).float(), batch=2)


@case("latents/checksum")
def _() -> Result: return list(latent.checksum(load("vae-small")).to_bytes(4, "big"))


@case("loss/perceptual")
def _() -> Result: return latent.perceptual_loss(small_classifier(), IMAGES, IMAGES.flip(3))


# ---- inpainting ----------------------------------------------------------------------------------

@case("mask")
def _() -> Result:
    stroke = inpainting.brush([(2, 2), (9, 12), (12, 3)], 2.0, (16, 16))
    box = inpainting.box(3, 10, 5, 9, (16, 16))
    windows = [inpainting.crop_around(box), inpainting.crop_around(stroke, size=(16, 15)),
               inpainting.crop_around(stroke, 1)]
    return [[inpainting.half(side, (6, 8)) for side in ("left", "right", "top", "bottom")], box,
            stroke, inpainting.latent_mask(stroke, (4, 8)),
            [[part.start, part.stop] for window in windows for part in window]]


@case("seam")
def _() -> Result:
    mask = inpainting.box(4, 5, 6, 7, (16, 16))
    return [inpainting.seam(COLOURED, mask), inpainting.seam(COLOURED, mask.expand(3, 1, 16, 16))]


@case("paste back")
def _() -> Result:
    mask = inpainting.box(4, 5, 6, 7, (16, 16))
    edited = COLOURED.flip(2)
    return [inpainting.paste_back(edited, COLOURED, mask),
            inpainting.paste_back(edited, COLOURED, mask, 2),
            inpainting.paste_back(to_bytes(edited), to_bytes(COLOURED), mask, 3)]


@case("noised again", SCHEDULES)
def _(schedule: str) -> Result:
    s = SCHEDULES[schedule]
    return [inpainting.noised_again(s, X1, 0.8, 0.3, X0),
            inpainting.noised_again(s, X1, 1.0, 0.05, X0)]


@case("reconstruction guided", SCHEDULES)
def _(schedule: str) -> Result:
    found = []
    for kind in ("v", "exact"):
        model = reconstruction_guided(point_model(schedule, kind), *HALF_KNOWN, 0.8)
        run = trajectory(model, start(schedule), uniform_grid(4), known_region(heun(), *HALF_KNOWN),
                         generator=rng(1), y=Y)
        found += [values(model(X0, T, y=Y)), run.xs, run.nfe, model.cost(0.5), singular(model, 1.0)]
    return found


@case("inpainted latents", ("pasted", "decoded"), tol=SINGLE)
def _(which: str) -> Result:
    net = UNetConfig(shape=(4, 2, 2), widths=(16,), attention=(), head=16, patch=1, n_labels=3)
    model = Denoiser(in_double(with_weights(UNet(net))), Linear())
    mask = inpainting.half("right", (8, 8))
    return latent_inpaint(model, digits_vae(), IMAGES.float(), mask, uniform_grid(3), dpmpp_2m(),
                          paste=which == "pasted", generator=rng(1), y=1)


# ---- cold diffusion ------------------------------------------------------------------------------

@case("degradation", DEGRADATIONS)
def _(kind: str) -> Result:
    degrade = DEGRADATIONS[kind]
    return [[degrade(COLOURED, t) for t in (0.0, 0.3, 0.6, 1.0)], degrade(COLOURED, T[:3])]


@case("degradation/settings")
def _() -> Result:
    times = torch.linspace(0, 1, 7)
    return [cold.Blur(0.1)(COLOURED, 0.5), cold.Blur().sigma(times), cold.Masking(3)(COLOURED, 0.5),
            cold.Masking().mask(times, 32, 32), cold.Pixelate().block(times, 16)]


COLD_STEPPERS = {"naive": naive, "improved": improved}


@case("restore", COLD_STEPPERS, DEGRADATIONS)
def _(stepper: str, kind: str) -> Result:
    model = Denoiser(with_weights(Restorer(dataclasses.replace(SMALL, n_labels=3))), Linear(), "x1")
    x = DEGRADATIONS[kind](IMAGES, 0.5)
    return [restore(model, x, kind, 3, COLD_STEPPERS[stepper]),
            restore(model, x, kind, 2, COLD_STEPPERS[stepper], 0.25)]


# ---- few steps -----------------------------------------------------------------------------------

@case("flow end")
def _() -> Result:
    model = FlowEnd(point_model("linear", "exact"), 5)
    other = FlowEnd(point_model("VP", "exact"), 5, dpmpp_2m())
    return [model(X0, 0.0, y=Y).x1, values(model(X0, 0.4)), model(X0, 1.0).x1,
            values(other(X0, 0.3)), singular(model, 1.0),
            sample(model, X0, uniform_grid(3), consistency(), generator=rng(1))]


def flow_map() -> Denoiser:
    """A small network of two times."""
    return Denoiser(with_weights(TwoTimes(MLP(width=16, n_labels=3, n_cond=1), fresh=False)).double(), Linear())


@case("flow map")
def _() -> Result:
    exact = ExactFlowMap(point_model("linear", "exact"), 5)
    began = two_times(point_model("linear", "velocity"))
    return [mean_velocity(exact, X0, 0.2, 0.7, y=Y), mean_velocity(exact, X0, T / 2, 1 - T / 2),
            sample(exact, X0, uniform_grid(3), jump(), y=Y), mean_velocity(flow_map(), X0, T / 2, 1 - T / 2, y=Y),
            sample(flow_map(), X0, uniform_grid(3), jump(), y=Y), mean_velocity(began, X0, T / 2, 1.0, y=Y),
            *draw_times(8, 0.3, 0.2, rng(1))]


@case("loss/flow map", slow=True)
def _() -> Result:
    model, teacher = flow_map(), point_model("linear", "velocity")
    times = dict(x0=X0, t=T / 2, s=1 - T / 2)
    found = [path_loss(model, X0, T / 2, X1, 1 - T / 2, y=Y)]
    for loss in (mean_flow_loss, composition_loss):
        found += [loss(model, X1, **times, y=Y), loss(model, X1, generator=rng(1), robust=0.1, y=Y)]
        found += with_gradient(loss(model, X1, teacher=teacher, **times, y=Y), model)
    return [*found, composition_loss(model, X1, teacher=teacher, step=0.1, **times, y=Y)]


@case("teacher paths", tol=SINGLE)
def _() -> Result:
    found = teacher_paths(image_model(), 5, 2.0, 4, 2, seed=1, part=3)
    return [found.xs, found.y]


@case("teacher pairs", ("1", "2"), tol=SINGLE)
def _(w: str) -> Result:
    found = teacher_pairs(image_model(), 5, float(w), 3, seed=1, part=3)
    return [found.x0, found.x1, found.y]


@case("teacher pairs/batch")
def _() -> Result:
    pairs = Pairs(normal(5, 1, 2, 2, seed=1), normal(5, 1, 2, 2, seed=2), torch.arange(5))
    return pairs.batch(torch.tensor([3, 0]))


# ---- numbers behind plots ------------------------------------------------------------------------

@case("plots")
def _() -> Result:
    x = plots.grid(2.0, 9).double()
    p = plots.scalars(lambda x: MIXTURE.log_prob(x).exp(), x)
    q = panes.quantise(x.numpy(), (-2.0, 3.0))
    return [x, p, plots.vectors(field, x, 0.5),
            plots.mass_levels(p.numpy(), [0.2, 0.5, 0.9]), plots.speed(x),
            plots.slope([1, 2, 4], [3.0, 5.0, 11.0]), torch.from_numpy(q),
            torch.from_numpy(panes.dequantise(q, (-2.0, 3.0)))]


@case("plots/tile")
def _() -> Result:
    tiles = [plots.tile(COLOURED), plots.tile(IMAGES, 3, scale=2, gap=2)]
    return [torch.from_numpy(np.array(image)) for image in tiles]


# ---- shipped models ------------------------------------------------------------------------------

DRAWING = [name for name in shipped(denoisers=True) if name not in ("cold", "scenes")]


@case("shipped", shipped())
def _(name: str) -> Result: return answers(load(name).double())


DIGITS_VAES = {p.stem: p for p in sorted((WEIGHTS / "vae-digits").glob("*.safetensors"))}


@case("shipped/vae-digits", DIGITS_VAES)
def _(name: str) -> Result: return answers(load(DIGITS_VAES[name]).double())


def answers(model: nn.Module) -> Result:
    """One call of a model in double precision."""
    if isinstance(model, Denoiser):
        x = normal(2, *model.net.shape, seed=1)
        labels = dict(y=torch.tensor([1, 2]))
        told = labels if model.net.n_labels else dict(cond=tokens(["a red circle", "two circles"]))
        return [values(model(x, T[:2], **told)), model(x[:1], 0.5).x1]
    if isinstance(model, TokenNet):
        x = (uniform(2, model.length, seed=1) * (model.n_letters + 1)).long()
        return [model(x), model(x, y=torch.tensor([1, 2])) if model.n_labels else model(x[:1])]
    x = uniform(2, *model.shape, seed=1) * 2 - 1
    if isinstance(model, Classifier): return [model(x), model.features(x)]
    z = normal(2, *model.config.latent, seed=2)
    if not isinstance(model, VAE): return model(z)
    return [model.decode(z), model.encode(x).mean, model.encode(x).log_var, model.to_unit(z)]


@case("shipped/drawing", DRAWING, tol=SINGLE, slow=True)
def _(name: str) -> Result:
    model = load(name)
    in_double(model.net)
    student = name in ("few-step", "flow-map")
    stepper = jump() if name == "flow-map" else "euler" if student else "dpmpp_2m"
    guidance = 1.0 if student else 2.0
    return generate(model, 2, 2, stepper, guidance, seed=0, precision="fp32",
                    y=torch.tensor([3, 7]))


@case("shipped/decoded latents", ("cifar10-latent", "few-step"), tol=NETWORK, slow=True)
def _(name: str) -> Result: return latent.decode(load(name), normal(2, 4, 8, 8).float())


@case("shipped/restoring", DEGRADATIONS, slow=True)
def _(kind: str) -> Result:
    x = uniform(1, 3, 32, 32, seed=1) * 2 - 1
    return restore(load("cold").double(), DEGRADATIONS[kind](x, cold.START[kind]), kind, 2)


# ---- the tests -----------------------------------------------------------------------------------

@cache
def recorded() -> dict[str, dict]: return json.loads(RECORDED.read_text("utf-8"))["cases"]


@pytest.mark.parametrize(
    "name", [pytest.param(k, marks=pytest.mark.slow if k in SLOW else ()) for k in CASES],
)
def test_result_is_what_was_recorded(name: str) -> None:
    assert name in recorded(), f"record it: python tests/test_recorded.py --record '{name}'"
    with steady(): result = digest(CASES[name]())
    want = recorded()[name]
    assert result["shape"] == want["shape"]
    tol = TOLERANCES.get(name, DOUBLE)
    for key in ("values", "mean", "std"):
        assert result[key] == pytest.approx(want[key], rel=tol, abs=tol), key


def test_nothing_is_recorded_that_is_no_case() -> None:
    assert not recorded().keys() - CASES.keys()


# ---- recording -----------------------------------------------------------------------------------

def rounded(found: dict) -> dict:
    """Nine significant digits of each number; a `ValueError` where one isn't finite."""
    def short(x: float) -> float:
        if not math.isfinite(x): raise ValueError(f"a result is {x}: expected finite numbers")
        return float(f"{x:.9g}")
    numbers = dict(mean=short(found["mean"]), std=short(found["std"]),
                   values=[short(x) for x in found["values"]])
    return dict(shape=found["shape"], **numbers)


def version() -> str:
    """The version of the package, and the commit where it lies."""
    folder = Path(diffusion_course.__file__).parent
    git = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=folder,
                         capture_output=True, encoding="utf-8")
    commit = git.stdout.strip() or "unknown"
    return f"{diffusion_course.__version__}, commit {commit}, torch {torch.__version__}"


def record(prefixes: list[str]) -> None:
    """Writes the results of the cases whose names begin so; of all where no beginning is given.

    What is recorded apart from the rest notes its own version."""
    head = version()
    cases = {}
    if prefixes and RECORDED.exists():
        before = json.loads(RECORDED.read_text("utf-8"))
        head = before["recorded_with"]
        cases = before["cases"]
    for name, compute in CASES.items():
        if prefixes and not name.startswith(tuple(prefixes)): continue
        began = time.perf_counter()
        with steady(): cases[name] = rounded(digest(compute()))
        seconds = time.perf_counter() - began
        if prefixes and version() != head: cases[name]["recorded_with"] = version()
        if seconds > 0.5 and name not in SLOW: print(f"{name}: {seconds:.1f} s, not marked slow")
    lines = [f"  {json.dumps(name)}: {json.dumps(cases[name], separators=(',', ':'))}"
             for name in CASES if name in cases]
    text = f'{{\n "recorded_with": {json.dumps(head)},\n "cases": {{\n'
    RECORDED.write_text(text + ",\n".join(lines) + "\n }\n}\n", encoding="utf-8")
    print(f"{len(lines)} cases, {RECORDED.stat().st_size / 1000:.0f} KB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Record what the library computes.")
    parser.add_argument("--record", nargs="*", metavar="NAME", required=True,
                        help="beginnings of names; none: all cases")
    record(parser.parse_args().record)
