"""The VAE: closed forms of its loss, latents in diffusion's units, a network that keeps its promises, shipped ones that
beat the best linear code."""
from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import normal, rng
from torch import Tensor

from diffusion_course.checkpoints import WEIGHTS, info, load, save
from diffusion_course.images import Images, cifar10, digits, to_bytes, to_float
from diffusion_course.options import with_options
from diffusion_course.training import train
from diffusion_course.vae import (
    PRESETS, VAE, Block, DiagonalGaussian, VAEConfig, VAERecipe, psnr, reconstruct, round_trips, vae_loss,
)

SMALL = VAEConfig((1, 8, 8), (3, 2, 2), (16, 32))
CONFIGS = [
    SMALL,
    VAEConfig(),
    VAEConfig((3, 16, 8), (2, 4, 2), (8,), (0,), (0,), patch=4),
    VAEConfig((2, 8, 8), (1, 1, 1), (4, 4, 8, 8), (1, 0, 0, 1), (0, 1, 0, 2), patch=1),
]


def randn(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers in single precision."""
    return normal(*shape, seed=seed, dtype=torch.float32)


def with_random_weights(config: VAEConfig = SMALL, seed: int = 1) -> VAE:
    """A network whose weights are nowhere zero."""
    vae = VAE(config)
    g = rng(seed)
    with torch.no_grad():
        for p in vae.parameters(): p.copy_(torch.randn(p.shape, generator=g) / max(1, p[0].numel()) ** 0.5)
    return vae


# ---- the encoder's Gaussian ------------------------------------------------------------------------------------------

def test_kl_is_that_of_torch_summed_over_the_latent() -> None:
    q = DiagonalGaussian(randn(5, 2, 3, 4), randn(5, 2, 3, 4, seed=1))
    prior = torch.distributions.Normal(torch.zeros(()), torch.ones(()))
    expected = torch.distributions.kl_divergence(torch.distributions.Normal(q.mean, q.std), prior)
    torch.testing.assert_close(q.kl(), expected.sum((1, 2, 3)))
    zero = torch.zeros(2, 1, 2, 2)
    assert (DiagonalGaussian(zero, zero).kl() == 0).all() and (q.kl() > 0).all()


def test_samples_have_the_mean_and_variance_it_says() -> None:
    mean, log_var = torch.tensor([0.5, -2.0]), torch.tensor([-2.0, 1.0])
    q = DiagonalGaussian(*(v.expand(40_000, 2)[..., None, None] for v in (mean, log_var)))
    z = q.sample(rng())
    assert torch.allclose(z.mean((0, 2, 3)), mean, atol=0.03)
    assert torch.allclose(z.var((0, 2, 3)).log(), log_var, atol=0.03)
    assert torch.equal(z, q.sample(rng())) and torch.equal(q.mode, q.mean)


def test_gradients_go_through_a_sample() -> None:
    mean = randn(1, 1, 2, 2).requires_grad_()
    log_var = randn(1, 1, 2, 2, seed=1).requires_grad_()
    q = DiagonalGaussian(mean, log_var)
    z = q.sample(rng(2))
    z.sum().backward()
    torch.testing.assert_close(mean.grad, torch.ones_like(mean))
    torch.testing.assert_close(log_var.grad, ((z - mean) / 2).detach())  # d z / d log_var = std eps / 2


def test_a_generator_draws_where_it_lives() -> None:
    zero = torch.zeros(2, 1, 2, 2, device="meta")
    assert DiagonalGaussian(zero, zero).sample(rng()).device.type == "meta"


# ---- the network -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: "-".join(map(str, c.shape + c.latent)))
def test_shapes(config: VAEConfig) -> None:
    vae = with_random_weights(config)
    x = randn(2, *config.shape)
    q = vae.encode(x)
    assert (vae.shape, vae.latent) == (config.shape, config.latent)
    assert q.mean.shape == q.log_var.shape == (2, *config.latent)
    assert vae.decode(q.mode).shape == x.shape
    assert q.mean.dtype == vae.decode(q.mode).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert vae.encode(x).mean.dtype == vae.decode(q.mode).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_images_and_networks_of_any_precision(dtype: torch.dtype) -> None:
    vae = with_random_weights()
    x = randn(2, 1, 8, 8).to(dtype)
    z = vae.encode(x).mean
    expected = vae.decode(vae.encode(x.float()).mean)
    torch.testing.assert_close(vae.decode(z.to(dtype)), expected, atol=0.1, rtol=0.1)
    vae.to(dtype)
    assert vae.encode(x.float()).mean.dtype == vae.decode(z).dtype == torch.float32
    torch.testing.assert_close(vae.decode(vae.encode(x.float()).mean), expected, atol=0.1, rtol=0.1)


def test_each_position_of_the_latent_stands_for_its_place() -> None:
    vae = with_random_weights(VAEConfig((1, 32, 32), (2, 8, 8), (8, 8), (0, 0), (0, 0)))
    x = randn(1, 1, 32, 32)
    changed = x.clone()
    changed[..., :4, :4] += 1
    moved = (vae.encode(changed).mean - vae.encode(x).mean).abs().amax((0, 1)) > 1e-6
    assert moved[0, 0] and moved[:3, :3].sum() == moved.sum(), "a change in a corner stays there"


def test_a_block_begins_as_the_identity() -> None:
    x = randn(2, 8, 4, 4)
    assert torch.equal(Block(8)(x), x)


def test_a_seed_gives_its_weights_and_seeds_nothing_else() -> None:
    before = torch.get_rng_state()
    a, same, other = VAE(SMALL, 3), VAE(SMALL, 3), VAE(SMALL, 4)
    assert torch.equal(torch.get_rng_state(), before)

    def equal(b: VAE) -> list[bool]:
        return [torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True)]

    assert all(equal(same)) and not all(equal(other))


@pytest.mark.parametrize("wrong, message", [
    (dict(shape=(3, 32)), "shape is .3, 32.: expected .channels"),
    (dict(latent=(0, 8, 8)), "latent is"),
    (dict(widths=()), "widths is"),
    (dict(blocks=(1,)), "blocks is .1,.: expected 2 numbers"),
    (dict(blocks_back=(1, -1)), "blocks_back is"),
    (dict(patch=0), "patch is 0: expected 1"),
    (dict(latent=(4, 4, 4)), "expected sides that 4"),
    (dict(shape=(3, 30, 32)), "shape is .3, 30, 32., latent"),
])
def test_configurations_that_are_impossible(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message): VAEConfig(**wrong)


def test_bad_input_is_named() -> None:
    vae = VAE(SMALL)
    x = randn(2, 1, 8, 8)
    with pytest.raises(ValueError, match=r"x is torch.float32 of shape \(2, 3, 8, 8\): .* \(B, 1, 8, 8\)"):
        vae.encode(randn(2, 3, 8, 8))
    with pytest.raises(ValueError, match=r"z is torch.float32 of shape \(2, 3, 4, 4\): .* \(B, 3, 2, 2\)"):
        vae.decode(randn(2, 3, 4, 4))
    with pytest.raises(ValueError, match="x is torch.uint8 .*: expected floating-point"):
        vae.encode(to_bytes(x))
    with pytest.raises(ValueError, match="x is torch.uint8 .*: expected floating-point"):
        reconstruct(vae, to_bytes(x))
    with pytest.raises(
        ValueError, match=r"x_hat has shape \(1, 1, 8, 8\): expected that of x, \(2, 1, 8, 8\)"
    ):
        vae_loss(x, x[:1], vae.encode(x), 0.1)
    with pytest.raises(ValueError, match="batch is 0: expected a whole number, 1 or more"):
        reconstruct(vae, x, batch=0)
    with pytest.raises(ValueError, match="n is -1: expected a whole number, 0 or more"):
        round_trips(vae, x, -1)
    with pytest.raises(ValueError, match=r"z has shape \(1, 3, 1, 1\): expected \(B, \*\(3, 2, 2\)\), two"):
        vae.standardise(randn(1, 3, 1, 1))


# ---- units -----------------------------------------------------------------------------------------------------------

def test_standardised_latents_have_unit_size_and_come_back() -> None:
    vae = VAE(SMALL)
    mean, std = (torch.tensor(v)[:, None, None] for v in ([5.0, 0.0, -1.0], [0.1, 2.0, 30.0]))
    z = randn(500, 3, 2, 2) * std + mean
    assert torch.equal(vae.to_unit(z), z), "before, units are those of the encoder"
    vae.standardise(z)
    unit = vae.to_unit(z)
    assert torch.allclose(unit.mean((0, 2, 3)), torch.zeros(3), atol=1e-4)
    assert torch.allclose(unit.std((0, 2, 3)), torch.ones(3), atol=1e-4)
    torch.testing.assert_close(vae.from_unit(unit), z)


def test_standardising_in_small_steps_gets_there() -> None:
    vae = VAE(SMALL)
    z = 4 * randn(500, 3, 2, 2) + 1
    for _ in range(500): vae.standardise(z, 0.02)
    assert torch.allclose(vae.to_unit(z).std((0, 2, 3)), torch.ones(3), atol=1e-3)


def test_latents_that_never_vary_do_not_divide_by_zero() -> None:
    vae = VAE(SMALL)
    vae.standardise(torch.ones(4, 3, 2, 2))
    assert vae.to_unit(torch.ones(4, 3, 2, 2)).isfinite().all()


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    vae = with_random_weights()
    x = randn(2, 1, 8, 8)
    vae.standardise(randn(50, 3, 2, 2) * 3)
    save(vae, tmp_path / "v.safetensors", half=False, command="none")
    loaded = load(tmp_path / "v.safetensors")
    assert isinstance(loaded, VAE) and loaded.config == SMALL
    assert not loaded.training and torch.equal(loaded.scale, vae.scale)
    torch.testing.assert_close(loaded.decode(loaded.encode(x).mode), vae.decode(vae.encode(x).mode))


# ---- the loss --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("s", [0.05, 1.0])
def test_the_loss_is_the_negative_elbo(s: float) -> None:
    vae = with_random_weights()
    x = randn(6, 1, 8, 8)
    q = vae.encode(x)
    x_hat = vae.decode(q.sample(rng()))
    elbo = torch.distributions.Normal(x_hat, s).log_prob(x).sum((1, 2, 3)) - q.kl()
    constant = 64 / 2 * math.log(2 * math.pi * s**2)
    expected = 2 * s**2 / 64 * (-elbo.mean() - constant)
    torch.testing.assert_close(vae_loss(x, x_hat, q, 2 * s**2), expected, rtol=1e-4, atol=1e-5)


def test_a_plain_autoencoder_draws_no_noise_and_pays_no_nats() -> None:
    x, y = digits().batch(slice(8))
    for kl in (0.0, 0.1):
        recipe = dataclasses.replace(PRESETS["vae-digits"], kl=kl)
        vae = with_random_weights(recipe.net)
        a, b = (recipe.loss(vae, x, y, rng(seed)) for seed in (0, 1))
        assert (a == b) == (kl == 0)
    vae = with_random_weights(PRESETS["vae-digits"].net)
    plain = dataclasses.replace(PRESETS["vae-digits"], kl=0.0).loss(vae, x, y, rng())
    torch.testing.assert_close(plain, (vae.decode(vae.encode(x).mode) - x).square().mean())


# ---- training --------------------------------------------------------------------------------------------------------

TINY = dataclasses.replace(PRESETS["vae-digits"], images=16_000, log_every=1_600, precision="fp32")


def test_a_short_training_learns_measures_its_units_and_writes_a_model(tmp_path: Path) -> None:
    x = digits("test").batch(slice(None))[0]
    path = tmp_path / "model.safetensors"
    vae = train(TINY, tmp_path, progress=False, command="test")
    assert (reconstruct(vae, x) - x).square().mean() < 0.6 * x.var(), "better than the mean image by far"
    unit = vae.to_unit(vae.encode(x).mode)
    assert ((unit.std((0, 2, 3)) - 1).abs() < 0.35).all() and (unit.mean((0, 2, 3)).abs() < 0.3).all()
    assert load(path).config == TINY.net and info(path)["config"]["kl"] == TINY.kl
    assert TINY.preview(vae).shape == (32, 1, 8, 8)
    again = dataclasses.replace(TINY, start=str(path)).build()
    assert again.training and torch.allclose(again.scale, vae.scale, rtol=1e-3)
    other = dataclasses.replace(TINY, start=str(path), net=SMALL)
    with pytest.raises(ValueError, match="start is .*model.safetensors', a VAE.*: expected a VAE with"):
        other.build()


def test_recipes_that_are_impossible() -> None:
    with pytest.raises(ValueError, match="kl is -1"): VAERecipe(kl=-1)
    with pytest.raises(ValueError, match="kl is nan"): VAERecipe(kl=math.nan)
    with pytest.raises(ValueError, match=r"net.shape is \(3, 32, 32\): expected the data's, \(1, 8, 8\)"):
        VAERecipe(data="digits").check_data(digits())


def images(channels: int, side: int = 8, n: int = 20) -> Images:
    """Grey images of any shape."""
    return Images(torch.full((n, channels, side, side), 127).byte(), torch.zeros(n).long(), ("grey",))


def with_data(monkeypatch: pytest.MonkeyPatch, data: Images, test: Images) -> None:
    """Own images in place of the digits."""
    from diffusion_course.training import DATA

    monkeypatch.setitem(DATA, "digits", lambda split: data if split == "train" else test)


@pytest.mark.parametrize("test, message", [
    (images(4), r"images have shape \(4, 8, 8\): expected 1 or 3 channels, or no stages"),
    (images(4, 16), r"images have shape \(4, 8, 8\): expected 1 or 3 channels"),
])
def test_what_no_stage_can_show_is_refused_before_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, test: Images, message: str,
) -> None:
    with_data(monkeypatch, images(4), test)
    net = VAEConfig((4, 8, 8), (2, 2, 2), (8, 8), blocks_back=(1, 1))
    recipe = VAERecipe(data="digits", net=net, images=64, batch=32, stages=(32,), save_every=64)
    with pytest.raises(ValueError, match=message): train(recipe, tmp_path / "a", progress=False)
    assert not (tmp_path / "a" / "model.safetensors").exists()
    train(dataclasses.replace(recipe, stages=()), tmp_path / "b", progress=False)
    assert (tmp_path / "b" / "model.safetensors").exists()


def test_test_images_of_another_shape_are_refused_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    with_data(monkeypatch, images(3), images(3, 16))
    recipe = VAERecipe(data="digits", net=VAEConfig((3, 8, 8), (2, 2, 2)), stages=(32,))
    with pytest.raises(
        ValueError,
        match=r"test images of digits have shape \(3, 16, 16\): expected that of the data",
    ):
        recipe.check_data(images(3))
    dataclasses.replace(recipe, stages=()).check_data(images(3))


@pytest.mark.parametrize("n, rows", [(3, 6), (11, 22)])
def test_few_test_images_are_shown_too(monkeypatch: pytest.MonkeyPatch, n: int, rows: int) -> None:
    with_data(monkeypatch, images(1), images(1, n=n))
    recipe = VAERecipe(data="digits", net=VAEConfig((1, 8, 8), (2, 2, 2), (8, 8)))
    assert len(recipe.preview(recipe.build())) == rows


@pytest.mark.parametrize("name", PRESETS)
def test_presets_say_how_large_they_are(name: str) -> None:
    recipe = PRESETS[name]
    weights = sum(p.numel() for p in recipe.build().parameters())
    text = recipe.about.split(" M weights")[0].split()[-1] if " M weights" in recipe.about else "0.1"
    assert float(text) == round(weights / 1e6, 1), weights
    assert math.prod(recipe.net.latent) == int(recipe.about.split(" numbers")[0].split("= ")[-1].split()[0])
    assert recipe.net.shape == ((1, 8, 8) if recipe.data == "digits" else (3, 32, 32))


# ---- quality ---------------------------------------------------------------------------------------------------------

def test_psnr_of_known_errors() -> None:
    a = torch.zeros(3, 1, 4, 4)
    b = a + torch.tensor([0.02, 0.2, 2.0])[:, None, None, None]
    expected = torch.tensor([40.0, 20.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(psnr(a, b), expected, atol=1e-5, rtol=0)
    assert psnr(a, a).isinf().all()


def test_psnr_of_bytes_is_that_of_the_images_they_stand_for() -> None:
    a = to_bytes(randn(2, 3, 8, 8) / 3)
    b = to_bytes(randn(2, 3, 8, 8, seed=1) / 3)
    error = (a.double() - b.double()).square().mean((1, 2, 3))
    expected = 10 * (255**2 / error).log10()
    for u, v in ((a, b), (to_float(a), to_float(b)), (a, to_float(b)), (to_float(a).double(), b)):
        torch.testing.assert_close(psnr(u, v), expected, rtol=1e-5, atol=1e-5)
    assert psnr(a, a).isinf().all() and psnr(a, to_float(a)).isinf().all()


def test_psnr_in_16_bits_is_measured_in_double_precision() -> None:
    a = (randn(2, 3, 8, 8) / 3).clamp(-1, 1).half()
    b = (a + 0.01).half()
    assert psnr(a, b).dtype == torch.float64
    torch.testing.assert_close(psnr(a, b), psnr(a.double(), b.double()))


NAN = torch.full((1, 3, 4, 4), math.nan)
ZERO = torch.zeros(1, 3, 4, 4)


@pytest.mark.parametrize("a, b, message", [
    (ZERO, ZERO[..., :3], "a and b have shapes"),
    (ZERO[0], ZERO[0], "a and b have shapes"),
    (NAN, ZERO, "a holds 48 values that are NaN or infinite"),
    (ZERO, ZERO + math.inf, "b holds 48 values that are NaN or infinite"),
    (ZERO, ZERO.long(), r"b is torch.int64: expected floating-point numbers in \[-1, 1\], or bytes"),
    (ZERO > 0, ZERO, "a is torch.bool"),
    (ZERO + 255, ZERO + 12, r"a holds values from 255 to 255: expected images in \[-1, 1\], or bytes"),
    (ZERO, torch.linspace(0, 3, 48).view(1, 3, 4, 4), "b holds values from 0 to 3"),
    (ZERO, torch.linspace(-128, 127, 48).view(1, 3, 4, 4), "b holds values from -128 to 127"),
])
def test_what_psnr_can_not_compare_is_refused(a: Tensor, b: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message): psnr(a, b)


def test_psnr_of_what_a_decoder_exaggerates() -> None:
    x_hat = torch.linspace(-60, 60, 48).view(1, 3, 4, 4)
    assert psnr(ZERO, x_hat) < 0 and psnr(ZERO[:0], ZERO[:0]).shape == (0,)


def test_reconstructing_in_parts_is_reconstructing() -> None:
    vae = with_random_weights()
    x = randn(7, 1, 8, 8)
    with torch.autocast("cpu", enabled=False):
        assert torch.allclose(reconstruct(vae, x, batch=3), reconstruct(vae, x), atol=0.02)
    assert not reconstruct(vae, x).requires_grad


@pytest.mark.parametrize("rounding", [True, False])
def test_round_trips_are_reconstructions_of_reconstructions(rounding: bool) -> None:
    vae = load(WEIGHTS / "vae-digits" / "kl-0.1.safetensors")
    x = digits("test").batch(slice(5))[0]
    states = round_trips(vae, x, 3, rounding)
    assert states.shape == (4, *x.shape)
    assert torch.equal(states[0], x) and torch.equal(round_trips(vae, x, 0), x[None])
    once = reconstruct(vae, states[1])
    torch.testing.assert_close(states[2], to_float(to_bytes(once)) if rounding else once)
    assert rounding == torch.equal(to_float(to_bytes(states[1])), states[1])


# ---- the shipped ones ------------------------------------------------------------------------------------------------

KLS = ("0", "0.01", "0.1", "0.5", "2")
SHIPPED = {name: PRESETS[name] for name in ("vae-small", "vae-64", "vae-512")}
SHIPPED |= {f"vae-digits/kl-{kl}": dataclasses.replace(PRESETS["vae-digits"], kl=float(kl)) for kl in KLS}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_one_is_what_its_preset_says(name: str) -> None:
    path = WEIGHTS / f"{name}.safetensors"
    vae, about, preset = load(path), info(path), SHIPPED[name]
    recipe = with_options(preset, about["config"])
    assert vae.config == recipe.net == preset.net
    ignore = dict(about="", stages=(), log_every=1, save_every=1)
    assert dataclasses.replace(recipe, **ignore) == dataclasses.replace(preset, **ignore), \
        "shipped weights are those of the preset"
    assert about["images"] >= recipe.images and about["seconds"] > 0
    assert about["command"].startswith("diffusion-course train vae-")


def test_shipped_weights_are_small() -> None:
    names = ("vae-*", "vae-digits/*", "cifar10-latent", "cold", "few-step")  # of lessons 17 to 21
    sizes = {p.name: p.stat().st_size for name in names for p in WEIGHTS.glob(f"{name}.safetensors")}
    assert len(sizes) == 12 and sum(sizes.values()) < 20e6, sizes


def test_the_kl_weight_trades_error_for_nats() -> None:
    x = digits("test").batch(slice(None))[0]
    vaes = [load(WEIGHTS / "vae-digits" / f"kl-{kl}.safetensors").requires_grad_(False) for kl in KLS[1:]]
    errors = [(reconstruct(vae, x) - x).square().mean().item() for vae in vaes]
    nats = [vae.encode(x).kl().mean().item() for vae in vaes]
    assert errors == sorted(errors) and nats == sorted(nats, reverse=True)


@pytest.fixture(scope="module")
def cifar() -> tuple[Tensor, Tensor]:
    """10,000 images to fit to, 1,000 to measure with."""
    try:
        data, test = (cifar10(split, download=False) for split in ("train", "test"))
    except FileNotFoundError:
        pytest.skip("CIFAR-10 isn't at hand: set DIFFUSION_COURSE_DATA or run cifar10() once")
    return data.batch(slice(10_000))[0], test.batch(slice(1000))[0]


def blocks(x: Tensor) -> Tensor:
    """(n, C, H, W) -> (blocks of 8 x 8 pixels, 64 C)."""
    return F.unfold(x.double(), 8, stride=8).mT.flatten(0, 1)


@pytest.mark.parametrize("name, numbers, margin", [("vae-64", 64, 0.5), ("vae-small", 256, 1.0)])
def test_the_network_beats_the_best_linear_code(
    cifar: tuple[Tensor, Tensor], name: str, numbers: int, margin: float,
) -> None:
    """By the mean of decibels and by decibels of the mean error; 1 dB at 256 numbers is lesson 17's promise."""
    x_fit, x = cifar
    b = blocks(x_fit)
    mu = b.mean(0)
    V = torch.linalg.eigh(torch.cov(b.T)).eigenvectors[:, -numbers // 16:]
    linear_blocks = mu + (blocks(x) - mu) @ V @ V.T
    linear = F.fold(linear_blocks.unflatten(0, (len(x), -1)).mT, (32, 32), 8, stride=8)
    x_hat = reconstruct(load(name), x)
    assert psnr(x, x_hat).mean() - psnr(x, linear).mean() > margin
    ratio = (x - linear).square().mean() / (x - x_hat).square().mean()
    assert 10 * ratio.log10() > margin


def test_ten_round_trips_lose_at_every_trip(cifar: tuple[Tensor, Tensor]) -> None:
    states = round_trips(load("vae-small"), cifar[1][:200], 10)
    quality = torch.stack([psnr(x, states[0]).mean() for x in states[1:]])
    assert (quality.diff() < 0).all() and quality[0] - quality[-1] > 0.3
