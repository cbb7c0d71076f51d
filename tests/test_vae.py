"""The VAE: closed forms of its loss, codes in diffusion's units, a network that keeps its promises, shipped ones
that beat the best linear code."""
from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_course.checkpoints import WEIGHTS, info, load, save
from diffusion_course.images import cifar10, digits, to_bytes, to_float
from diffusion_course.options import with_options
from diffusion_course.training import train
from diffusion_course.vae import (
    PRESETS,
    VAE,
    Block,
    Posterior,
    VAEConfig,
    VAERecipe,
    psnr,
    reconstruct,
    round_trips,
    vae_loss,
)

SMALL = VAEConfig((1, 8, 8), (3, 2, 2), (16, 32))
CONFIGS = [
    SMALL,
    VAEConfig(),
    VAEConfig((3, 16, 8), (2, 4, 2), (8,), (0,), (0,), patch=4),
    VAEConfig((2, 8, 8), (1, 1, 1), (4, 4, 8, 8), (1, 0, 0, 1), (0, 1, 0, 2), patch=1),
]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def shaken(config: VAEConfig = SMALL, seed: int = 1) -> VAE:
    """A network with weights that are nowhere zero."""
    vae, g = VAE(config), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in vae.parameters(): p.copy_(torch.randn(p.shape, generator=g) / max(1, p[0].numel()) ** 0.5)
    return vae


# ---- the posterior ---------------------------------------------------------------------------------------------------

def test_kl_is_that_of_torch_summed_over_the_code() -> None:
    q = Posterior(randn(5, 2, 3, 4), randn(5, 2, 3, 4, seed=1))
    normal = torch.distributions.Normal(q.mean, q.std)
    expected = torch.distributions.kl_divergence(
        normal, torch.distributions.Normal(torch.zeros(()), torch.ones(()))
    ).sum((1, 2, 3))
    torch.testing.assert_close(q.kl(), expected)
    zero = torch.zeros(2, 1, 2, 2)
    assert (Posterior(zero, zero).kl() == 0).all() and (q.kl() > 0).all()


def test_samples_have_the_mean_and_variance_it_says() -> None:
    q = Posterior(
        torch.tensor([0.5, -2.0]).expand(40_000, 2)[..., None, None],
        torch.tensor([-2.0, 1.0]).expand(40_000, 2)[..., None, None],
    )
    z = q.sample(torch.Generator().manual_seed(0))
    assert torch.allclose(z.mean((0, 2, 3)), torch.tensor([0.5, -2.0]), atol=0.03)
    assert torch.allclose(z.var((0, 2, 3)).log(), torch.tensor([-2.0, 1.0]), atol=0.03)
    assert torch.equal(z, q.sample(torch.Generator().manual_seed(0))) and torch.equal(q.mode, q.mean)


def test_gradients_go_through_a_sample() -> None:
    mean, log_var = randn(1, 1, 2, 2).requires_grad_(), randn(1, 1, 2, 2, seed=1).requires_grad_()
    q = Posterior(mean, log_var)
    z = q.sample(torch.Generator().manual_seed(2))
    z.sum().backward()
    torch.testing.assert_close(mean.grad, torch.ones_like(mean))
    torch.testing.assert_close(log_var.grad, ((z - mean) / 2).detach())  # d z / d log_var = std eps / 2


# ---- the network -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: "-".join(map(str, c.shape + c.latent)))
def test_shapes(config: VAEConfig) -> None:
    vae, x = shaken(config), randn(2, *config.shape)
    q = vae.encode(x)
    assert q.mean.shape == q.log_var.shape == (2, *config.latent) and (vae.shape, vae.latent) == (
        config.shape,
        config.latent,
    )
    assert vae.decode(q.mode).shape == x.shape
    assert q.mean.dtype == vae.decode(q.mode).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert vae.encode(x).mean.dtype == vae.decode(q.mode).dtype == torch.float32


def test_each_position_of_the_code_stands_for_its_place() -> None:
    vae, x = shaken(VAEConfig((1, 32, 32), (2, 8, 8), (8, 8), (0, 0), (0, 0))), randn(1, 1, 32, 32)
    changed = x.clone()
    changed[..., :4, :4] += 1
    moved = (vae.encode(changed).mean - vae.encode(x).mean).abs().amax((0, 1)) > 1e-6
    assert moved[0, 0] and moved[:3, :3].sum() == moved.sum(), "a change in a corner stays there"


def test_a_block_begins_as_the_identity() -> None:
    x = randn(2, 8, 4, 4)
    assert torch.equal(Block(8)(x), x)


