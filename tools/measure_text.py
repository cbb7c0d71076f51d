"""Measure the tables of lesson 24: `python tools/measure_text.py scenes`.

Writes diffusion_course/weights/scenes.json, row by row: a run that was stopped goes on where it was, and another model
begins anew. Pictures are drawn from captions, and the program of `scenes` judges them: over guidance and over steps for
200 captions of pairs that were never trained on, then, at the guidance that was best for held-out captions, for 1,000
of these, for those of them whose two kinds differ in colour and in shape, for all of unseen compositions, and for
single objects and counts, which are all trained on. Then a U-Net and a transformer of as many multiply-adds learn
digits, over three seeds. A quarter of an hour of one core; `--quick` tries everything with a few pictures (and says so
in the file): give it another `--out`.
"""

from __future__ import annotations

import argparse
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from book import Book
from torch.utils.flop_counter import FlopCounterMode

from diffusion_course.checkpoints import WEIGHTS, info, load
from diffusion_course.generation import generate
from diffusion_course.images import digit_classifier, digits
from diffusion_course.matching import fit, matching_loss
from diffusion_course.predictions import Denoiser
from diffusion_course.scenes import VERDICTS, Caption, all_captions, judge, read_scene
from diffusion_course.schedules import Linear
from diffusion_course.transformer import DiT, DiTConfig, prompted, tokens
from diffusion_course.unet import UNet, UNetConfig

GUIDANCE = (0.0, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
STEPS = (2, 4, 8, 16, 32)
USUAL = 16  # steps
NETWORKS = {  # for digits, of nearly the same number of multiply-adds
    "U-Net": lambda seed: UNet(UNetConfig((1, 8, 8), widths=(16, 16), attention=(), head=4, patch=1), seed),
    "transformer": lambda seed: DiT(
        DiTConfig((1, 8, 8), patch=2, width=48, depth=4, head=16, n_labels=10, n_cond=0, vocabulary=0), seed
    ),
}
TRAINED = 400  # steps


def checksum(model: Denoiser) -> str:
    """A number that tells a model's weights, in 16 bits, from others."""
    return f"{zlib.crc32(b''.join(v.half().numpy().tobytes() for v in model.state_dict().values())):08x}"


def some(captions: Sequence[Caption], n: int, seed: int) -> list[Caption]:
    """n captions in random order: each once, before any comes twice."""
    rng = np.random.default_rng(seed)
    rounds = [rng.permutation(len(captions)) for _ in range(-(-n // len(captions)))]
    return [captions[k] for k in np.concatenate(rounds)[:n]]


def measure(model: Denoiser, captions: Sequence[Caption], w: float, steps: int, seed: int) -> dict:
    """How many pictures are right, and what is wrong first with the others.

    `misdrawn` of those whose shapes are wrong show an outline that is like none of the three.
    """
    found: Counter[str] = Counter()
    misdrawn = 0
    for k in range(0, len(captions), 100):
        part = captions[k : k + 100]
        cond = tokens([str(c) for c in part])
        x = generate(
            prompted(model, w), len(part), steps, "dpmpp_2m", seed=1000 * seed + k, cond=cond
        )
        for image, caption in zip(x, part, strict=True):
            things = read_scene(image)
            what = judge(things, caption)
            found[what] += 1
            misdrawn += what == "shape" and any(thing.shape == "none" for thing in things)
    verdicts = {v: found[v] for v in VERDICTS}
    return dict(n=len(captions), right=found["right"] / len(captions), verdicts=verdicts, misdrawn=misdrawn)


def apart(caption: Caption) -> bool:
    """Whether the two kinds of a caption differ in colour and in shape, as those of unseen compositions do."""
    (colours, shapes) = zip(*caption.composition, strict=True)
    return len(set(colours)) == len(set(shapes)) == 2


def learned(network: str, steps: int, seed: int) -> dict:
    """Multiply-adds of a call, and after a training on digits the loss on held-out ones and the labels' agreement."""
    net = NETWORKS[network](seed)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, 1, 8, 8), torch.zeros(1), torch.zeros(1, dtype=torch.int64))
    x, y = digits().batch(slice(None))
    run = fit(Denoiser(net, Linear()), x, steps, labels=y, batch_size=64, lr=2e-3, seed=seed, progress=False)
    x, y = digits("test").batch(slice(None))
    with torch.no_grad():
        loss = float(matching_loss(run.model, x, y=y, generator=torch.Generator().manual_seed(0)))
    asked = torch.arange(300) % 10
    drawn = generate(run.model, len(asked), 20, "dpmpp_2m", seed=seed, y=asked)
    right = float((digit_classifier()(drawn) == asked).double().mean())
    return dict(macs=counter.get_total_flops() // 2, loss=loss, agreement=right)


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="that reads captions: a shipped name or a file")
    parser.add_argument("--out", type=Path, default=WEIGHTS / "scenes.json")
    parser.add_argument(
        "--quick", action="store_true", help="a trial with a few pictures: its numbers mean nothing"
    )
    args = parser.parse_args()
    model = load(args.model)
    about = dict(
        command=f"python tools/measure_text.py {Path(args.model).stem}",
        quick=args.quick,
        steps=USUAL,
        torch=torch.__version__,
        images=info(args.model).get("images"),
        weights=checksum(model),
    )
    book = Book(args.out, about, anew=("weights",))
    parts = all_captions()
    few, many = (10, 20) if args.quick else (200, 1000)
    pairs = ("held-out", "unseen")
    for part in pairs:
        for w in GUIDANCE:
            book.row(
                "guidance",
                dict(part=part, w=w),
                measure,
                model,
                some(parts[part], few, 1),
                w,
                USUAL,
                1,
            )
    best = max(
        (r for r in book.tables["guidance"] if r["part"] == "held-out"), key=lambda r: r["right"]
    )["w"]
    book.tables["about"]["best"] = best
    for part in pairs:
        for steps in STEPS:
            key = dict(part=part, steps=steps, w=best)
            book.row("steps", key, measure, model, some(parts[part], few, 2), best, steps, 2)
    for part in ("single", "count", *pairs):
        n = (
            many
            if part == "held-out"
            else min(many, len(parts[part]))
            if part == "unseen"
            else min(many, 300)
        )
        book.row(
            "parts",
            dict(part=part, w=best),
            measure,
            model,
            some(parts[part], n, 3),
            best,
            USUAL,
            3,
        )
    both = [c for c in parts["held-out"] if apart(c)]
    n = min(many, len(both))
    key = dict(part="held-out, apart", w=best)
    book.row("parts", key, measure, model, some(both, n, 3), best, USUAL, 3)
    steps = 10 if args.quick else TRAINED
    for seed in range(1 if args.quick else 3):
        for name in NETWORKS:
            book.row("digits", dict(network=name, steps=steps, seed=seed), learned, name, steps, seed)


if __name__ == "__main__":
    main()
