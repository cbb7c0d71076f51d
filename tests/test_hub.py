"""Other people's models: each kind samples here as in diffusers, comes back as it was, or is refused by name."""
from __future__ import annotations

import copy
import math
import sys
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import diffusion_course as dc
from diffusion_course import hub
from diffusion_course.checkpoints import load, save
from diffusion_course.ddpm import linear_betas
from diffusion_course.generation import as_images, as_samples, generate, noise
from diffusion_course.hub import (
    Clipped, DiffusersLatentNet, DiffusersNet, from_diffusers, prompt_conditions, times_of, to_diffusers,
)
from diffusion_course.images import DenoiseNet
from diffusion_course.inpainting import known_region
from diffusion_course.latent import decode
from diffusion_course.samplers import ancestral, ddim, dpmpp_2m, euler, heun, sample, uniform_grid

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    diffusers = pytest.importorskip("diffusers")

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
diffusers.utils.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()

BLOCKS = dict(block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8)
PLAIN = dict(down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)
CROSS = dict(
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    cross_attention_dim=12, attention_head_dim=4,
)
TRANSFORMER = dict(num_layers=2, attention_head_dim=8, num_attention_heads=2, sample_size=8, patch_size=2)


def lively(module: nn.Module, size: float = 1.0, seed: int = 0) -> Any:
    """A network with random weights of which none is zero, and whose output is of about unit size."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            spread = size / math.sqrt(p[0].numel()) if p.ndim > 1 else 0.1
            p.copy_(spread * torch.randn(p.shape, generator=g) + (name.endswith("weight") and p.ndim == 1))
    return module.eval().requires_grad_(False)


@cache
def unet(**options: Any) -> Any:
    return lively(diffusers.UNet2DModel(
        **dict(sample_size=8, in_channels=3, out_channels=3) | BLOCKS | PLAIN | options))


def text_unet(**options: Any) -> Any:
    return lively(diffusers.UNet2DConditionModel(
        **dict(sample_size=8, in_channels=4, out_channels=4) | BLOCKS | CROSS | options))


def dit(**options: Any) -> Any:
    return lively(diffusers.DiTTransformer2DModel(**dict(
        in_channels=4, out_channels=8, num_embeds_ada_norm=5, norm_num_groups=4, **TRANSFORMER) | options))


def autoencoder(**options: Any) -> Any:
    return lively(diffusers.AutoencoderKL(**dict(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        scaling_factor=0.3) | options))


def start(module: Any, n: int = 3, seed: int = 0) -> Tensor:
    c = module.config
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, c.in_channels, c.sample_size, c.sample_size, generator=g)


def exact(scheduler: Any) -> Any:
    """The same scheduler with its products of alphas in double precision: single keeps three digits of 1 - product
    next to the data, and there a prediction of the data is divided by its root."""
    scheduler.alphas_cumprod = (1 - scheduler.betas.double()).cumprod(0)
    if scheduler.config.get("set_alpha_to_one") is False: scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    return scheduler


@torch.no_grad()
def theirs(scheduler: Any, module: Any, x: Tensor, n: int, w: float | None = None, null: dict | None = None,
           step: dict | None = None, **cond: Any) -> Tensor:
    """The loop of diffusers' pipelines, with guidance where w is given."""
    scheduler.set_timesteps(n)
    call = module if "UNet" in type(module).__name__ else lambda x, t, **c: module(x, timestep=t.expand(len(x)), **c)
    for t in scheduler.timesteps:
        z = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        y = call(z, t, **cond).sample[:, : x.shape[1]]
        if w is not None:
            y_null = call(z, t, **(null or {})).sample[:, : x.shape[1]]
            y = y_null + w * (y - y_null)
        x = scheduler.step(y, t, x, **(step or {})).prev_sample
    return x


def images_of(drawn: Any) -> Tensor:
    """What a pipeline drew, as images in [-1, 1]."""
    return torch.from_numpy(drawn.images).permute(0, 3, 1, 2) * 2 - 1


def error(ours: Tensor, other: Tensor) -> float:
    assert ours.isfinite().all() and ours.std() > 0.1
    return ((ours - other).norm() / other.norm()).item()