def test_a_seed_gives_its_weights_and_seeds_nothing_else() -> None:
    before = torch.get_rng_state()
    a, b, c = VAE(SMALL, 3), VAE(SMALL, 3), VAE(SMALL, 4)
    assert torch.equal(torch.get_rng_state(), before)
    same = [[torch.equal(p, q) for p, q in zip(a.parameters(), other.parameters(), strict=True)] for other in (b, c)]
    assert all(same[0]) and not all(same[1])


@pytest.mark.parametrize(
    "wrong, said",
    [
        (dict(shape=(3, 32)), "shape is .3, 32.: expected .channels"),
        (dict(latent=(0, 8, 8)), "latent is"),
        (dict(widths=()), "widths is"),
        (dict(blocks=(1,)), "blocks is .1,.: expected 2 numbers"),
        (dict(blocks_back=(1, -1)), "blocks_back is"),
        (dict(patch=0), "patch is 0: expected 1"),
        (dict(latent=(4, 4, 4)), "expected sides that 4"),
        (dict(shape=(3, 30, 32)), "shape is .3, 30, 32., latent"),
    ],
)
def test_configurations_that_do_not_fit(wrong: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said): VAEConfig(**wrong)


def test_bad_shapes_are_named() -> None:
    vae = VAE(SMALL)
    with pytest.raises(
        ValueError, match=r"x has shape \(2, 3, 8, 8\): expected \(B, \*\(1, 8, 8\)\)"
    ):
        vae.encode(randn(2, 3, 8, 8))
    with pytest.raises(
        ValueError, match=r"z has shape \(2, 3, 4, 4\): expected \(B, \*\(3, 2, 2\)\)"
    ):
        vae.decode(randn(2, 3, 4, 4))
    with pytest.raises(ValueError, match=r"back has shape \(1, 1, 8, 8\): expected x's, \(2, 1, 8, 8\)"):
        vae_loss(randn(2, 1, 8, 8), randn(1, 1, 8, 8), vae.encode(randn(2, 1, 8, 8)), 0.1)
    with pytest.raises(ValueError, match="a and b have shapes"): psnr(randn(2, 1, 8, 8), randn(2, 1, 8, 7))
    with pytest.raises(ValueError, match="a and b have shapes"): psnr(randn(8, 8), randn(8, 8))
    with pytest.raises(ValueError, match="batch is 0: expected 1"): reconstruct(vae, randn(2, 1, 8, 8), batch=0)
    with pytest.raises(ValueError, match="n is -1: expected 0"): round_trips(vae, randn(2, 1, 8, 8), -1)
    with pytest.raises(
        ValueError, match=r"z has shape \(1, 3, 1, 1\): expected \(B, \*\(3, 2, 2\)\), two"
    ):
        vae.standardise(randn(1, 3, 1, 1))


# ---- units -----------------------------------------------------------------------------------------------------------

def test_standardised_codes_have_unit_size_and_come_back() -> None:
    vae, z = (
        VAE(SMALL),
        randn(500, 3, 2, 2) * torch.tensor([0.1, 2.0, 30.0])[:, None, None]
        + torch.tensor([5.0, 0.0, -1.0])[:, None, None],
    )
    assert torch.equal(vae.to_unit(z), z), "before, units are those of the code"
    vae.standardise(z)
    unit = vae.to_unit(z)
    assert torch.allclose(unit.mean((0, 2, 3)), torch.zeros(3), atol=1e-4) and torch.allclose(
        unit.std((0, 2, 3)), torch.ones(3), atol=1e-4
    )
    torch.testing.assert_close(vae.from_unit(unit), z)


def test_standardising_in_small_steps_gets_there() -> None:
    vae, z = VAE(SMALL), 4 * randn(500, 3, 2, 2) + 1
    for _ in range(500): vae.standardise(z, 0.02)
    assert torch.allclose(vae.to_unit(z).std((0, 2, 3)), torch.ones(3), atol=1e-3)


def test_codes_that_never_vary_do_not_divide_by_zero() -> None:
    vae = VAE(SMALL)
    vae.standardise(torch.ones(4, 3, 2, 2))
    assert vae.to_unit(torch.ones(4, 3, 2, 2)).isfinite().all()


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    vae, x = shaken(), randn(2, 1, 8, 8)
    vae.standardise(randn(50, 3, 2, 2) * 3)
    save(vae, tmp_path / "v.safetensors", half=False, command="none")
    back = load(tmp_path / "v.safetensors")
    assert isinstance(back, VAE) and back.config == SMALL and not back.training and torch.equal(back.scale, vae.scale)
    torch.testing.assert_close(back.decode(back.encode(x).mode), vae.decode(vae.encode(x).mode))


