"""Latents as data: encoding once, whose latents they are, the loss and the way back to images."""
from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import normal, rng, uniform
from PIL import Image
from torch import nn

from diffusion_course import few_step, latent
from diffusion_course.checkpoints import WEIGHTS, info, load, save
from diffusion_course.classifier import Classifier, ClassifierConfig
from diffusion_course.evaluation import EvaluateConfig, scores_of
from diffusion_course.generation import SampleConfig, as_images, generate, sample_to_files
from diffusion_course.images import CIFAR10_NAMES, Images, digits
from diffusion_course.latent import (
    PRESETS,
    Decoder,
    DecoderConfig,
    DecoderRecipe,
    LatentRecipe,
    Latents,
    LatentUNet,
    LatentUNetConfig,
    checksum,
    decode,
    encode_all,
    perceptual_loss,
    adversarial_losses,
    Discriminator,
)
from diffusion_course.matching import matching_loss
from diffusion_course.options import with_options
from diffusion_course.predictions import Denoiser
from diffusion_course.schedules import Linear
from diffusion_course.training import train
from diffusion_course.vae import VAE, VAEConfig

SMALL = VAEConfig(shape=(1, 8, 8), latent=(4, 2, 2), widths=(16, 32), blocks=(1, 1), blocks_back=(1, 1))
NET = dict(shape=(4, 2, 2), widths=(16,), attention=(), head=16)


@pytest.fixture
def digit_vae(tmp_path: Path) -> str:
    """A file with a small autoencoder whose latents have neither mean 0 nor standard deviation 1."""
    vae = VAE(SMALL, seed=3).eval()
    with torch.no_grad(): vae.standardise(vae.encode(digits().batch(slice(0, 500))[0]).mean)
    save(vae, tmp_path / "vae.safetensors")
    return str(tmp_path / "vae.safetensors")


@pytest.fixture
def recipe(digit_vae: str) -> LatentRecipe:
    """A short training on digits."""
    net = LatentUNetConfig(**NET, vae=digit_vae)
    return LatentRecipe(
        data="digits",
        net=net,
        flip=True,
        images=96,
        batch=32,
        log_every=32,
        save_every=64,
        precision="fp32",
    )


@pytest.fixture
def critic(tmp_path: Path) -> str:
    """A file with a small classifier of digits, of random weights."""
    net = Classifier(ClassifierConfig((1, 8, 8), 8, (16, 32), (0, 1)), seed=5)
    save(net, tmp_path / "critic.safetensors")
    return str(tmp_path / "critic.safetensors")


def some_digits(n: int = 40) -> Images:
    """The first n digits."""
    d = digits()
    return Images(d.x[:n], d.y[:n], d.names)


# ---- latents as data -------------------------------------------------------------------------------------------------

def test_encode_all_is_encode_of_each_image_and_of_its_mirror_image(digit_vae: str) -> None:
    vae = load(digit_vae)
    images = some_digits()
    latents = encode_all(vae, images, batch=7)
    assert (
        len(latents) == 40
        and latents.mean.shape == (2, 40, 4, 2, 2)
        and latents.mean.dtype == torch.float16
    )
    i = torch.tensor([3, 30, 8, 8])
    flip = torch.tensor([True, False, True, False])
    z, y = latents.batch(i, flip)
    with torch.no_grad(): q = vae.encode(images.batch(i, flip)[0])
    # half precision, and bf16 where it is quicker
    torch.testing.assert_close(z[:, :4], vae.to_unit(q.mean), atol=0.03, rtol=0.03)
    torch.testing.assert_close(z[:, 4:], q.std / vae.scale, atol=0.03, rtol=0.05)
    assert torch.equal(y, images.y[i])
    same = latents.batch(torch.arange(5), torch.zeros(5, dtype=torch.bool))[0]
    torch.testing.assert_close(latents.batch(slice(0, 5))[0], same)
    with pytest.raises(ValueError, match="batch is 0: expected a whole number, 1 or more"):
        encode_all(vae, images, batch=0)


