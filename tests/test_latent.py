"""Latents as data: encoding once, whose latents they are, the loss and the way back to pictures."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

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
    Latents,
    LatentRecipe,
    LatentUNet,
    LatentUNetConfig,
    checksum,
    decode,
    encode_all,
    perceptual_loss,
)
from diffusion_course.matching import matching_loss
from diffusion_course.options import with_options
from diffusion_course.predictions import Denoiser
from diffusion_course.schedules import Linear
from diffusion_course.training import train
from diffusion_course.vae import VAE, VAEConfig

SMALL = VAEConfig(shape=(1, 8, 8), latent=(4, 2, 2), widths=(16, 32), blocks=(1, 1), blocks_back=(1, 1))


@pytest.fixture
def digit_vae(tmp_path) -> str:
    """A file with a small autoencoder whose latents have neither mean 0 nor deviation 1."""
    vae = VAE(SMALL, seed=3).eval()
    with torch.no_grad(): vae.standardise(vae.encode(digits().batch(slice(0, 500))[0]).mean)
    save(vae, tmp_path / "vae.safetensors")
    return str(tmp_path / "vae.safetensors")


@pytest.fixture
def config(digit_vae) -> LatentRecipe:
    net = LatentUNetConfig(shape=(4, 2, 2), widths=(16,), attention=(), head=16, vae=digit_vae)
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


def some(n: int = 40) -> Images:
    """Digits as pictures."""
    d = digits()
    return Images(d.x[:n], d.y[:n], d.names)


def test_encode_all_is_encode_of_each_picture_and_of_its_mirror_image(digit_vae):
    vae, pictures = load(digit_vae), some()
    kept = encode_all(vae, pictures, batch=7)
    assert len(kept) == 40 and kept.mean.shape == (2, 40, 4, 2, 2) and kept.mean.dtype == torch.float16
    i, flip = torch.tensor([3, 30, 8, 8]), torch.tensor([True, False, True, False])
    got, y = kept.batch(i, flip)
    with torch.no_grad(): q = vae.encode(pictures.batch(i, flip)[0])
    torch.testing.assert_close(
        got[:, :4], vae.to_unit(q.mean), atol=0.03, rtol=0.03
    )  # half precision, and bf16 where it is quicker
    torch.testing.assert_close(got[:, 4:], q.std / vae.scale, atol=0.03, rtol=0.05)
    assert torch.equal(y, pictures.y[i])
    torch.testing.assert_close(
        kept.batch(slice(0, 5))[0], kept.batch(torch.arange(5), torch.zeros(5, dtype=torch.bool))[0]
    )


def test_latents_refuse_what_does_not_fit():
    mean = torch.zeros(2, 5, 4, 2, 2)
    with pytest.raises(ValueError, match=r"mean and std have shapes \(2, 5, 4, 2, 2\) and \(2, 5, 4, 2\)"):
        Latents(mean, mean[..., 0], torch.zeros(5).long(), ("a",))
    with pytest.raises(ValueError, match=r"y has shape \(4,\): expected \(5,\)"):
        Latents(mean, mean, torch.zeros(4).long(), ("a",))
    kept = Latents(mean, mean, torch.zeros(5).long(), ("a",))
    with pytest.raises(ValueError, match=r"flip has shape \(2,\): expected \(3,\)"):
        kept.batch(slice(0, 3), torch.zeros(2, dtype=torch.bool))


def test_decode_is_from_unit_and_decode(digit_vae):
    vae, z = load(digit_vae), torch.randn(5, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(): expected = vae.decode(vae.from_unit(z))
    for batch in (1, 3, 256): torch.testing.assert_close(decode(vae, z, batch), expected, atol=0.05, rtol=0.05)
    net = LatentUNet(LatentUNetConfig(shape=(4, 2, 2), widths=(16,), attention=(), head=16, vae=digit_vae))
    torch.testing.assert_close(decode(Denoiser(net, Linear()), z), decode(vae, z))
    with pytest.raises(ValueError, match="batch is 0: expected 1 or more"): decode(vae, z, 0)
    with pytest.raises(ValueError, match="model is a Linear: expected a model of latents"):
        decode(torch.nn.Linear(2, 2), z)


def test_another_autoencoder_is_refused(config, digit_vae):
    model, z = config.build(), torch.zeros(1, 4, 2, 2)
    assert model.net.config.code == checksum(load(digit_vae))
    decode(model, z)
    save(VAE(SMALL, seed=4), digit_vae)  # same name, same shape, other weights
    latent._vae.cache_clear()
    with pytest.raises(
        ValueError, match=f"expected {model.net.config.code:08x}, that of the one whose latents"
    ):
        decode(model, z)
    latent._vae.cache_clear()


def test_the_checksum_tells_weights_and_units_apart():
    vae = VAE(SMALL, seed=0)
    same, other = VAE(SMALL, seed=0), VAE(SMALL, seed=1)
    assert checksum(vae) == checksum(same) != checksum(other)
    torch.nn.init.normal_(same.decoder[0].weight)  # another decoder for the same latents
    assert checksum(vae) == checksum(same)
    same.scale += 0.25
    assert checksum(vae) != checksum(same)


@pytest.fixture
def critic(tmp_path) -> str:
    """A file with a small classifier of digits, of random weights."""
    save(Classifier(ClassifierConfig((1, 8, 8), 8, (16, 32), (0, 1)), seed=5), tmp_path / "critic.safetensors")
    return str(tmp_path / "critic.safetensors")


def test_a_decoder_trained_on_takes_the_place_of_the_first(digit_vae, critic, config, tmp_path):
    recipe = DecoderRecipe(
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
    vae, x = load(digit_vae), digits("test").batch(slice(0, 200))[0]
    q, judge = vae.encode(x), load(critic)
    assert torch.equal(recipe.build()(q.mode), vae.decode(q.mode))  # begins as the autoencoder's own
    decoder = train(recipe, tmp_path / "run", progress=False)
    path = str(tmp_path / "run" / "model.safetensors")
    assert type(load(path)) is Decoder and load(path).config == DecoderConfig(**vars(SMALL), code=checksum(vae))
    with torch.no_grad():
        error = lambda back: (back - x).square().mean() + recipe.perceptual * perceptual_loss(judge, x, back)
        assert error(load(path)(q.mode)) < 0.9 * error(vae.decode(q.mode))
    assert recipe.preview(decoder).shape == (32, 1, 8, 8)
    unit, old = vae.to_unit(q.mode), Denoiser(LatentUNet(config.net), Linear())
    new = Denoiser(LatentUNet(replace(config.net, decoder=path)), Linear())
    torch.testing.assert_close(decode(new, unit), load(path)(q.mode), atol=0.05, rtol=0.05)
    torch.testing.assert_close(
        decode(old, unit), vae.decode(q.mode).detach(), atol=0.05, rtol=0.05
    )  # which stays as it was
    assert checksum(new.net.vae()) == checksum(vae)  # the same latents
    assert torch.equal(replace(recipe, start=path).build()(q.mode), load(path)(q.mode))


def test_a_decoder_of_other_latents_is_refused(digit_vae, critic, config, tmp_path):
    path = str(tmp_path / "decoder.safetensors")
    save(Decoder(DecoderConfig(**vars(SMALL), code=7)), path)
    code = checksum(load(digit_vae))
    with pytest.raises(
        ValueError,
        match=f"for latents of checksum 00000007: expected one for those of .*{code:08x}; or none",
    ):
        replace(config, net=replace(config.net, decoder=path)).build()
    with pytest.raises(ValueError, match="decoder is .*, a VAE: expected a decoder"):
        replace(config, net=replace(config.net, decoder=digit_vae)).build()
    recipe = DecoderRecipe(data="digits", vae=digit_vae, critic=critic)
    with pytest.raises(
        ValueError, match=f"start is .*: expected a decoder for latents of checksum {code:08x}"
    ):
        replace(recipe, start=path).build()
    with pytest.raises(ValueError, match="critic is '': expected the file of a classifier"):
        replace(recipe, critic="").build()
    with pytest.raises(ValueError, match="critic is .*, a VAE: expected a classifier"):
        replace(recipe, critic=digit_vae).build()


def test_the_perceptual_loss_is_none_for_equal_pictures_and_knows_no_contrast_of_features(critic):
    judge, g = load(critic), torch.Generator().manual_seed(0)
    x = torch.rand(6, 1, 8, 8, generator=g) * 2 - 1
    assert perceptual_loss(judge, x, x) == 0
    a, b = (judge.maps(v) for v in (x, -x))
    angle = torch.stack([(2 - 2 * torch.cosine_similarity(p, q, 1)).mean() for p, q in zip(a, b, strict=True)]).mean()
    torch.testing.assert_close(perceptual_loss(judge, x, -x), angle, atol=0.02, rtol=0.02)  # where no map is all zero
    near, far = (perceptual_loss(judge, x, x + s * torch.randn(x.shape, generator=g)) for s in (0.01, 0.5))
    assert 0 < near < far < 4


def test_maps_end_in_the_features(critic):
    judge, x = load(critic), torch.rand(3, 1, 8, 8)
    maps = judge.maps(x)
    assert [tuple(m.shape) for m in maps] == [(3, 8, 8, 8), (3, 16, 4, 4), (3, 32, 2, 2), (3, 32, 2, 2)]
    assert torch.equal(maps[-1].mean((2, 3)), judge.features(x))


def test_samples_in_files_are_decoded(config, tmp_path):
    model = config.build()
    sample_to_files(
        model,
        SampleConfig(
            n=4, steps=2, out=str(tmp_path / "grid.png"), gif=str(tmp_path / "film.gif"), scale=1
        ),
        progress=False,
    )
    assert (
        Image.open(tmp_path / "grid.png").size == (4 * 8 + 3, 8)
        and Image.open(tmp_path / "film.gif").size[0] == 8 * 8
    )
    z = torch.randn(2, 4, 2, 2)
    assert torch.equal(as_images(model, z), decode(model, z)) and as_images(lambda x, t: x, z) is z


def test_bits_of_pixels_are_not_asked_of_latents(config):
    with pytest.raises(ValueError, match="bits is 3: expected 0 for a model of latents"):
        scores_of(config.build(), EvaluateConfig(bits=3))


def test_what_is_no_autoencoder_is_refused():
    net = LatentUNet(LatentUNetConfig(vae="cifar10"))
    with pytest.raises(ValueError, match="vae is 'cifar10', a Denoiser: expected an autoencoder"): net.vae()


def test_the_loss_is_matching_loss_on_a_sample_or_the_mean(config):
    model, g = config.build(), torch.Generator().manual_seed(0)
    torch.nn.init.normal_(model.net.last.weight, 0, 0.1, generator=g)
    x, y = torch.rand(6, 8, 2, 2, generator=g), torch.arange(6)
    seed = lambda: torch.Generator().manual_seed(5)
    by_mean = replace(config, posterior="mean", drop=0.0).loss(model, x, y, seed())
    h = seed()
    t, _ = config.draw_times(6, h), torch.rand(6, generator=h)
    torch.testing.assert_close(by_mean, matching_loss(model, x[:, :4], t=t, generator=h, y=y))
    sampled = replace(config, drop=0.0).loss(model, x, y, seed())
    h = seed()
    z = x[:, :4] + x[:, 4:] * torch.randn(6, 4, 2, 2, generator=h)
    t, _ = config.draw_times(6, h), torch.rand(6, generator=h)
    torch.testing.assert_close(sampled, matching_loss(model, z, t=t, generator=h, y=y))
    assert by_mean != sampled


def test_a_run_trains_saves_and_decodes(config, tmp_path):
    model = train(config, tmp_path / "run", progress=False)
    again = load(tmp_path / "run" / "model.safetensors")
    assert again.net.config == model.net.config and type(again.net) is LatentUNet
    z = generate(again, 3, 2, "euler", 2.0, seed=0, y=1)
    assert z.shape == (3, 4, 2, 2) and decode(again, z).shape == (3, 1, 8, 8)
    assert config.preview(model).shape == (80, 1, 8, 8)
    started = replace(config, start=str(tmp_path / "run" / "model.safetensors")).build()
    assert started.net.config == model.net.config and started.training
    with pytest.raises(ValueError, match="start is .*expected noise with"):
        replace(config, kind="noise", start=str(tmp_path / "run" / "model.safetensors")).build()


def test_settings_that_do_not_fit_are_refused(config):
    with pytest.raises(ValueError, match="posterior is 'mode': expected 'sample' or 'mean'"):
        replace(config, posterior="mode")
    data = encode_all(load(config.net.vae), some())
    with pytest.raises(
        ValueError, match=r"net.shape is \(4, 8, 8\): expected the latents', \(4, 2, 2\)"
    ):
        replace(config, net=LatentUNetConfig()).fits(data)
    with pytest.raises(ValueError, match="net.n_labels is 3: expected 10"):
        replace(config, net=replace(config.net, n_labels=3)).fits(data)


@pytest.mark.parametrize(
    "name, preset, apart",
    [
        (
            "cifar10-latent",
            PRESETS["latent"],
            dict(guidance=1.0, net=LatentUNetConfig()),
        ),  # of previews, and the decoder of previews
        ("vae-decoder", PRESETS["vae-decoder"], dict(critic="")),
        ("few-step", few_step.PRESETS["few-step"], {}),
    ],
)
def test_shipped_weights_are_those_of_the_preset(name, preset, apart):
    about = info(name)
    made, ignore = with_options(preset, about["config"]), dict(about="", stages=(), log_every=1, save_every=1) | apart
    assert replace(made, **ignore) == replace(preset, **ignore)
    assert (
        about["images"] >= made.images
        and about["seconds"] > 0
        and about["command"].startswith("diffusion-course train ")
    )


def test_the_table_says_what_the_lesson_claims():
    table, tables = (json.loads((WEIGHTS / name).read_text()) for name in ("latent.json", "tables.json"))
    real = {r["what"]: r for r in table["real"] if r["n"] == 10_000}
    assert not table["about"]["quick"] and table["about"]["images"] == info("cifar10-latent")["images"]
    assert (
        real["vae-small"]["agreement"] < 0.65 < real["vae-decoder"]["agreement"]
        and real["vae-decoder"]["frechet"] < real["vae-small"]["frechet"] / 3
    )
    best, pixels = (
        min(rows, key=lambda r: r[1])[0]
        for rows in (
            [(r["agreement"], r["frechet"]) for r in table["guidance"]],
            [
                tuple(r["scores"][k]["value"] for k in ("label agreement", "Fréchet distance"))
                for r in tables["guidance"]
                if r["images"] == info("cifar10")["images"]
            ],
        )
    )
    assert best >= pixels - 0.1 and table["best"][0]["n"] == 10_000


def test_the_shipped_model_fits_the_shipped_autoencoder():
    model = load("cifar10-latent")
    assert model.net.config == replace(PRESETS["latent"].net, code=checksum(load("vae-small")))
    assert load("vae-decoder").config.code == model.net.config.code
    x = decode(model, generate(model, 2, 3, "dpmpp_2m", 2.0, seed=0, y=torch.tensor([1, 8])))
    assert x.shape == (2, 3, 32, 32) and x.isfinite().all() and len(CIFAR10_NAMES) == model.net.n_labels