# ---- the loss --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("s", [0.05, 1.0])
def test_the_loss_is_the_negative_elbo(s: float) -> None:
    vae, x = shaken(), randn(6, 1, 8, 8)
    q = vae.encode(x)
    back = vae.decode(q.sample(torch.Generator().manual_seed(0)))
    elbo = torch.distributions.Normal(back, s).log_prob(x).sum((1, 2, 3)) - q.kl()
    constant = 64 / 2 * math.log(2 * math.pi * s**2)
    torch.testing.assert_close(
        vae_loss(x, back, q, 2 * s**2),
        2 * s**2 / 64 * (-elbo.mean() - constant),
        rtol=1e-4,
        atol=1e-5,
    )


def test_a_plain_autoencoder_draws_no_noise_and_pays_no_nats() -> None:
    x, y = digits().batch(slice(8))
    seeds = [torch.Generator().manual_seed(k) for k in (0, 1)]
    for kl in (0.0, 0.1):
        config, vae = dataclasses.replace(PRESETS["vae-digits"], kl=kl), shaken(PRESETS["vae-digits"].net)
        a, b = (config.loss(vae, x, y, g) for g in seeds)
        assert (a == b) == (kl == 0)
    vae = shaken(PRESETS["vae-digits"].net)
    plain = dataclasses.replace(PRESETS["vae-digits"], kl=0.0).loss(vae, x, y, seeds[0])
    torch.testing.assert_close(plain, (vae.decode(vae.encode(x).mode) - x).square().mean())


# ---- training --------------------------------------------------------------------------------------------------------

TINY = dataclasses.replace(PRESETS["vae-digits"], images=16_000, log_every=1_600, precision="fp32")


def test_a_short_training_learns_notes_its_units_and_writes_a_model(tmp_path: Path) -> None:
    x = digits("test").batch(slice(None))[0]
    vae = train(TINY, tmp_path, progress=False, command="test")
    assert (reconstruct(vae, x) - x).square().mean() < 0.6 * x.var(), "better than the mean picture by far"
    unit = vae.to_unit(vae.encode(x).mode)
    assert ((unit.std((0, 2, 3)) - 1).abs() < 0.35).all() and (unit.mean((0, 2, 3)).abs() < 0.3).all()
    assert (
        load(tmp_path / "model.safetensors").config == TINY.net
        and info(tmp_path / "model.safetensors")["config"]["kl"] == TINY.kl
    )
    assert TINY.preview(vae).shape == (32, 1, 8, 8)
    again = dataclasses.replace(TINY, start=str(tmp_path / "model.safetensors")).build()
    assert again.training and torch.allclose(again.scale, vae.scale, rtol=1e-3)
    other = dataclasses.replace(TINY, start=str(tmp_path / "model.safetensors"), net=SMALL)
    with pytest.raises(ValueError, match="start is .*model.safetensors.* expected VAEConfig"): other.build()


def test_recipes_that_can_not_be() -> None:
    with pytest.raises(ValueError, match="kl is -1"): VAERecipe(kl=-1)
    with pytest.raises(ValueError, match="kl is nan"): VAERecipe(kl=math.nan)
    with pytest.raises(
        ValueError, match=r"net.shape is \(3, 32, 32\): expected the data's, \(1, 8, 8\)"
    ):
        VAERecipe(data="digits").fits(digits())


@pytest.mark.parametrize("name", PRESETS)
def test_presets_say_how_large_they_are(name: str) -> None:
    config = PRESETS[name]
    weights = sum(p.numel() for p in config.build().parameters())
    said = config.about.split(" M weights")[0].split()[-1] if " M weights" in config.about else "0.1"
    assert float(said) == round(weights / 1e6, 1), weights
    assert math.prod(config.net.latent) == int(config.about.split(" numbers")[0].split("= ")[-1].split()[0])
    assert config.net.shape == (1, 8, 8) if config.data == "digits" else (3, 32, 32)


# ---- quality ---------------------------------------------------------------------------------------------------------

def test_psnr_of_known_errors() -> None:
    a = torch.zeros(3, 1, 4, 4)
    b = a + torch.tensor([0.02, 0.2, 2.0])[:, None, None, None]
    torch.testing.assert_close(psnr(a, b), torch.tensor([40.0, 20.0, 0.0], dtype=torch.float64), atol=1e-5, rtol=0)
    assert psnr(a, a).isinf().all()
    u, v = to_bytes(randn(2, 3, 8, 8) / 3), to_bytes(randn(2, 3, 8, 8, seed=1) / 3)
    error = (u.double() - v.double()).square().mean((1, 2, 3))
    torch.testing.assert_close(psnr(to_float(u), to_float(v)), 10 * (255**2 / error).log10(), rtol=1e-5, atol=1e-5)


def test_reconstructing_in_parts_is_reconstructing() -> None:
    vae, x = shaken(), randn(7, 1, 8, 8)
    with torch.autocast("cpu", enabled=False):
        assert torch.allclose(reconstruct(vae, x, batch=3), reconstruct(vae, x), atol=0.02)
    assert not reconstruct(vae, x).requires_grad


