"""Diffusion and flow models from the ground up: paths x_t = alpha(t) x1 + sigma(t) eps, their models, and samplers.

    import diffusion_course as dc

    model = dc.load("cifar10")                                       # shipped inside the package
    dc.show_images(dc.generate(model, 16, steps=20, guidance=2.0, y=3, seed=0))

Names that are used together stand here, and are imported when they are first used; all others are in their modules.

Lessons: `distributions` data, densities, toy sets; `solvers` ODE and SDE steps; `schedules` the path; `predictions`
targets, exact models, what a model is; `matching` the loss, a small network, training in the plane; `sde` churn;
`samplers` the loop, steppers, grids; `ddpm` discrete time, inversion; `guidance`; `edm` Karras' design; `couplings`
optimal transport, reflow; `images` digits and CIFAR-10; `unet`; `training`; `generation` sampling images; `evaluation`;
`vae`; `latent` latent diffusion; `few_step` students of one to four steps; `inpainting`; `cold` blur in place of noise;
`clinic` broken code to diagnose; `transformer` patches, captions, negative prompts; `flow_maps` jumps between any two
times; `discrete` tokens and masks.

Toolbox: `checkpoints`, `checking`, `classifier`, `cli`, `diagnosis`, `expect`, `files`, `folders`, `former`, `hub`
others' models, `metrics`, `options`, `panes`, `player`, `plots`, `relations`, `runs` folders of trainings, `scenes`
captioned shapes, `seeds`, `style`, `textures`, `trials`, `widgets`.
"""
from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:  # what editors and type checkers see; a test holds it equal to _NAMES
    from .checkpoints import load, register, save
    from .ddpm import cosine_betas, invert, linear_betas, posterior, q_sample
    from .discrete import ExactTokens, TokenChain, TokenNet, TokenNetConfig, fill
    from .distributions import GaussianMixture, running_mixture, toy, toy_names
    from .generation import generate, previews
    from .guidance import classifier_free, classifier_guided
    from .hub import from_diffusers, to_diffusers
    from .matching import MLP, fit, matching_loss
    from .plots import show_images, show_samples
    from .predictions import Denoiser, EmpiricalDenoiser, ExactDenoiser, Model, ModelWrapper, Prediction, to_prediction
    from .samplers import (
        Trajectory, ancestral, ddim, dpmpp_2m, euler, euler_maruyama, heun, karras_grid, log_snr_grid, midpoint, rk4,
        sample, trajectory, uniform_grid,
    )
    from .schedules import DDPM, Cosine, Linear, Schedule, VarianceExploding, VariancePreserving
    from .solvers import em_step, euler_step, heun_step, integrate, midpoint_step, rk4_step
    from .transformer import DiT, DiTConfig, prompted, tokens
    from .unet import UNet, UNetConfig

_NAMES = {
    "checkpoints": ("load", "register", "save"),
    "ddpm": ("cosine_betas", "invert", "linear_betas", "posterior", "q_sample"),
    "discrete": ("ExactTokens", "TokenChain", "TokenNet", "TokenNetConfig", "fill"),
    "distributions": ("GaussianMixture", "running_mixture", "toy", "toy_names"),
    "generation": ("generate", "previews"),
    "guidance": ("classifier_free", "classifier_guided"),
    "hub": ("from_diffusers", "to_diffusers"),
    "matching": ("MLP", "fit", "matching_loss"),
    "plots": ("show_images", "show_samples"),
    "predictions": ("Denoiser", "EmpiricalDenoiser", "ExactDenoiser", "Model", "ModelWrapper", "Prediction",
                    "to_prediction"),
    "samplers": ("Trajectory", "ancestral", "ddim", "dpmpp_2m", "euler", "euler_maruyama", "heun", "karras_grid",
                 "log_snr_grid", "midpoint", "rk4", "sample", "trajectory", "uniform_grid"),
    "schedules": ("DDPM", "Cosine", "Linear", "Schedule", "VarianceExploding", "VariancePreserving"),
    "solvers": ("em_step", "euler_step", "heun_step", "integrate", "midpoint_step", "rk4_step"),
    "transformer": ("DiT", "DiTConfig", "prompted", "tokens"),
    "unet": ("UNet", "UNetConfig"),
}
_MODULES = (
    *_NAMES, "checking", "classifier", "cli", "clinic", "cold", "couplings", "diagnosis", "edm", "evaluation", "expect",
    "few_step", "files", "flow_maps", "folders", "former", "images", "inpainting", "latent", "metrics", "options",
    "panes", "player", "relations", "runs", "scenes", "sde", "seeds", "style", "textures", "training", "trials", "vae",
    "widgets", "your_own",
)
_WHERE = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [  # in words, because type checkers read no other
    "Cosine", "DDPM", "Denoiser", "DiT", "DiTConfig", "EmpiricalDenoiser", "ExactDenoiser", "ExactTokens",
    "GaussianMixture", "Linear", "MLP", "Model", "ModelWrapper", "Prediction", "Schedule", "TokenChain", "TokenNet",
    "TokenNetConfig", "Trajectory", "UNet", "UNetConfig", "VarianceExploding", "VariancePreserving", "ancestral",
    "classifier_free", "classifier_guided", "cosine_betas", "ddim", "dpmpp_2m", "em_step", "euler", "euler_maruyama",
    "euler_step", "fill", "fit", "from_diffusers", "generate", "heun", "heun_step", "integrate", "invert",
    "karras_grid", "linear_betas", "load", "log_snr_grid", "matching_loss", "midpoint", "midpoint_step", "posterior",
    "previews", "prompted", "q_sample", "register", "rk4", "rk4_step", "running_mixture", "sample", "save",
    "show_images", "show_samples", "to_diffusers", "to_prediction", "tokens", "toy", "toy_names", "trajectory",
    "uniform_grid",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE: value = vars(import_module(f".{_WHERE[name]}", __name__))[name]
    elif name in _MODULES: value = import_module(f".{name}", __name__)
    else: raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]: return sorted({*globals(), *_WHERE, *_MODULES})
