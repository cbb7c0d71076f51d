"""Put finished runs into the package: `python tools/ship.py {images,vae,latent,few-step,scenes,flow-map,tokens} ...`.

    python tools/ship.py images runs/cifar10-small runs/digits
    python tools/ship.py vae runs
    python tools/ship.py latent runs
    python tools/ship.py few-step runs/few-step
    python tools/ship.py scenes runs/scenes
    python tools/ship.py flow-map runs/flow-map
    python tools/ship.py tokens runs

Writes diffusion_course/weights/, with each model's record and quality beside it. `python
tools/ship.py NAME --help` says what each expects. Minutes of one core; `latent`, which encodes and
decodes 10,000 images twice, takes the longest.
"""
from __future__ import annotations

import argparse
import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from measure_text import checksum
from PIL import Image
from torch import nn

from diffusion_course.checkpoints import WEIGHTS, info, load, read_tensors, save
from diffusion_course.discrete import binary_digits, bits, text_windows
from diffusion_course.evaluation import label_agreement
from diffusion_course.generation import generate
from diffusion_course.images import cifar10, digit_classifier, digits, to_bytes
from diffusion_course.latent import Decoder, LatentUNet, LatentUNetConfig
from diffusion_course.predictions import Denoiser
from diffusion_course.vae import VAE, psnr, reconstruct

KLS = ("0", "0.01", "0.1", "0.5", "2")  # weights of the KL term, of lesson 17's digits


# ---- one model -----------------------------------------------------------------------------------

def newest(run: Path) -> Path:
    """The model of a run, or its latest stage while it isn't finished."""
    model = run / "model.safetensors"
    return model if model.exists() else max((run / "stages").glob("*.safetensors"))


def ship(
    source: Path, name: str, change: Callable[[nn.Module], nn.Module | None] = lambda model: None,
    **more: object,
) -> None:
    """Copy a model with its record, whose command becomes what a user would type. Say what was copied.

    Args:
        source: a file that a training wrote.
        name: of the shipped model.
        change: is called with the model before it is written, and may return another one; an error there
            ships nothing.
        more: is added to the record.
    """
    model = load(source)
    about = {k: v for k, v in info(source).items() if k != "quality"} | more  # of what ships, it says more
    model = change(model) or model
    about["command"] = re.sub(r" (--resume|--(folder|images|kept) \S+)", "", about.get("command", ""))
    config = about.get("config", {})
    config.pop("about", None)  # what the preset says of itself is in the code
    if "kept" in config: config["kept"] = ""
    target = WEIGHTS / f"{name}.safetensors"
    save(model, target, **about)
    hidden = "config", "command", "torch", "device", "processes"
    record = {k: v for k, v in about.items() if k not in hidden}
    print(f"{name}: {target.stat().st_size / 1e6:.2f} MB, {record}")


# ---- lessons 12 to 16 ----------------------------------------------------------------------------

def quality_of_digits(model: nn.Module) -> str:
    """What the classifier of lesson 12 says about 500 digits."""
    y = torch.arange(500) % 10
    x = generate(model, len(y), 20, "dpmpp_2m", 2.0, seed=0, y=y)
    return f"label agreement {(digit_classifier()(x) == y).double().mean():.1%} ({len(y)}, w = 2)"


def quality_of_images(images: int) -> str:
    """The best row of tools/measure_tables.py for the model that has seen so many images."""
    tables = json.loads((WEIGHTS / "tables.json").read_text(encoding="utf-8"))
    rows = [r for r in tables.get("best", []) if r["images"] == images]
    if not rows: return "not measured yet: python tools/measure_tables.py cifar10"
    r = rows[0]
    agreement = r["scores"]["label agreement"]["value"]
    frechet = r["scores"]["Fréchet distance"]["value"]
    scores = f"label agreement {agreement:.1%}, Fréchet distance {frechet:.3f}"
    return f"{scores} ({r['n']:,}, w = {r['w']:g})"