def listens(model: Any, x: Tensor, t: float = 0.3, **cond: Any) -> None:
    """The network's output depends on x and on the time, or the comparisons would say nothing."""
    with torch.no_grad():
        out = model.net(x, torch.full((len(x),), t), **cond)
        later = model.net(x, torch.full((len(x),), t + 0.2), **cond)
    assert out.std() > 0.2 and error(later, out) > 0.02


BETAS = {
    "linear": {}, "scaled_linear": dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
    "squaredcos": dict(beta_schedule="squaredcos_cap_v2"),
    "trained": dict(trained_betas=torch.linspace(1e-3, 0.05, 200).tolist(), num_train_timesteps=200),
}
SPACING = {
    "leading": {}, "trailing": dict(timestep_spacing="trailing"),
    "stable diffusion": dict(steps_offset=1, set_alpha_to_one=False),
}


# ---- each kind samples as in diffusers -----------------------------------------------------------

@pytest.mark.parametrize("target", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("spacing", SPACING)
def test_ddim(betas: str, spacing: str, target: str) -> None:
    module = unet()
    s = diffusers.DDIMScheduler(clip_sample=False, prediction_type=target, **BETAS[betas], **SPACING[spacing])
    model = from_diffusers(module, s)
    x = start(module)
    listens(model, x)
    assert error(sample(model, x, times_of(s, 5), ddim()), theirs(exact(s), module, x, 5).float()) < 1e-4


@pytest.mark.parametrize(("kind", "target"), [
    ("DDIMScheduler", "sample"), ("DDIMScheduler", "v_prediction"), ("EulerDiscreteScheduler", "v_prediction"),
    ("DPMSolverMultistepScheduler", "sample"), ("DPMSolverMultistepScheduler", "v_prediction"),
])
def test_zero_terminal_snr(kind: str, target: str) -> None:
    module = unet()
    options = dict(clip_sample=False) if kind == "DDIMScheduler" else {}
    s = getattr(diffusers, kind)(
        prediction_type=target, rescale_betas_zero_snr=True, timestep_spacing="trailing", **options)
    model = from_diffusers(module, s)
    x = start(module)
    alpha = model.schedule.alpha(0.0)
    assert alpha < 3e-4 and model.schedule.alpha(0.1) > 1e-3
    s.set_timesteps(10)
    scaled = x * (s.sigmas[0] ** 2 + 1).sqrt() if kind == "EulerDiscreteScheduler" else x
    stepper = dpmpp_2m() if kind.startswith("DPM") else ddim()
    ours = sample(model, x, times_of(s, 10), stepper)
    assert error(ours, theirs(s, module, scaled, 10)) < 1e-4


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("target", ["epsilon", "v_prediction"])
def test_euler_discrete_is_ddim(spacing: str, target: str) -> None:
    module = unet()
    s = diffusers.EulerDiscreteScheduler(prediction_type=target, timestep_spacing=spacing)
    model = from_diffusers(module, s)
    ts = times_of(s, 10)
    x = start(module)
    other = theirs(s, module, (x / model.schedule.alpha(ts[0])).float(), 10)
    assert error(sample(model, x, ts, ddim()), other) < 1e-4


def test_euler_discrete_with_karras_sigmas() -> None:
    """Between timesteps diffusers interpolates log sigma, a DDPM schedule log alpha: the network is told of slightly
    other fractions of a timestep."""
    module = unet()
    s = diffusers.EulerDiscreteScheduler(use_karras_sigmas=True)
    model = from_diffusers(module, s)
    ts = times_of(s, 10)
    s.set_timesteps(10)
    ratio = model.schedule.sigma(ts[:-1]) / model.schedule.alpha(ts[:-1])
    torch.testing.assert_close(ratio.float(), s.sigmas[:-1], rtol=1e-4, atol=0)
    told = model.net.reading.timestep(ts[:-1])
    assert (told - s.timesteps).abs().max() < 0.02
    x = start(module)
    other = theirs(s, module, (x / model.schedule.alpha(ts[0])).float(), 10)
    assert error(sample(model, x, ts, ddim()), other) < 1e-4


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("target", ["epsilon", "sample", "v_prediction"])
def test_dpm_solver(spacing: str, target: str) -> None:
    module = unet()
    s = diffusers.DPMSolverMultistepScheduler(
        prediction_type=target, timestep_spacing=spacing, algorithm_type="dpmsolver++", solver_order=2)
    model = from_diffusers(module, s)
    x = start(module)
    assert error(sample(model, x, times_of(s, 10), dpmpp_2m()), theirs(s, module, x, 10)) < 1e-4


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching(shift: float) -> None:
    module = unet()
    s = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    model = from_diffusers(module, s)
    assert isinstance(model.schedule, dc.Linear) and model.kind == "velocity"
    x = start(module)
    listens(model, x)
    ts = times_of(s, 10)
    assert error(sample(model, x, ts, euler()), theirs(s, module, x, 10)) < 1e-4
    assert (ts[5] < 0.4) == (shift > 1), "more of the steps are near the noise"


def test_flow_matching_with_heun() -> None:
    module = unet()
    s = diffusers.FlowMatchHeunDiscreteScheduler()
    ts = times_of(diffusers.FlowMatchEulerDiscreteScheduler(), 10)
    x = start(module)
    assert error(sample(from_diffusers(module, s), x, ts, heun()), theirs(s, module, x, 10)) < 1e-4


@pytest.mark.parametrize("target", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("sigmas", ["karras", "exponential"])
@pytest.mark.parametrize(("kind", "stepper"), [
    ("EDMEulerScheduler", ddim()), ("EDMEulerScheduler", euler()), ("EDMDPMSolverMultistepScheduler", dpmpp_2m()),
])
def test_edm(kind: str, stepper: Any, sigmas: str, target: str) -> None:
    module = unet()
    s = getattr(diffusers, kind)(
        sigma_min=0.01, sigma_max=40.0, sigma_data=0.7, prediction_type=target, sigma_schedule=sigmas)
    model = from_diffusers(module, s)
    assert (model.kind, model.sigma_data) == ("F", 0.7) and isinstance(model.schedule, dc.VarianceExploding)
    x = 40 * start(module)
    ts = times_of(s, 10)
    assert len(ts) == 10 and ts[-1] == 1
    if sigmas == "karras": torch.testing.assert_close(
        ts, dc.karras_grid(9, model.schedule, ratio_min=0.01, ratio_max=40), atol=1e-6, rtol=0)
    ours = sample(model, x, ts, stepper)
    if stepper.__qualname__.startswith("_ode"):  # Euler in t, not in sigma, is another solver of the same path
        assert error(ours, theirs(s, module, x, 10)) < 2
    else: assert error(ours, theirs(s, module, x, 10)) < 1e-4


def test_continuous_times_of_euler_discrete_are_edm() -> None:
    module = unet()
    s = diffusers.EulerDiscreteScheduler(
        timestep_type="continuous", prediction_type="v_prediction", use_karras_sigmas=True, sigma_min=0.002,
        sigma_max=80.0)
    model = from_diffusers(module, s)
    assert model.kind == "F" and model.sigma_data == 1
    x = 80 * start(module)
    assert error(sample(model, x, times_of(s, 10), ddim()), theirs(s, module, x, 10)) < 1e-4


@pytest.mark.parametrize("clip", [1.0, 0.5])
def test_clipping_is_that_of_ddim_and_of_ddpm(clip: float, monkeypatch: pytest.MonkeyPatch) -> None:
    module = unet()
    s = diffusers.DDIMScheduler(clip_sample_range=clip, timestep_spacing="trailing")
    model = from_diffusers(module, s)
    assert isinstance(model, Clipped)
    x = start(module)
    ours = sample(model, x, times_of(s, 10), ddim())
    assert ours.abs().max() <= clip + 1e-6
    assert error(ours, theirs(s, module, x, 10, step=dict(use_clipped_model_output=True))) < 1e-4
    plain = from_diffusers(module, s, clip=False)
    assert isinstance(plain, dc.Denoiser)
    assert error(sample(plain, x, times_of(s, 10), ddim()), ours) > 0.01, "clipping is felt"

    from diffusers.schedulers import scheduling_ddpm
    z = torch.randn(10, *x.shape, generator=torch.Generator().manual_seed(1))
    theirs_z, ours_z = iter(z), iter(z)
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *_, **__: next(theirs_z))
    s = diffusers.DDPMScheduler(clip_sample_range=clip)
    other = theirs(s, module, x, 10)
    ours = sample(from_diffusers(module, s), x, times_of(s, 10), ancestral(), noise=lambda *_: next(ours_z))
    assert error(ours, other) < 1e-4


def test_dynamic_thresholding() -> None:
    module = unet()
    s = diffusers.DDIMScheduler(
        thresholding=True, dynamic_thresholding_ratio=0.8, sample_max_value=1.4, timestep_spacing="trailing")
    model = from_diffusers(module, s)
    x = start(module)
    other = theirs(s, module, x, 10, step=dict(use_clipped_model_output=True))
    assert error(sample(model, x, times_of(s, 10), ddim()), other) < 1e-4


def test_learned_variance_is_left_aside() -> None:
    module = unet(out_channels=6)
    s = diffusers.DDIMScheduler(clip_sample=False)
    x = start(module)
    assert error(sample(from_diffusers(module, s), x, times_of(s, 10), ddim()), theirs(s, module, x, 10)) < 1e-4


# ---- conditions and guidance ---------------------------------------------------------------------

def test_a_labelled_unet() -> None:
    module = unet(num_class_embeds=4)
    s = diffusers.DDIMScheduler(clip_sample=False)
    x, y = start(module), torch.tensor([0, 3, 1])
    other = theirs(s, module, x, 10, class_labels=y)
    model = from_diffusers(module, s)
    assert dc.predictions.n_labels(model) == 4
    assert error(sample(model, x, times_of(s, 10), ddim(), y=y), other) < 1e-4
    with pytest.raises(ValueError, match="y holds labels .* expected 0 to 3"): model(x, 0.5, y=4)
    with pytest.raises(ValueError, match='none that says "no label"'): model(x, 0.5)

    guided = dc.classifier_free(from_diffusers(module, s, null_label=True), 2.5)
    y = torch.tensor([0, 2, 1])
    null = dict(class_labels=torch.full((3,), 3))
    other = theirs(s, module, x, 10, 2.5, null, class_labels=y)
    assert error(sample(guided, x, times_of(s, 10), ddim(), y=y), other) < 1e-4


def test_dit_as_its_pipeline_draws_it() -> None:
    """The pipeline's null label is 1000, and its guidance_scale our w."""
    s = diffusers.DDIMScheduler(clip_sample=False)
    pipe = diffusers.DiTPipeline(dit(num_embeds_ada_norm=1000), autoencoder(), s)
    model = from_diffusers(pipe)
    assert isinstance(model.net, DiffusersLatentNet) and dc.predictions.null_label(model) == 1000
    x = start(pipe.transformer, 2, seed=5)
    ts = times_of(pipe.scheduler, 10)
    pipe.set_progress_bar_config(disable=True)
    for w in (1.0, 4.0):
        there = images_of(pipe([7, 9], w, torch.Generator().manual_seed(5), 10, "np"))
        ours = as_images(model, sample(dc.classifier_free(model, w), x, ts, ddim(), y=torch.tensor([7, 9])))
        assert error(ours.clamp(-1, 1), there) < 1e-4


def text_conditions(rows: int = 3) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(3)
    return dict(encoder_hidden_states=torch.randn(rows, 6, 12, generator=g))


def test_texts_are_rows_of_a_table() -> None:
    module = text_unet()
    s = diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1, **BETAS["scaled_linear"])
    table = text_conditions()
    e = table["encoder_hidden_states"]
    model = from_diffusers(module, s, conditions=table)
    x, y = start(module), torch.tensor([1, 0, 1])
    other = theirs(s, module, x, 10, 7.5, dict(encoder_hidden_states=e[[2, 2, 2]]), encoder_hidden_states=e[y])
    ours = sample(dc.classifier_free(model, 7.5), x, times_of(s, 10), ddim(), y=y)
    assert error(ours, other) < 1e-4

    by_hand = from_diffusers(module, s)
    other = theirs(s, module, x, 10, encoder_hidden_states=e[y])
    assert error(sample(by_hand, x, times_of(s, 10), ddim(), encoder_hidden_states=e[y]), other) < 1e-4
    torch.testing.assert_close(
        by_hand(x, 0.5, encoder_hidden_states=e[:1]).x1, model(x, 0.5, y=0).x1)
    images = generate(model, 2, 5, "dpmpp_2m", guidance=3.0, y=1, seed=0)
    assert images.shape == (2, 4, 8, 8) and images.isfinite().all()
    with pytest.raises(ValueError, match="called without encoder_hidden_states"): by_hand(x, 0.5)
    with pytest.raises(ValueError, match="knows no labels"):
        by_hand(x, 0.5, y=1, encoder_hidden_states=e[:1])


