"""Measure the tables of lesson 24: `python tools/measure_text.py scenes`.

Writes diffusion_course/weights/scenes.json, row by row: a run that was stopped goes on where it was, and another model
begins anew. Pictures are drawn from captions, and the program of `scenes` judges them: over guidance and over steps for
200 captions of pairs that were never trained on, then, at the guidance that was best for held-out captions, for 1,000
of these, for all of unseen compositions, and for single objects and counts, which are all trained on. Ten minutes of
one core; `--quick` tries everything with a few pictures (and says so in the file): give it another `--out`.
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

from diffusion_course.checkpoints import WEIGHTS, info, load
from diffusion_course.generation import generate
from diffusion_course.predictions import Denoiser
from diffusion_course.scenes import VERDICTS, Caption, all_captions, judge, read_scene
from diffusion_course.transformer import prompted, tokens

GUIDANCE = (0.0, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
STEPS = (2, 4, 8, 16, 32)
USUAL = 16  # steps


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


if __name__ == "__main__":
    main()