def images(args: argparse.Namespace) -> None:
    """Ship the pixel models of lessons 12 to 16.

    Writes cifar10.safetensors (the finished model, or the last stage so far),
    ladder/*.webp (the samples of all stages), cifar10-metrics.csv (the loss curve) and digits.safetensors.
    """
    final = newest(args.run)
    digits_model = args.digits / "model.safetensors"
    ship(final, "cifar10", quality=quality_of_images(info(final)["images"]))
    ship(digits_model, "digits", quality=quality_of_digits(load(digits_model)))
    shutil.rmtree(WEIGHTS / "ladder", ignore_errors=True)
    (WEIGHTS / "ladder").mkdir()
    for image in sorted((args.run / "samples").glob("*.png")):
        Image.open(image).save(WEIGHTS / "ladder" / f"{image.stem}.webp", quality=85, method=6)
    shutil.copyfile(args.run / "metrics.csv", WEIGHTS / "cifar10-metrics.csv")
    files = [p for p in WEIGHTS.rglob("*") if p.is_file()]
    for p in files: p.chmod(0o644)
    print(f"{len(files)} files, {sum(p.stat().st_size for p in files) / 2**20:.1f} MB in all")


# ---- lesson 17 -----------------------------------------------------------------------------------

def vae(args: argparse.Namespace) -> None:
    """Ship the autoencoders of lesson 17, with their PSNR on 1,000 test images.

    Expects RUNS/vae-small, RUNS/vae-64, RUNS/vae-512 (`diffusion-course train NAME`) and RUNS/kl-K
    for each K of KLS (`diffusion-course train vae-digits --kl K --folder RUNS/kl-K`). Writes
    vae-*.safetensors and vae-digits/kl-*.safetensors.
    """
    first = slice(0, 1000)
    tests = {"cifar10": cifar10("test").batch(first)[0], "digits": digits("test").batch(first)[0]}
    names = {f"vae-{k}": f"vae-{k}" for k in ("small", "64", "512")}
    names |= {f"kl-{k}": f"vae-digits/kl-{k}" for k in KLS}
    for run, name in names.items():
        source = args.runs / run / "model.safetensors"
        x = tests[info(source)["config"]["data"]]
        ship(source, name, psnr=round(psnr(x, reconstruct(load(source), x)).mean().item(), 2))


# ---- lesson 18 -----------------------------------------------------------------------------------

@torch.no_grad()
def quality_of_vae(vae: VAE) -> tuple[float, float]:
    """Of images encoded and decoded: PSNR (1,000 test images), label agreement (10,000)."""
    test = cifar10("test")
    x = test.batch(slice(None))[0]
    decoded = reconstruct(vae, x)
    agreement = label_agreement(load("cifar10-classifier"), to_bytes(decoded), test.y)
    return round(psnr(x[:1000], decoded[:1000]).mean().item(), 2), agreement


def name_decoder(model: Denoiser) -> None:
    """Name the decoder: any that reads its latents will do, so that a run need not know it."""
    model.net.config = dataclasses.replace(model.net.config, decoder="vae-decoder")


def latent(args: argparse.Namespace) -> None:
    """Ship the latent model of lesson 18 and its decoder.

    Expects RUNS/vae-decoder and RUNS/latent (`diffusion-course train NAME`; of the latter the latest
    stage while it isn't finished; where it isn't there, the model that ships stays). Writes
    vae-decoder.safetensors, with what it gives on test images, and cifar10-latent.safetensors. Refuses
    those whose latents aren't the shipped vae-small's.
    """
    decoder = args.runs / "vae-decoder" / "model.safetensors"
    psnr_before, agreement_before = quality_of_vae(load("vae-small"))
    psnr_now, agreement = quality_of_vae(LatentUNet(LatentUNetConfig(decoder=str(decoder))).vae())
    # The decoder first: the model's checksum is compared with it.
    before = dict(psnr_before=psnr_before, agreement_before=agreement_before)
    ship(decoder, "vae-decoder", Decoder.without_discriminator, **before, psnr=psnr_now, agreement=agreement)
    if (args.runs / "latent").exists(): ship(newest(args.runs / "latent"), "cifar10-latent", name_decoder)
    load("cifar10-latent").net.vae()  # a ValueError where its autoencoder isn't the one that ships