def test_added_conditions() -> None:
    """As in Stable Diffusion XL."""
    module = text_unet(
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=8 * 6 + 5)
    s = diffusers.DDIMScheduler(clip_sample=False)
    added = dict(text_embeds=torch.randn(3, 5), time_ids=torch.tensor([[8.0, 8, 0, 0, 8, 8]]).expand(3, 6))
    table = text_conditions() | dict(added_cond_kwargs=added)
    model = from_diffusers(module, s, conditions=table)
    x, y = start(module), torch.tensor([1, 0, 1])
    other = theirs(
        s, module, x, 10, encoder_hidden_states=table["encoder_hidden_states"][y],
        added_cond_kwargs={k: v[y] for k, v in added.items()})
    assert error(sample(model, x, times_of(s, 10), ddim(), y=y), other) < 1e-4
    with pytest.raises(ValueError, match="called without added_cond_kwargs"):
        from_diffusers(module, s)(x, 0.5, encoder_hidden_states=torch.randn(1, 6, 12))


def test_sd3_and_pixart() -> None:
    flow = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    sd3 = lively(diffusers.SD3Transformer2DModel(
        in_channels=4, out_channels=4, joint_attention_dim=12, caption_projection_dim=16, pooled_projection_dim=5,
        pos_embed_max_size=8, **TRANSFORMER))
    x = start(sd3)
    cond = dict(encoder_hidden_states=torch.randn(3, 6, 12), pooled_projections=torch.randn(3, 5))
    model = from_diffusers(sd3, flow)
    assert error(sample(model, x, times_of(flow, 10), euler(), **cond), theirs(flow, sd3, x, 10, **cond)) < 1e-4
    with pytest.raises(ValueError, match="called without pooled_projections"):
        model(x, 0.5, encoder_hidden_states=cond["encoder_hidden_states"])

    pixart = lively(diffusers.PixArtTransformer2DModel(
        in_channels=4, out_channels=8, cross_attention_dim=16, caption_channels=12, norm_num_groups=4,
        use_additional_conditions=False, **TRANSFORMER))
    s = diffusers.DPMSolverMultistepScheduler()
    cond = dict(encoder_hidden_states=torch.randn(3, 6, 12))
    added = dict(resolution=None, aspect_ratio=None)
    other = theirs(s, pixart, x, 10, added_cond_kwargs=added, **cond)
    model = from_diffusers(pixart, s)
    assert error(sample(model, x, times_of(s, 10), dpmpp_2m(), added_cond_kwargs=added, **cond), other) < 1e-4