@pytest.mark.parametrize("rounding", [True, False])
def test_round_trips_are_reconstructions_of_reconstructions(rounding: bool) -> None:
    vae, x = load(WEIGHTS / "vae-digits" / "kl-0.1.safetensors"), digits("test").batch(slice(5))[0]
    states = round_trips(vae, x, 3, rounding)
    assert states.shape == (4, *x.shape) and torch.equal(states[0], x) and torch.equal(round_trips(vae, x, 0), x[None])
    once = reconstruct(vae, states[1])
    torch.testing.assert_close(states[2], to_float(to_bytes(once)) if rounding else once)
    assert rounding == torch.equal(to_float(to_bytes(states[1])), states[1])


# ---- the shipped ones ------------------------------------------------------------------------------------------------

SHIPPED = {
    "vae-small": PRESETS["vae-small"],
    "vae-64": PRESETS["vae-64"],
    "vae-512": PRESETS["vae-512"],
    **{
        f"vae-digits/kl-{k}": dataclasses.replace(PRESETS["vae-digits"], kl=float(k))
        for k in ("0", "0.01", "0.1", "0.5", "2")
    },
}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_one_is_what_its_preset_says(name: str) -> None:
    path = WEIGHTS / f"{name}.safetensors"
    vae, about = load(path), info(path)
    made = with_options(SHIPPED[name], about["config"])
    assert vae.config == made.net == SHIPPED[name].net
    ignore = dict(about="", stages=(), log_every=1, save_every=1)
    assert dataclasses.replace(made, **ignore) == dataclasses.replace(
        SHIPPED[name], **ignore
    ), "shipped weights are those of the preset"
    assert (
        about["images"] >= made.images
        and about["seconds"] > 0
        and about["command"].startswith("diffusion-course train vae-")
    )


def test_shipped_weights_are_small() -> None:
    names = ("vae-*", "vae-digits/*", "cifar10-latent", "cold", "few-step")  # of lessons 17 to 21
    sizes = {p.name: p.stat().st_size for name in names for p in WEIGHTS.glob(f"{name}.safetensors")}
    assert len(sizes) == 12 and sum(sizes.values()) < 15e6, sizes


def test_the_kl_weight_trades_error_for_nats() -> None:
    x = digits("test").batch(slice(None))[0]
    vaes = [
        load(WEIGHTS / "vae-digits" / f"kl-{k}.safetensors").requires_grad_(False)
        for k in ("0.01", "0.1", "0.5", "2")
    ]
    errors, nats = [(reconstruct(v, x) - x).square().mean().item() for v in vaes], [
        v.encode(x).kl().mean().item() for v in vaes
    ]
    assert errors == sorted(errors) and nats == sorted(nats, reverse=True)


@pytest.fixture(scope="module")
def pictures() -> tuple[Tensor, Tensor]:
    """10,000 pictures to fit to, 1,000 to judge by."""
    try:
        return (
            cifar10(download=False).batch(slice(10_000))[0],
            cifar10("test", download=False).batch(slice(1000))[0],
        )
    except FileNotFoundError:
        pytest.skip(
            "CIFAR-10 isn't on this machine: set DIFFUSION_COURSE_DATA or run cifar10() once"
        )


def blocks(x: Tensor) -> Tensor: return F.unfold(x.double(), 8, stride=8).mT.flatten(0, 1)


@pytest.mark.parametrize("name, numbers, margin", [("vae-64", 64, 0.5), ("vae-small", 256, 1.0)])
def test_the_network_beats_the_best_linear_code(
    pictures: tuple[Tensor, Tensor], name: str, numbers: int, margin: float
) -> None:
    """By the mean of decibels and by decibels of the mean error; 1 dB at 256 numbers a picture is the promise of
    lesson 17."""
    seen, x = pictures
    b = blocks(seen)
    mean, V = b.mean(0), torch.linalg.eigh(torch.cov(b.T)).eigenvectors[:, -numbers // 16:]
    linear = F.fold((mean + (blocks(x) - mean) @ V @ V.T).unflatten(0, (len(x), -1)).mT, (32, 32), 8, stride=8)
    back = reconstruct(load(name), x)
    assert psnr(x, back).mean() - psnr(x, linear).mean() > margin
    ratio = (x - linear).square().mean() / (x - back).square().mean()
    assert 10 * ratio.log10() > margin


def test_ten_round_trips_lose_at_every_trip(pictures: tuple[Tensor, Tensor]) -> None:
    states = round_trips(load("vae-small"), pictures[1][:200], 10)
    quality = torch.stack([psnr(x, states[0]).mean() for x in states[1:]])
    assert (quality.diff() < 0).all() and quality[0] - quality[-1] > 0.3
