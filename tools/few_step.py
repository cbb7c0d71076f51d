"""Score the few-step student beside its teacher: `python tools/few_step.py few-step`.

Writes diffusion_course/weights/few_step.json, a row at a time: a run that was stopped goes on where it was, and another model begins anew. Fréchet
distance and label agreement of decoded pictures for each student in 1, 2, 4 and 8 steps, its teacher in the same and in 20, real pictures, and real
pictures that went through the autoencoder. Twenty minutes of one core; `--quick` tries everything with a few pictures (and says so in the file).
"""
from __future__ import annotations

import argparse
from pathlib import Path

import torch
from book import Book

from diffusion_course import evaluation as ev
from diffusion_course.checkpoints import WEIGHTS, info, load
from diffusion_course.few_step import consistency
from diffusion_course.generation import as_images, generate
from diffusion_course.images import cifar10, to_bytes
from diffusion_course.samplers import euler
from diffusion_course.vae import reconstruct

SAMPLERS = dict(euler=euler, consistency=consistency)


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("student", nargs="*", help="students, the shipped one first: shipped names or files; none: the teacher alone")
    parser.add_argument("--teacher", default="cifar10-latent", help="a shipped name or a file")
    parser.add_argument("--w", type=float, help="guidance of the teacher; default: that of the first student's training")
    parser.add_argument("--classifier", default="cifar10-classifier", help="a shipped name or a file")
    parser.add_argument("--out", type=Path, default=WEIGHTS / "few_step.json")
    parser.add_argument("--quick", action="store_true", help="a trial with a few pictures: its numbers mean nothing")
    args = parser.parse_args()
    n, size = (40, 20) if args.quick else (2000, 200)
    configs = [info(s).get("config", {}) for s in args.student]
    w = args.w if args.w is not None else configs[0].get("w", 2.5) if configs else 2.5
    teacher, judge, real, y = load(args.teacher), load(args.classifier), cifar10("train"), torch.arange(n) % 10
    about = dict(command=f"python tools/few_step.py {' '.join(Path(s).stem for s in args.student)}".strip(), quick=args.quick, n=n, w=w,
                 torch=torch.__version__, images=info(args.teacher).get("images"), student_images=[info(s).get("images") for s in args.student],
                 teacher=ev.name_of(teacher), classifier=ev.name_of(judge))
    book = Book(args.out, about, anew=("teacher", "classifier", "n", "w"))
    first, second = ev.split(n, len(real), 0)
    known, (others, labels) = ev.features(real.x[first], judge), real.batch(second)

    def scores(x: torch.Tensor, y: torch.Tensor) -> dict:
        """Of pictures, against n real ones. Variety: how far two of them are apart, as a share of two real ones."""
        f = ev.features(x, judge)
        return dict(frechet=ev.frechet_distance(known, f), agreement=ev.label_agreement(judge, x, y), variety=float(f.var(0).sum() / known.var(0).sum()))

    def drawn(model: torch.nn.Module, steps: int, sampler: str, w: float) -> dict:
        """Of what a model makes."""
        stepper = SAMPLERS[sampler]() if sampler in SAMPLERS else sampler
        return scores(as_images(model, generate(model, n, steps, stepper, w, seed=0, batch=size, y=y)), y)

    book.row("real", dict(what="real pictures"), lambda: scores(real.x[second], labels))
    book.row("real", dict(what="through the autoencoder"), lambda: scores(to_bytes(reconstruct(teacher.net.vae(), others)), labels))
    both = 1 if w in (0, 1) else 2
    for sampler, counts in (("euler", (1, 2, 4, 8, 20)), ("dpmpp_2m", (4, 8, 20))):
        for steps in counts:
            key = dict(model="teacher", sampler=sampler, steps=steps, weights=ev.name_of(teacher))
            book.row("scores", key | dict(nfe=both * steps), drawn, teacher, steps, sampler, w)
    for name, config in zip(args.student, configs, strict=True):
        student, kind = load(name), "consistency" if "huber" in config else "reflow"
        for sampler in SAMPLERS:
            for steps in (1, 2, 4, 8):
                key = dict(model=kind, sampler=sampler, steps=steps, weights=ev.name_of(student))
                book.row("scores", key | dict(nfe=steps), drawn, student, steps, sampler, 1.0)
    found = {(r["model"], r["sampler"], r["steps"]): r["frechet"] for r in book.tables["scores"]}
    for (model, sampler, steps), d in found.items():
        if model != "teacher" and steps == 2: print(f"{model}, {sampler}, 2 steps: {d:.2f}, {d / found['teacher', 'euler', 2]:.2f} of the teacher's")


if __name__ == "__main__": main()