class TextPipeline(diffusers.DiffusionPipeline):
    """Stands for Stable Diffusion, whose text encoders are in another library: the same `encode_prompt`."""

    def __init__(self, unet: Any, scheduler: Any, vae: Any):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, vae=vae)
        self.vae_scale_factor = 2

    def encode_prompt(self, prompt: str, device: Any, num_images_per_prompt: int, do_classifier_free_guidance: bool):
        assert not do_classifier_free_guidance and num_images_per_prompt == 1
        row = torch.full((1, 6, 12), float(len(prompt)))
        if self.unet.config.addition_embed_type is None: return row, None
        return row, None, torch.full((1, 5), float(len(prompt))), None


def test_prompts() -> None:
    s = diffusers.DDIMScheduler(clip_sample=False)
    table = prompt_conditions(TextPipeline(text_unet(), s, autoencoder()), ["a", "abc"], "no")
    assert set(table) == {"encoder_hidden_states"}
    assert table["encoder_hidden_states"][:, 0, 0].tolist() == [1, 3, 2]
    xl = text_unet(
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=8 * 6 + 5)
    pipe = TextPipeline(xl, s, autoencoder())
    table = prompt_conditions(pipe, ["a"])
    assert table["added_cond_kwargs:text_embeds"][:, 0].tolist() == [1, 0]
    assert table["added_cond_kwargs:time_ids"].tolist() == [[16, 16, 0, 0, 16, 16]] * 2
    model = from_diffusers(pipe, conditions=table)
    assert generate(model, 1, 2, guidance=2.0, y=0, seed=0).isfinite().all()
    with pytest.raises(ValueError, match="prompts is empty"): prompt_conditions(pipe, [])
    with pytest.raises(ValueError, match="network is a UNet2DModel: expected that of Stable Diffusion"):
        prompt_conditions(TextPipeline(unet(), s, None), ["a"])