def test_latents_refuse_what_does_not_belong_together() -> None:
    mean = torch.zeros(2, 5, 4, 2, 2)
    y = torch.zeros(5).long()
    with pytest.raises(ValueError, match=r"mean and std have shapes \(2, 5, 4, 2, 2\) and \(2, 5, 4, 2\)"):
        Latents(mean, mean[..., 0], y, ("a",))
    with pytest.raises(ValueError, match=r"y has shape \(4,\): expected \(5,\)"):
        Latents(mean, mean, y[:4], ("a",))
    latents = Latents(mean, mean, y, ("a",))
    with pytest.raises(ValueError, match=r"flip has shape \(2,\): expected \(3,\)"):
        latents.batch(slice(0, 3), torch.zeros(2, dtype=torch.bool))


# ---- images of latents -----------------------------------------------------------------------------------------------

def test_decode_is_from_unit_and_decode(digit_vae: str) -> None:
    vae = load(digit_vae)
    z = normal(5, 4, 2, 2, dtype=torch.float32)
    with torch.no_grad(): expected = vae.decode(vae.from_unit(z))
    for batch in (1, 3, 256):
        torch.testing.assert_close(decode(vae, z, batch), expected, atol=0.05, rtol=0.05)
    net = LatentUNet(LatentUNetConfig(**NET, vae=digit_vae))
    for model in (Denoiser(net, Linear()), net):
        torch.testing.assert_close(decode(model, z), decode(vae, z))
    torch.testing.assert_close(net.decode(z), decode(vae, z))
    with pytest.raises(ValueError, match="batch is 0: expected a whole number, 1 or more"):
        decode(vae, z, 0)
    with pytest.raises(ValueError, match="model is a Linear: expected a model of latents"):
        decode(nn.Linear(2, 2), z)


def test_another_autoencoder_is_refused(recipe: LatentRecipe, digit_vae: str) -> None:
    model = recipe.build()
    z = torch.zeros(1, 4, 2, 2)
    code = model.net.config.code
    assert code == checksum(load(digit_vae))
    decode(model, z)
    save(VAE(SMALL, seed=4), digit_vae)  # same name, same shape, other weights
    latent._load_vae.cache_clear()
    with pytest.raises(ValueError, match=f"expected {code:08x}, that of the one whose latents"):
        decode(model, z)
    latent._load_vae.cache_clear()


def test_the_checksum_tells_weights_and_units_apart() -> None:
    vae, same, other = VAE(SMALL, seed=0), VAE(SMALL, seed=0), VAE(SMALL, seed=1)
    assert checksum(vae) == checksum(same) != checksum(other)
    nn.init.normal_(same.decoder[0].weight)  # another decoder for the same latents
    assert checksum(vae) == checksum(same)
    same.scale += 0.25
    assert checksum(vae) != checksum(same)


@pytest.mark.parametrize("inference", [False, True])
def test_an_autoencoder_loaded_in_any_mode_can_be_trained_through(digit_vae: str, inference: bool) -> None:
    latent._load_vae.cache_clear()
    net = LatentUNet(LatentUNetConfig(**NET, vae=digit_vae))
    with torch.inference_mode(inference): net.vae()
    z = normal(1, 4, 2, 2, dtype=torch.float32).requires_grad_()
    net.vae().decode(z).sum().backward()
    assert z.grad is not None and z.grad.isfinite().all()