# ---- lesson 20 -----------------------------------------------------------------------------------

def check_vae(model: Denoiser) -> None:
    """A `ValueError` where a model's autoencoder isn't the one that ships."""
    model.net.vae()


def few_step(args: argparse.Namespace) -> None:
    """Ship the student of lesson 19.

    Expects a run of `diffusion-course train few-step`, and ships its model, or its latest stage while
    it isn't finished, as few-step.safetensors. Refuses a student whose autoencoder isn't the one that
    ships.
    """
    ship(newest(args.run), "few-step", check_vae)


# ---- lesson 24 -----------------------------------------------------------------------------------

def scenes(args: argparse.Namespace) -> None:
    """Ship the reader of captions of lesson 24.

    Expects a run of `diffusion-course train scenes`, and ships its model, or its latest stage while it
    isn't finished, as scenes.safetensors, with what diffusion_course/weights/scenes.json says of it where
    it has been measured (`python tools/measure_text.py RUN/model.safetensors`).
    """
    source = newest(args.run)
    table = WEIGHTS / "scenes.json"
    measured = json.loads(table.read_text(encoding="utf-8")) if table.exists() else {}
    quality = {}
    if measured.get("about", {}).get("weights") == checksum(load(source)):
        quality = {r["part"]: round(r["right"], 4) for r in measured.get("parts", [])}
    ship(source, "scenes", right=quality)


# ---- lesson 25 -----------------------------------------------------------------------------------

def flow_map(args: argparse.Namespace) -> None:
    """Ship the flow map of lesson 25.

    Expects a run of `diffusion-course train flow-map`, and ships its model, or its latest stage while it
    isn't finished, as flow-map.safetensors. Refuses one whose autoencoder isn't the one that ships.
    """
    config = read_tensors(args.run / "state.safetensors")[1]["config"]  # which a stage doesn't hold
    ship(newest(args.run), "flow-map", check_vae, config=config)


# ---- lesson 26 -----------------------------------------------------------------------------------

def tokens(args: argparse.Namespace) -> None:
    """Ship the models of tokens of lesson 26, with the bound they give on held-out data.

    Expects RUNS/text and RUNS/binary-digits (`diffusion-course train NAME`), and ships their models as
    text.safetensors and binary-digits.safetensors.
    """
    source = args.runs / "text" / "model.safetensors"
    x = text_windows("test").x
    x = x[torch.linspace(0, len(x) - 1, 400).long()].long()
    per_letter = bits(load(source), x, 16, generator=torch.Generator().manual_seed(0)).mean().item()
    ship(source, "text", bits_per_letter=round(per_letter, 3))
    source, test = args.runs / "binary-digits" / "model.safetensors", binary_digits("test")
    g = torch.Generator().manual_seed(0)
    per_pixel = bits(load(source), test.x.long(), 16, y=test.y, generator=g).mean().item()
    ship(source, "binary-digits", bits_per_pixel=round(per_pixel, 3))


def main(argv: list[str] | None = None) -> None:
    """Ship what the subcommand names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="NAME")

    def command(name: str, run: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        about = run.__doc__.splitlines()[0]
        p = commands.add_parser(name, help=about, description=" ".join(run.__doc__.split()))
        p.set_defaults(command=run)
        return p

    p = command("images", images)
    p.add_argument("run", type=Path, help="of `diffusion-course train cifar10-small`")
    p.add_argument("digits", type=Path, help="of `diffusion-course train digits`")
    command("vae", vae).add_argument("runs", type=Path, help="the folder that holds the runs")
    command("latent", latent).add_argument("runs", type=Path, help="the folder that holds the runs")
    command("few-step", few_step).add_argument("run", type=Path, help="the folder of the run")
    command("scenes", scenes).add_argument("run", type=Path, help="the folder of the run")
    command("flow-map", flow_map).add_argument("run", type=Path, help="the folder of the run")
    command("tokens", tokens).add_argument("runs", type=Path, help="the folder that holds the runs")
    args = parser.parse_args(argv)
    args.command(args)


if __name__ == "__main__": main()