# ---- a model like any other ----------------------------------------------------------------------

def test_what_models_can_do() -> None:
    module = unet()
    model = from_diffusers(module, diffusers.DDPMScheduler(clip_sample=False))
    x = generate(model, 2, 6, "dpmpp_2m", seed=0, precision="fp32")
    assert x.shape == (2, 3, 8, 8)
    calm = from_diffusers(lively(copy.deepcopy(module), 0.4), model.net.scheduler)
    there_and_back = lambda ts: sample(calm, dc.invert(calm, x, ts), ts, ddim())
    errors = [error(there_and_back(uniform_grid(n)), x) for n in (10, 40)]
    assert errors[1] < errors[0] / 2 and errors[1] < 0.2
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[..., :4] = True
    kept = sample(model, noise(model, 2, 1), uniform_grid(10), known_region(ddim(), x, mask))
    torch.testing.assert_close(kept[..., :4], x[..., :4])
    p = model(x, 0.5)
    torch.testing.assert_close(p.x, p.mix(*model.schedule.weights(0.5)))
    model = copy.deepcopy(model).requires_grad_(True)
    dc.matching_loss(model, x, generator=torch.Generator().manual_seed(0)).backward()
    assert all(p.grad is not None for p in model.parameters()), "it can be trained on"


def test_latents_are_decoded_and_encoded_as_the_pipeline_does() -> None:
    vae = autoencoder(shift_factor=0.2)
    net = from_diffusers(TextPipeline(text_unet(), diffusers.DDIMScheduler(clip_sample=False), vae)).net
    z = start(net.module)
    there = vae.decode(z / 0.3 + 0.2).sample
    torch.testing.assert_close(net.decode(z), there)
    torch.testing.assert_close(decode(dc.Denoiser(net, dc.Linear()), z), there, atol=0.05, rtol=0.05)  # in 16 bits
    inside = net.vae()
    torch.testing.assert_close(inside.from_unit(inside.to_unit(z)), z)
    assert inside.shape == there.shape[1:] and inside.latent == z.shape[1:]
    unit = (inside.encode(there).mode - 0.2) * 0.3
    torch.testing.assert_close(as_samples(dc.Denoiser(net, dc.Linear()), there), unit)
    torch.testing.assert_close(inside.encode(there).mode, vae.encode(there).latent_dist.mean)


