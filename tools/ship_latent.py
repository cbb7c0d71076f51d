"""Put the finished runs of lesson 18 into the package: `python tools/ship_latent.py runs`.

Expects runs/vae-decoder and runs/latent (`diffusion-course train NAME`; of the latter the latest stage while it isn't finished). Writes
diffusion_course/weights/vae-decoder.safetensors, with what it gives on test pictures noted beside it, and cifar10-latent.safetensors. Refuses those
whose latents aren't the shipped vae-small's.
"""
from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch
from shipping import newest, ship

from diffusion_course.checkpoints import load
from diffusion_course.evaluation import label_agreement
from diffusion_course.images import cifar10, to_bytes
from diffusion_course.latent import LatentUNet, LatentUNetConfig
from diffusion_course.predictions import Denoiser
from diffusion_course.vae import VAE, psnr, reconstruct


def with_decoder(model: Denoiser) -> None:
    """Name the decoder: any that reads its latents will do, so that a run need not know it."""
    model.net.config = dataclasses.replace(model.net.config, decoder="vae-decoder")


def quality(vae: VAE) -> tuple[float, float]:
    """Of pictures encoded and decoded: PSNR (1,000 test pictures), label agreement (10,000)."""
    test = cifar10("test")
    back = reconstruct(vae, test.batch(slice(None))[0])
    return round(psnr(test.batch(slice(0, 1000))[0], back[:1000]).mean().item(), 2), label_agreement(load("cifar10-classifier"), to_bytes(back), test.y)


@torch.no_grad()
def main() -> None:
    """The decoder first: the model's checksum is compared with it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, help="the folder that holds the runs")
    runs = parser.parse_args().runs
    before = quality(load("vae-small"))
    after = quality(LatentUNet(LatentUNetConfig(decoder=str(runs / "vae-decoder" / "model.safetensors"))).vae())
    noted = dict(zip(("psnr_before", "agreement_before", "psnr", "agreement"), before + after, strict=True))
    ship(runs / "vae-decoder" / "model.safetensors", "vae-decoder", **noted)
    ship(newest(runs / "latent"), "cifar10-latent", with_decoder)
    load("cifar10-latent").net.vae()  # a ValueError where its autoencoder isn't the one that ships


if __name__ == "__main__": main()
