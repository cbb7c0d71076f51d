"""Score the few-step student beside its teacher: `python tools/measure_few_step.py few-step`.

Writes diffusion_course/weights/few_step.json, row by row: a run that was stopped goes on where it
was, and another model begins anew. Fréchet distance and label agreement of decoded images for each
student in 1, 2, 4 and 8 steps, its teacher in the same and in 20, real images, and real images that
went through the autoencoder. Before that, the digits' students over three seeds, and the exact end of
their teacher's guided flow. Twenty minutes of one core; `--quick` tries everything with a few images
(and says so in the file).
"""
from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from book import Book
from torch import Tensor

from diffusion_course import evaluation as ev
from diffusion_course.checkpoints import WEIGHTS, info, load
from diffusion_course.few_step import PRESETS, FlowEnd, consistency
from diffusion_course.generation import as_images, generate, noise
from diffusion_course.guidance import classifier_free
from diffusion_course.images import cifar10, digits, to_bytes
from diffusion_course.predictions import Model
from diffusion_course.samplers import euler, sample, uniform_grid
from diffusion_course.training import train
from diffusion_course.vae import reconstruct

SAMPLERS = {"euler": euler, "consistency": consistency}


def measure_digits(tables: Book, seeds: tuple[int, ...] = (0, 1, 2), n: int = 500) -> None:
    """Of 500 digits of each student, and of the exact end of the guided flow.

    Fréchet distance of pixels; variance within a label, as a fraction of the teacher's in 20 steps of
    DPM++; and the squared distance to the teacher's digit of the same noise, as a fraction of that to
    another of its label.
    """
    counts, y = (1, 2, 4, 8, 20), torch.arange(n) % 10
    teacher, w = load("digits"), PRESETS["few-step-digits"].w
    real = digits().batch(slice(None))[0].flatten(1).double()
    theirs, start = generate(teacher, n, 20, "dpmpp_2m", w, 0, y=y), noise(teacher, n, 0)

    def spread(x: Tensor) -> float:
        return sum(float(x[y == k].flatten(1).var(0).sum()) for k in range(10))

    def scores(model: Model, sampler: str, steps: int) -> dict:
        g = torch.Generator().manual_seed(0)
        stepper = SAMPLERS[sampler]()
        with torch.no_grad(): x = sample(model, start, uniform_grid(steps), stepper, generator=g, y=y)
        apart = (x - theirs).square().mean() / (theirs - theirs.roll(10, 0)).square().mean()
        return dict(
            frechet=ev.frechet_distance(real, x.flatten(1).double()),
            variance=spread(x) / spread(theirs), kept=float(apart),
        )

    def rows(name: str, seed: int, sampler: str, model: Model) -> None:
        for steps in counts:
            key = dict(model=name, seed=seed, steps=steps)
            tables.row("digits", key, scores, model, sampler, steps)

    students = {
        "reflow": ("few-step-digits", "euler"),
        "consistency": ("few-step-digits-consistency", "consistency"),
    }
    there = tables.tables.get("digits", [])
    done = {(r["model"], r["seed"]) for r in there if r["steps"] == counts[-1]}
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            for name, (preset, sampler) in students.items():
                if (name, seed) in done: continue
                config = replace(PRESETS[preset], seed=seed, kept=folder)
                student = train(config, Path(folder) / f"{name}-{seed}", progress=False)
                rows(name, seed, sampler, student)
    rows("true end", 0, "consistency", FlowEnd(classifier_free(teacher, w), 8))


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("student", nargs="*",
                        help="students, the shipped one first: names or files; none: the teacher alone")
    parser.add_argument("--teacher", default="cifar10-latent", help="a shipped name or a file")
    parser.add_argument("--w", type=float,
                        help="guidance of the teacher; default: that of the first student's training")
    parser.add_argument("--classifier", default="cifar10-classifier",
                        help="a shipped name or a file")
    parser.add_argument("--out", type=Path, default=WEIGHTS / "few_step.json")
    parser.add_argument("--quick", action="store_true",
                        help="a trial with a few images: its numbers mean nothing")
    args = parser.parse_args()
    n = 40 if args.quick else 2000
    batch = 20 if args.quick else 200
    configs = [info(s).get("config", {}) for s in args.student]
    w = args.w
    if w is None: w = configs[0].get("w", 2.5) if configs else 2.5
    teacher = load(args.teacher)
    classifier = load(args.classifier)
    real = cifar10("train")
    y = torch.arange(n) % 10
    students = " ".join(Path(s).stem for s in args.student)
    about = dict(
        command=f"python tools/measure_few_step.py {students}".strip(), quick=args.quick, n=n, w=w,
        torch=torch.__version__, images=info(args.teacher).get("images"),
        student_images=[info(s).get("images") for s in args.student],
        teacher=ev.name_of(teacher), classifier=ev.name_of(classifier),
    )
    tables = Book(args.out, about, anew=("teacher", "classifier", "n", "w"))
    measure_digits(tables, (0,) if args.quick else (0, 1, 2))
    first, second = ev.split(n, len(real), 0)
    known = ev.features(real.x[first], classifier)

    def scores(x: torch.Tensor, y: torch.Tensor) -> dict:
        """Of images, against n real ones.

        Variety: the variance of their features, as a fraction of the real ones'.
        """
        features = ev.features(x, classifier)
        return dict(
            frechet=ev.frechet_distance(known, features),
            agreement=ev.label_agreement(classifier, x, y),
            variety=float(features.var(0).sum() / known.var(0).sum()),
        )

    def drawn(model: Model, steps: int, sampler: str, w: float) -> dict:
        """Of what a model draws."""
        stepper = SAMPLERS[sampler]() if sampler in SAMPLERS else sampler
        x = generate(model, n, steps, stepper, w, seed=0, batch=batch, y=y)
        return scores(as_images(model, x), y)

    others, labels = real.batch(second)
    tables.row("real", dict(what="real images"), lambda: scores(real.x[second], labels))
    decoded = lambda: to_bytes(reconstruct(teacher.net.vae(), others))
    tables.row("real", dict(what="through the autoencoder"), lambda: scores(decoded(), labels))
    calls = 1 if w in (0, 1) else 2
    for sampler, counts in (("euler", (1, 2, 4, 8, 20)), ("dpmpp_2m", (4, 8, 20))):
        for steps in counts:
            key = dict(model="teacher", sampler=sampler, steps=steps, weights=ev.name_of(teacher))
            tables.row("scores", key | dict(nfe=calls * steps), drawn, teacher, steps, sampler, w)
    for name, config in zip(args.student, configs, strict=True):
        student = load(name)
        kind = "consistency" if "huber" in config else "reflow"
        for sampler in SAMPLERS:
            for steps in (1, 2, 4, 8):
                key = dict(model=kind, sampler=sampler, steps=steps, weights=ev.name_of(student))
                tables.row("scores", key | dict(nfe=steps), drawn, student, steps, sampler, 1.0)
    frechet = {(r["model"], r["sampler"], r["steps"]): r["frechet"] for r in tables.tables["scores"]}
    for (model, sampler, steps), d in frechet.items():
        if model == "teacher" or steps != 2: continue
        fraction = d / frechet["teacher", "euler", 2]
        print(f"{model}, {sampler}, 2 steps: {d:.2f}, {fraction:.2f} of the teacher's")


if __name__ == "__main__": main()