def test_checkpoints_know_it(tmp_path: Path) -> None:
    s = diffusers.DDIMScheduler(clip_sample=False, **BETAS["scaled_linear"])
    model = from_diffusers(TextPipeline(text_unet(), s, autoencoder()), conditions=text_conditions())
    save(model, tmp_path / "a.safetensors", half=False)
    again = load(tmp_path / "a.safetensors")
    x = start(model.net.module)
    torch.testing.assert_close(again(x, 0.4, y=1).x1, model(x, 0.4, y=1).x1, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(again.net.decode(x), model.net.decode(x), atol=1e-4, rtol=1e-5)
    for key, value in model.net.state_dict().items(): assert torch.equal(again.net.state_dict()[key], value)
    assert again.net.config == model.net.config
    edm = from_diffusers(unet(), diffusers.EDMEulerScheduler())
    save(edm, tmp_path / "b.safetensors", half=False)
    x = start(edm.net.module)
    torch.testing.assert_close(load(tmp_path / "b.safetensors")(x, 0.4).x1, edm(x, 0.4).x1, atol=1e-4, rtol=1e-5)


# ---- and back ------------------------------------------------------------------------------------

def settings(thing: Any) -> dict:
    """A configuration without what diffusers notes of the file and of itself; lists and tuples are the same."""
    plain = lambda v: [plain(u) for u in v] if isinstance(v, (list, tuple)) else v
    return {k: plain(v) for k, v in thing.config.items() if not k.startswith("_")}


def same(a: Any, b: Any) -> None:
    assert type(a) is type(b) and settings(a) == settings(b)
    if not isinstance(a, nn.Module): return
    ours, others = a.state_dict(), b.state_dict()
    assert ours.keys() == others.keys() and all(torch.equal(ours[k], others[k]) for k in ours)


@pytest.mark.parametrize("scheduler", [
    diffusers.DDPMScheduler(clip_sample=False), diffusers.DDIMScheduler(prediction_type="sample", **BETAS["trained"]),
    diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0),
], ids=lambda s: type(s).__name__)
def test_round_trip_of_a_unet(scheduler: Any, tmp_path: Path) -> None:
    module = unet()
    pipe = to_diffusers(from_diffusers(module, scheduler), tmp_path / "new" / "unet")
    assert pipe.unet is module
    same(pipe.scheduler, scheduler)
    loaded = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "new" / "unet")
    assert type(loaded) is type(pipe)
    again = from_diffusers(loaded)
    same(loaded.unet, module)
    same(loaded.scheduler, scheduler)
    x = start(module)
    assert torch.equal(again(x, 0.3).x1, from_diffusers(module, scheduler)(x, 0.3).x1)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["unet"], "nothing else is left"