def test_a_model_finds_its_autoencoder_from_any_folder(
    recipe: LatentRecipe, digit_vae: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    near = replace(recipe, net=LatentUNetConfig(**NET, vae="vae.safetensors"))
    model = near.build()
    z = normal(2, 4, 2, 2, dtype=torch.float32)
    expected = decode(model, z)
    save(model, "model.safetensors")
    monkeypatch.chdir(tmp_path / "elsewhere")
    latent._load_vae.cache_clear()
    loaded = load("../model.safetensors")
    assert torch.equal(decode(loaded, z), expected)
    assert replace(near, start="../model.safetensors").build().net.config == model.net.config
    again = LatentUNetConfig(**NET, vae=os.path.join("..", "vae.safetensors"))
    assert again.vae == model.net.config.vae == digit_vae
    assert LatentUNetConfig(decoder="vae-decoder").vae == "vae-small", "names stay names"


def test_an_autoencoder_that_was_moved_is_named(
    recipe: LatentRecipe, digit_vae: str, tmp_path: Path
) -> None:
    model = recipe.build()
    save(model, tmp_path / "model.safetensors")
    latent._load_vae.cache_clear()
    os.rename(digit_vae, tmp_path / "moved.safetensors")
    loaded = load(tmp_path / "model.safetensors")
    z = torch.zeros(1, 4, 2, 2)
    with pytest.raises(
        FileNotFoundError, match="no file .*vae.safetensors: .*this model's latents need it"
    ):
        decode(loaded, z)
    loaded.net.config = replace(
        loaded.net.config, vae=str(tmp_path / "moved.safetensors")
    )  # as the message says
    save(loaded, tmp_path / "model.safetensors")
    assert decode(load(tmp_path / "model.safetensors"), z).shape == (1, 1, 8, 8)


def test_what_is_no_autoencoder_is_refused() -> None:
    net = LatentUNet(LatentUNetConfig(vae="cifar10"))
    with pytest.raises(ValueError, match="vae is 'cifar10', a Denoiser: expected an autoencoder"):
        net.vae()


# ---- a better decoder ------------------------------------------------------------------------------------------------

def test_a_decoder_trained_on_takes_the_place_of_the_first(
    digit_vae: str, critic: str, recipe: LatentRecipe, tmp_path: Path,
) -> None:
    decoding = DecoderRecipe(
        data="digits",
        flip=False,
        images=512,
        batch=64,
        lr=3e-3,
        warmup=0,
        ema=0.5,
        log_every=64,
        save_every=256,
        precision="fp32",
        vae=digit_vae,
        critic=critic,
    )
    vae, classifier = load(digit_vae), load(critic)
    x = digits("test").batch(slice(0, 200))[0]
    z = vae.encode(x).mode
    assert torch.equal(decoding.build()(z), vae.decode(z)), "it begins as the autoencoder's own"
    decoder = train(decoding, tmp_path / "run", progress=False)
    path = str(tmp_path / "run" / "model.safetensors")
    assert type(load(path)) is Decoder
    assert load(path).config == DecoderConfig(**vars(SMALL), code=checksum(vae))

    @torch.no_grad()
    def loss(x_hat: torch.Tensor) -> torch.Tensor:
        return (x_hat - x).square().mean() + decoding.perceptual * perceptual_loss(classifier, x, x_hat)

    assert loss(load(path)(z)) < 0.9 * loss(vae.decode(z))
    assert decoding.preview(decoder).shape == (32, 1, 8, 8)
    old = Denoiser(LatentUNet(recipe.net), Linear())
    new = Denoiser(LatentUNet(replace(recipe.net, decoder=path)), Linear())
    unit = vae.to_unit(z)
    torch.testing.assert_close(decode(new, unit), load(path)(z), atol=0.05, rtol=0.05)
    torch.testing.assert_close(decode(old, unit), vae.decode(z).detach(), atol=0.05, rtol=0.05)  # as it was
    assert checksum(new.net.vae()) == checksum(vae), "the same latents"
    assert torch.equal(replace(decoding, start=path).build()(z), load(path)(z))


def test_a_decoder_of_other_sizes_learns_beside_a_discriminator(
    digit_vae: str, critic: str, recipe: LatentRecipe, tmp_path: Path,
) -> None:
    learning = DecoderRecipe(
        data="digits", flip=False, images=256, batch=64, lr=3e-3, warmup=0, ema=0.5, log_every=64,
        save_every=128, precision="fp32", vae=digit_vae, critic=critic, adversarial=0.1,
        widths=tuple(2 * n for n in SMALL.widths), blocks=tuple(n + 1 for n in SMALL.blocks_back),
    )
    before = learning.build()
    assert before.config.widths == learning.widths
    channels = tuple(f.shape[1] for f in load(critic).maps(torch.zeros(1, *SMALL.shape)))
    assert before.config.discriminator == before.discriminator.channels == channels
    trained = train(learning, tmp_path / "run", progress=False)
    pairs = zip(trained.named_parameters(), before.parameters(), strict=True)
    same = [name for (name, a), b in pairs if torch.equal(a, b)]
    # what the last biases of the discriminator get from real and from made images cancels in the hinges
    last = re.compile(r"discriminator\.heads\.\d\.4\.bias")
    assert all(last.fullmatch(name) for name in same), "both of them learn"
    path = str(tmp_path / "run" / "model.safetensors")
    z = torch.randn(3, *SMALL.latent, generator=rng())
    torch.testing.assert_close(load(path)(z), trained(z), atol=0.05, rtol=0.05)
    assert load(path).discriminator is not None, "a training can go on from it"
    going_on = replace(learning, start=path).build()
    first = lambda decoder: decoder.discriminator.heads[0][0].weight
    assert torch.equal(first(going_on), first(load(path)))
    alone = load(path).without_discriminator()
    assert torch.equal(alone(z), load(path)(z))
    assert not any("discriminator" in name for name in alone.state_dict())
    model = Denoiser(LatentUNet(replace(recipe.net, decoder=path)), Linear())
    assert decode(model, z).shape == (3, *SMALL.shape)
    without = replace(learning, adversarial=0.0).build()
    assert without.discriminator is None
    save(without, tmp_path / "without.safetensors")
    given_one = replace(learning, start=str(tmp_path / "without.safetensors")).build()
    assert given_one.discriminator is not None and given_one.config.discriminator == channels
    with pytest.raises(ValueError, match="adversarial is -1: expected a number >= 0"):
        replace(learning, adversarial=-1)


def test_each_adversarial_loss_moves_one_of_the_two() -> None:
    g = rng()
    real = [F.normalize(torch.randn(64, 5, 4, 4, generator=g) + 1, dim=1)]
    made = torch.randn(64, 5, 4, 4, generator=g).requires_grad_()
    judge = Discriminator([5])
    fool, tell = adversarial_losses(judge, real, [F.normalize(made, dim=1)])
    assert all(p.grad is None for p in judge.parameters())
    fool.backward()
    assert made.grad.abs().max() > 0 and all(p.grad is None for p in judge.parameters())
    made.grad = None
    tell.backward()
    assert made.grad is None and all(p.grad is not None for p in judge.parameters())
    optimizer = torch.optim.Adam(judge.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        _, tell = adversarial_losses(judge, real, [F.normalize(made.detach(), dim=1)])
        tell.backward()
        optimizer.step()
    on_real, on_made = (judge([F.normalize(f, dim=1)])[0].mean() for f in (real[0], made.detach()))
    assert tell < 1.5 and on_real > 0 > on_made, "2 is what an answer of 0 gives"


def test_a_decoder_of_other_latents_is_refused(
    digit_vae: str, critic: str, recipe: LatentRecipe, tmp_path: Path,
) -> None:
    path = str(tmp_path / "decoder.safetensors")
    save(Decoder(DecoderConfig(**vars(SMALL), code=7)), path)
    code = checksum(load(digit_vae))

    def with_decoder(name: str) -> LatentRecipe:
        return replace(recipe, net=replace(recipe.net, decoder=name))

    with pytest.raises(
        ValueError,
        match=f"for latents of checksum 00000007: expected one for those of .*{code:08x}",
    ):
        with_decoder(path).build()
    with pytest.raises(ValueError, match="decoder is .*, a VAE: expected a decoder"):
        with_decoder(digit_vae).build()
    decoding = DecoderRecipe(data="digits", vae=digit_vae, critic=critic)
    with pytest.raises(
        ValueError, match=f"start is .*: expected a decoder for latents of checksum {code:08x}"
    ):
        replace(decoding, start=path).build()
    with pytest.raises(ValueError, match="critic is '': expected the file of a classifier"):
        replace(decoding, critic="").build()
    with pytest.raises(ValueError, match="critic is .*, a VAE: expected a classifier"):
        replace(decoding, critic=digit_vae).build()


def test_the_perceptual_loss_is_none_for_equal_images_and_knows_no_contrast_of_features(
    critic: str,
) -> None:
    classifier = load(critic)
    g = rng()
    x = torch.rand(6, 1, 8, 8, generator=g) * 2 - 1
    assert perceptual_loss(classifier, x, x) == 0
    pairs = zip(classifier.maps(x), classifier.maps(-x), strict=True)
    angles = torch.stack([(2 - 2 * torch.cosine_similarity(a, b, 1)).mean() for a, b in pairs])
    # the same where no map is all zero
    torch.testing.assert_close(perceptual_loss(classifier, x, -x), angles.mean(), atol=0.02, rtol=0.02)
    near, far = (
        perceptual_loss(classifier, x, x + s * torch.randn(x.shape, generator=g))
        for s in (0.01, 0.5)
    )
    assert 0 < near < far < 4


def test_maps_end_in_the_features(critic: str) -> None:
    classifier = load(critic)
    x = uniform(3, 1, 8, 8, dtype=torch.float32)
    maps = classifier.maps(x)
    assert [tuple(m.shape) for m in maps] == [(3, 8, 8, 8), (3, 16, 4, 4), (3, 32, 2, 2), (3, 32, 2, 2)]
    assert torch.equal(maps[-1].mean((2, 3)), classifier.features(x))


# ---- training and sampling -------------------------------------------------------------------------------------------

def test_samples_in_files_are_decoded(recipe: LatentRecipe, tmp_path: Path) -> None:
    model = recipe.build()
    grid, film = str(tmp_path / "grid.png"), str(tmp_path / "film.gif")
    sample_to_files(model, SampleConfig(n=4, steps=2, out=grid, gif=film, scale=1), progress=False)
    assert Image.open(grid).size == (4 * 8 + 3, 8) and Image.open(film).size[0] == 8 * 8
    z = normal(2, 4, 2, 2, dtype=torch.float32)
    assert torch.equal(as_images(model, z), decode(model, z)) and as_images(lambda x, t: x, z) is z


def test_bits_of_pixels_are_not_asked_of_latents(recipe: LatentRecipe) -> None:
    with pytest.raises(ValueError, match="bits is 3: expected 0 for a model of latents"):
        scores_of(recipe.build(), EvaluateConfig(bits=3))


def test_the_loss_is_matching_loss_on_a_sample_or_the_mean(recipe: LatentRecipe) -> None:
    model = recipe.build()
    g = rng()
    nn.init.normal_(model.net.last.weight, 0, 0.1, generator=g)
    x, y = torch.rand(6, 8, 2, 2, generator=g), torch.arange(6)
    losses = {}
    for posterior in ("mean", "sample"):
        losses[posterior] = replace(recipe, posterior=posterior, drop=0.0).loss(model, x, y, rng(5))
        g = rng(5)
        z1 = x[:, :4]
        if posterior == "sample": z1 = z1 + x[:, 4:] * torch.randn(6, 4, 2, 2, generator=g)
        t = recipe.draw_times(6, g)
        torch.rand(6, generator=g)  # which labels are dropped
        torch.testing.assert_close(losses[posterior], matching_loss(model, z1, t=t, generator=g, y=y))
    assert losses["mean"] != losses["sample"]


def test_a_run_trains_saves_and_decodes(recipe: LatentRecipe, tmp_path: Path) -> None:
    model = train(recipe, tmp_path / "run", progress=False)
    path = str(tmp_path / "run" / "model.safetensors")
    loaded = load(path)
    assert loaded.net.config == model.net.config and type(loaded.net) is LatentUNet
    z = generate(loaded, 3, 2, "euler", 2.0, seed=0, y=1)
    assert z.shape == (3, 4, 2, 2) and decode(loaded, z).shape == (3, 1, 8, 8)
    assert recipe.preview(model).shape == (80, 1, 8, 8)
    started = replace(recipe, start=path).build()
    assert started.net.config == model.net.config and started.training
    with pytest.raises(ValueError, match="start is .*expected eps with"):
        replace(recipe, kind="eps", start=path).build()


def test_settings_that_are_impossible_are_refused(recipe: LatentRecipe) -> None:
    with pytest.raises(ValueError, match="posterior is 'mode': expected 'sample' or 'mean'"):
        replace(recipe, posterior="mode")
    latents = encode_all(load(recipe.net.vae), some_digits())
    with pytest.raises(ValueError, match=r"net.shape is \(4, 8, 8\): expected the latents', \(4, 2, 2\)"):
        replace(recipe, net=LatentUNetConfig()).check_data(latents)
    with pytest.raises(ValueError, match="net.n_labels is 3: expected 10"):
        replace(recipe, net=replace(recipe.net, n_labels=3)).check_data(latents)


def test_latents_of_images_that_can_not_be_shown_are_refused_before_training(tmp_path: Path) -> None:
    path = str(tmp_path / "four.safetensors")
    save(VAE(replace(SMALL, shape=(4, 8, 8))), path)
    mean = torch.zeros(2, 5, 4, 2, 2)
    latents = Latents(mean, mean, torch.zeros(5).long(), ("a",))
    recipe = LatentRecipe(data="digits", net=LatentUNetConfig(**NET, vae=path), stages=(32,))
    with pytest.raises(
        ValueError, match=r"images have shape \(4, 8, 8\): expected 1 or 3 channels, or no stages"
    ):
        recipe.check_data(latents)
    replace(recipe, stages=()).check_data(latents)


def test_a_decoder_is_trained_on_images_of_its_shape_only(digit_vae: str, critic: str) -> None:
    decoding = DecoderRecipe(data="digits", vae=digit_vae, critic=critic, stages=(32,))
    decoding.check_data(some_digits())
    for wrong in (dict(vae="vae-small"), dict(critic="cifar10-classifier")):
        message = rf"{next(iter(wrong))} is .*, for images of shape \(3, 32, 32\): expected the data's"
        with pytest.raises(ValueError, match=message):
            replace(decoding, **wrong).check_data(some_digits())


# ---- the shipped ones ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(
    "name, preset, apart",
    [
        (
            "cifar10-latent",
            PRESETS["latent"],
            dict(guidance=1.0, net=LatentUNetConfig()),
        ),  # what concerns previews
        ("vae-decoder", PRESETS["vae-decoder"], dict(critic="")),
        ("few-step", few_step.PRESETS["few-step"], {}),
    ],
)
def test_shipped_weights_are_those_of_the_preset(name, preset, apart) -> None:
    about = info(name)
    recipe = with_options(preset, about["config"])
    ignore = dict(about="", stages=(), log_every=1, save_every=1) | apart
    assert replace(recipe, **ignore) == replace(preset, **ignore)
    assert about["images"] >= recipe.images and about["seconds"] > 0
    assert about["command"].startswith("diffusion-course train ")


def test_the_table_says_what_the_lesson_claims() -> None:
    table, tables = (
        json.loads((WEIGHTS / name).read_text("utf-8")) for name in ("latent.json", "tables.json")
    )
    real = {r["what"]: r for r in table["real"] if r["n"] == 10_000}
    assert not table["about"]["quick"] and table["about"]["images"] == info("cifar10-latent")["images"]
    assert real["vae-small"]["agreement"] < 0.65 < real["vae-decoder"]["agreement"]
    assert real["vae-decoder"]["frechet"] < real["vae-small"]["frechet"] / 3
    names = ("label agreement", "Fréchet distance")
    pixels = [tuple(r["scores"][name]["value"] for name in names) for r in tables["guidance"]
              if r["images"] == info("cifar10")["images"]]
    latents = [(r["agreement"], r["frechet"]) for r in table["guidance"]]
    best_latents, best_pixels = (min(rows, key=lambda row: row[1])[0] for rows in (latents, pixels))
    assert best_latents >= best_pixels - 0.1 and table["best"][0]["n"] == 10_000


def test_the_shipped_model_knows_the_shipped_autoencoder() -> None:
    model = load("cifar10-latent")
    assert model.net.config == replace(PRESETS["latent"].net, code=checksum(load("vae-small")))
    assert load("vae-decoder").config.code == model.net.config.code
    x = decode(model, generate(model, 2, 3, "dpmpp_2m", 2.0, seed=0, y=torch.tensor([1, 8])))
    assert x.shape == (2, 3, 32, 32) and x.isfinite().all() and len(CIFAR10_NAMES) == model.net.n_labels