def test_round_trip_of_pipelines() -> None:
    pipe = diffusers.DiTPipeline(dit(), autoencoder(), diffusers.DDIMScheduler(clip_sample=False))
    back = to_diffusers(from_diffusers(pipe))
    for name in ("transformer", "vae", "scheduler"): same(back.components[name], pipe.components[name])
    pipe = TextPipeline(text_unet(), diffusers.DDIMScheduler(clip_sample=False), autoencoder())
    model = from_diffusers(pipe)
    with pytest.raises(ValueError, match="no pipeline of a UNet2DConditionModel and a DDIMScheduler alone"):
        to_diffusers(model)
    back = to_diffusers(model, pipeline=pipe)
    assert type(back) is TextPipeline and back.unet is pipe.unet and back.vae is pipe.vae
    with pytest.raises(ValueError, match="the pipeline has a UNet2DConditionModel as unet: expected a UNet2DModel"):
        to_diffusers(from_diffusers(unet(), pipe.scheduler), pipeline=pipe)


def course_unet(labels: int = 3) -> nn.Module:
    return lively(dc.UNet(dc.UNetConfig(
        shape=(3, 8, 8), widths=(16, 16), attention=(), head=16, patch=1, n_labels=labels)))


@pytest.mark.parametrize(("schedule", "kind", "stepper"), [
    (dc.Linear(), "velocity", euler()), *((dc.DDPM(linear_betas(1000)), kind, ddim()) for kind in ("eps", "x1", "v")),
])
def test_the_courses_own_unet_in_diffusers(schedule: Any, kind: str, stepper: Any, tmp_path: Path) -> None:
    model = dc.Denoiser(course_unet(), schedule, kind).eval()
    to_diffusers(model, tmp_path / "pipe")
    pipe = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "pipe")
    pipe.set_progress_bar_config(disable=True)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    options = dict(batch_size=2, generator=g, num_inference_steps=10, output_type="np")
    if kind == "velocity":  # DDPMPipeline; DDIM's steps below are the scheduler's own with eta = 0
        there = images_of(pipe(**options))
        ours = sample(model, x, times_of(pipe.scheduler, 10), stepper).clamp(-1, 1)
    else:
        there = theirs(pipe.scheduler, pipe.unet, x, 10)
        ours = sample(model, x, times_of(pipe.scheduler, 10), stepper)
    assert error(ours, there) < 1e-4
    t = pipe.scheduler.timesteps[3]
    y = torch.tensor([2, 0])
    labelled = pipe.unet(x, t, class_labels=y).sample
    assert error(pipe.unet(x, t).sample, labelled) > 1e-3, "labels are heard"


def test_a_course_network_of_another_kind() -> None:
    net = DenoiseNet()
    pipe = to_diffusers(dc.Denoiser(net, dc.Linear()))
    assert pipe.unet.net is net and type(pipe.unet) is hub.CourseNet
    assert type(pipe.unet).__module__ == "diffusion_course.hub"


# ---- what is refused -----------------------------------------------------------------------------

@pytest.mark.parametrize(("thing", "scheduler", "message"), [
    (lambda: unet(), None, "scheduler is None: expected the one that the network was trained with"),
    (lambda: unet(), diffusers.ScoreSdeVeScheduler(), "scheduler is a ScoreSdeVeScheduler: expected one of DDPM"),
    (lambda: unet(), diffusers.LCMScheduler(), "scheduler is a LCMScheduler"),
    (lambda: unet(), diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "invert_sigmas is True"),
    (lambda: unet(), diffusers.DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
     "prediction_type flow sigmas: expected one of epsilon, sample, v_prediction"),
    (lambda: unet(), diffusers.DDIMScheduler(rescale_betas_zero_snr=True), "'epsilon' with rescale_betas_zero_snr"),
    (lambda: unet(in_channels=5), diffusers.DDPMScheduler(), "takes 5 channels and returns 3"),
    (lambda: unet(class_embed_type="timestep"), diffusers.DDPMScheduler(), "class_embed_type is 'timestep'"),
    (lambda: unet(time_embedding_type="fourier"), diffusers.DDPMScheduler(), "time_embedding_type is 'fourier'"),
    (lambda: nn.Linear(2, 2), diffusers.DDPMScheduler(), "the network is a Linear: expected one of UNet2DModel"),
    (lambda: TextPipeline(None, diffusers.DDPMScheduler(), autoencoder()), None, "expected a unet or a transformer"),
])
def test_what_cannot_be_converted_is_named(thing: Any, scheduler: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message): from_diffusers(thing(), scheduler)


def test_bad_tables() -> None:
    s = diffusers.DDIMScheduler()
    with pytest.raises(ValueError, match="conditions hold .1. rows: expected K \\+ 1"):
        from_diffusers(text_unet(), s, conditions=text_conditions(1))
    with pytest.raises(ValueError, match="conditions hold .2, 3. rows"):
        from_diffusers(text_unet(), s, conditions=text_conditions() | dict(other=torch.zeros(2, 1)))


@pytest.mark.parametrize(("model", "message"), [
    (lambda: dc.Denoiser(course_unet(), dc.Cosine()), "predicts 'velocity' on Cosine"),
    (lambda: dc.Denoiser(course_unet(), dc.Linear(), "eps"), "predicts 'eps' on Linear"),
    (lambda: dc.Denoiser(dc.MLP(), dc.Linear()), "the network is a MLP of shape"),
    (lambda: dc.classifier_free(dc.Denoiser(course_unet(), dc.Linear()), 2.0), "model is a ClassifierFree"),
    (lambda: dc.load("cifar10-latent"), "the model is one of latents"),
    (lambda: from_diffusers(unet(), diffusers.EDMEulerScheduler()), "no pipeline of a UNet2DModel and a EDMEuler"),
])
def test_what_has_no_pipeline_is_named(model: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message): to_diffusers(model(), tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("mine", encoding="utf-8")
    model = from_diffusers(unet(), diffusers.DDPMScheduler())
    with pytest.raises(ValueError, match="holds something: expected a new or an empty one"):
        to_diffusers(model, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_grids_that_are_none() -> None:
    with pytest.raises(ValueError, match="scheduler is a PNDMScheduler, which has times of its own"):
        times_of(diffusers.PNDMScheduler(), 10)
    with pytest.raises(ValueError, match="final_sigmas_type is 'sigma_min'"):
        times_of(diffusers.EDMEulerScheduler(final_sigmas_type="sigma_min"), 10)
    with pytest.raises(ValueError, match="n is 0"): times_of(diffusers.DDIMScheduler(), 0)
    s = diffusers.DDIMScheduler()
    before = s.timesteps.clone()
    times_of(s, 10)
    assert torch.equal(s.timesteps, before), "the scheduler is left as it is"


def test_without_diffusers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    for call in (dc.from_diffusers, dc.to_diffusers):
        with pytest.raises(ValueError, match=r'not installed .*: expected pip install "diffusion-course\[hub\]"'):
            call(None)


def test_the_net_is_a_plain_module() -> None:
    net = from_diffusers(unet(), diffusers.DDPMScheduler(clip_sample=False)).net
    assert isinstance(net, DiffusersNet) and net.shape == (3, 8, 8)
    assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in net.module.parameters())
