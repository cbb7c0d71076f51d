"""Measure the tables of lesson 16.

    python tools/measure_tables.py cifar10 --stage runs/cifar10-small/stages/000600064.safetensors

Writes diffusion_course/weights/tables.json, row by row: a run that was stopped goes on where it
was, and rows of another model are measured again. Also writes
diffusion_course/weights/reference/cifar10.safetensors: features of 2,000 training images, for
readers without CIFAR-10. About an hour and a half on two cores. `--n 500` takes a quarter of that;
`--quick` tries everything with a few images (and says so in the file: give it another `--out`).
"""
from __future__ import annotations

import argparse
import io
import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from book import Book
from torch import Tensor, nn
from tqdm import tqdm

from diffusion_course import evaluation as ev
from diffusion_course.checkpoints import WEIGHTS, info, load, write_tensors
from diffusion_course.generation import generate
from diffusion_course.images import Images, cifar10, to_bytes, to_float
from diffusion_course.predictions import Model

# name in the table: (sampler, evaluations a step)
SAMPLERS = {
    "euler (= ddim)": ("euler", 1),
    "heun": ("heun", 2),
    "dpmpp_2m": ("dpmpp_2m", 1),
    "ancestral": ("ancestral", 1),
    "euler_maruyama": ("euler_maruyama", 1),
}
SCALES = (1.0, 1.5, 1.75, 2.0, 2.25, 2.5, 3.0, 4.0)
# (w, lo, hi): guidance at the times from lo to hi alone
INTERVALS = ((2.0, 0.1, 0.8), (2.5, 0.25, 0.78), (3.0, 0.25, 0.78), (3.0, 0.35, 0.75))
PARTS = (
    (1.0, 0.0, 1.0), (4.0, 0.0, 1.0), (4.0, 0.0, 0.3), (4.0, 0.3, 0.7), (4.0, 0.7, 1.0),
    (2.5, 0.25, 0.78), (1.75, 0.0, 1.0),
)


def plain(scores: dict[str, ev.Score]) -> dict:
    """Scores as JSON holds them."""
    return dict(scores={name: dict(value=s.value, floor=s.floor) for name, s in scores.items()})


# ---- real images against real ones ---------------------------------------------------------------

def jpeg(x: Tensor, quality: int) -> Tensor:
    """Bytes (n, 3, H, W) as they come back from JPEG files."""
    def encoded_and_decoded(image: Tensor) -> Tensor:
        file = io.BytesIO()
        rows = image.permute(1, 2, 0).contiguous()
        Image.fromarray(rows.numpy()).save(file, "jpeg", quality=quality)
        data = bytearray(Image.open(file).convert("RGB").tobytes())
        return torch.frombuffer(data, dtype=torch.uint8).reshape(rows.shape).permute(2, 0, 1)
    return torch.stack([encoded_and_decoded(image) for image in x])


def damages(x: Tensor, y: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Ways to damage images (n, 3, H, W) of bytes with labels y."""
    g = torch.Generator().manual_seed(0)

    def noisy(sigma: float) -> Tensor:
        return to_bytes(to_float(x) + sigma * torch.randn(x.shape, generator=g))

    def half_the_size() -> Tensor:
        small = F.avg_pool2d(to_float(x), 2)
        return to_bytes(F.interpolate(small, scale_factor=2, mode="bilinear"))

    return {
        "as they are": lambda: x,
        "mirrored": lambda: x.flip(3),
        "a byte darker": lambda: (x.int() - 1).clamp(0).byte(),
        "noise 0.05": lambda: noisy(0.05),
        "noise 0.2": lambda: noisy(0.2),
        "JPEG, quality 90": lambda: jpeg(x, 90),
        "JPEG, quality 50": lambda: jpeg(x, 50),
        "half the pixels a side": half_the_size,
        "upside down": lambda: x.flip(2),
        "half of the labels": lambda: x[y < 5][torch.arange(len(x)) % int((y < 5).sum())],
        "every image ten times": lambda: x[torch.arange(len(x)) // 10],
    }


def write_reference(path: Path, real: Images, known: Tensor, name: str, seed: int) -> None:
    """Features of two disjoint sets of 1,000 images, and mean and covariance of all, in under 1 MB."""
    chosen = torch.cat(ev.split(1000, len(real), seed))
    tensors = dict(
        features=known[chosen].half(), labels=real.y[chosen].byte(), mean=known.mean(0).float(),
        covariance=torch.cov(known.T).float(),
    )
    about = dict(extractor=name, data="CIFAR-10, train", n=len(real), index=chosen.tolist())
    write_tensors(path, tensors, about)


def new_images(
    tables: Book, real: Images, known: Tensor, test: Images, classifier: nn.Module, n: int, seeds: int,
) -> None:
    """n test images against n training images: what a perfect model of new images may come to."""
    name = ev.name_of(classifier)

    def row(seed: int) -> dict:
        chosen = torch.randperm(len(test), generator=torch.Generator().manual_seed(seed))[:n]
        fake = ev.features(test.x[chosen], classifier)
        return plain(ev.compare_features(known[ev.split(n, len(real), seed)[0]], fake, name))

    for seed in range(seeds): tables.row("new", dict(n=n, seed=seed, extractor=name), row, seed)


def measure_real(
    tables: Book, real: Images, known: Tensor, test: Images, classifier: nn.Module, n: int,
    sizes: tuple[int, ...],
) -> None:
    """Floors by n of training and of new images, and what damage costs, in features of training images."""
    name = ev.name_of(classifier)
    for size in sizes:
        for seed in range(5 if size <= 2000 else 2):
            measure = lambda n, seed: plain(ev.real_scores(known, n, name, seed))
            tables.row("floors", dict(n=size, seed=seed, extractor=name), measure, size, seed)
    for size, seeds in {min(2000, max(sizes)): 5, max(sizes): 1}.items():
        new_images(tables, real, known, test, classifier, size, seeds)
    a, b = ev.split(n, len(real))
    for kind, damage in damages(real.x[b], real.y[b]).items():
        measure = lambda damage: plain(ev.compare_features(known[a], ev.features(damage(), classifier), name))
        tables.row("damage", dict(kind=kind, n=n, extractor=name), measure, damage)


# ---- images of a model ---------------------------------------------------------------------------

def bits_by_noise(model: Model, x: Tensor, y: Tensor, log_snr: float) -> dict:
    """Mean bits a number: the rate at this noise level."""
    g = torch.Generator().manual_seed(round(1000 * (log_snr + 50)))
    parts = [slice(i, i + 100) for i in range(0, len(x), 100)]
    rates = [ev.information_rate(model, to_float(x[i]), log_snr, y=y[i], generator=g) for i in parts]
    rate = torch.cat(rates).double()
    return dict(rate=float(rate.mean()), error=float(rate.std() / len(rate) ** 0.5))


def reading_bytes(x: Tensor, log_snr: float) -> dict:
    """Mean bits a number that bytes cost to read from an image with this noise."""
    g = torch.Generator().manual_seed(round(1000 * (log_snr + 50)))
    sigma = math.exp(-log_snr / 2)
    levels = torch.arange(256) / 127.5 - 1
    costs = []
    for part in x.split(10):
        noisy = to_float(part) + sigma * torch.randn(part.shape, generator=g)
        logits = -(noisy.flatten()[:, None] - levels).square() / (2 * sigma**2)
        cost = F.cross_entropy(logits, part.flatten().long(), reduction="none")
        costs.append(cost.view(len(part), -1).mean(1) / math.log(2))
    cost = torch.cat(costs).double()
    return dict(value=float(cost.mean()), error=float(cost.std() / len(cost) ** 0.5))


def quantiles(distance: Tensor) -> dict:
    """A distribution in 21 numbers."""
    levels = torch.linspace(0, 1, 21, dtype=torch.float64)
    return dict(n=len(distance), quantiles=distance.double().quantile(levels).tolist())


def copies(
    model: Model, classifier: nn.Module, real: Images, test: Images, w: float, n: int, seed: int,
) -> dict:
    """The nearest training images of 8 samples, and how far samples and test images are from theirs."""
    y = torch.arange(n) % 10
    x = to_bytes(generate(model, n, 20, "dpmpp_2m", w, seed, batch=100, progress=True, y=y))
    found = {}
    for kind, extractor in (("features", classifier), ("pixels", None)):
        near = ev.nearest(torch.cat([x, test.x[:n]]), real, extractor, k=3)
        eight = dict(index=near.index[:8], flipped=near.flipped[:8], distance=near.distance[:8])
        found[kind] = dict(
            samples=quantiles(near.distance[:n, 0]), test=quantiles(near.distance[n:, 0]),
            eight={name: values.tolist() for name, values in eight.items()},
        )
    return dict(n=n, guidance=w, seed=seed, steps=20, y=y[:8].tolist(), **found)


def variety(x: Tensor) -> dict[str, float]:
    """Of 16 images of one label: values beyond [-1, 1], contrast, mean distance and mean correlation of two."""
    c, n = torch.corrcoef(x.flatten(1)), len(x)
    return dict(
        outside=float((x.abs() > 1).float().mean()), contrast=float(x.std((1, 2, 3)).mean()),
        distance=float(torch.pdist(x.flatten(1)).mean() / x[0].numel() ** 0.5),
        likeness=float((c.sum() - n) / (n * (n - 1))),
    )


def by_label(model: Model, w: float, lo: float, hi: float, seed: int, labels: int, images: int) -> dict:
    """What guidance in a part of the time does to the images of each label."""
    how = dict(interval=(lo, hi)) if w != 1 else {}
    found = [variety(generate(model, images, 16, "dpmpp_2m", w, seed + y, y=y, **how)) for y in range(labels)]
    return {name: [round(f[name], 4) for f in found] for name in found[0]}


class Measurement:
    """The rows of one model after another.

    Args:
        tables: where they are written.
        classifier: the extractor of features.
        real: the training images.
        test: the test images.
        args: of the command line.
    """

    def __init__(
        self, tables: Book, classifier: nn.Module, real: Images, test: Images,
        args: argparse.Namespace,
    ):
        self.tables = tables
        self.classifier = classifier
        self.real, self.test = real, test
        self.args = args

    def key(self, name: str) -> dict:
        """What all rows of a model have in common."""
        extractor = ev.name_of(self.classifier)
        return dict(images=info(name).get("images"), extractor=extractor, seed=self.args.seed)

    def score(self, model: Model, n: int, seed: int, **options) -> dict:
        """Scores of n images of a model."""
        return plain(ev.evaluate(model, self.classifier, self.real, n, seed=seed, **options))

    def guidance(self, name: str, model: Model) -> float:
        """A row for each scale of guidance. Returns the best of them."""
        n = 60 if self.args.quick else self.args.n

        def row(w: float) -> dict:
            key = self.key(name) | dict(w=w, n=n, steps=20)
            options = dict(guidance=w, steps=20)
            return self.tables.row("guidance", key, self.score, model, n, self.args.seed, **options)

        rows = [row(w) for w in ((1.0, 2.0) if self.args.quick else SCALES)]
        return min(rows, key=lambda r: r["scores"]["Fréchet distance"]["value"])["w"]

    def best(self, name: str, model: Model, w: float) -> None:
        """A row with many images at the best guidance."""
        n = 80 if self.args.quick else 5 * self.args.n
        key = self.key(name) | dict(w=w, n=n)
        self.tables.row("best", key, self.score, model, n, self.args.seed + 1, guidance=w, steps=20)

    def intervals(self, name: str, model: Model) -> None:
        """A row for each way to guide during a part of the time; for the best a row with many images."""
        n = 60 if self.args.quick else self.args.n
        chosen = INTERVALS[:1] if self.args.quick else INTERVALS

        def row(table: str, n: int, seed: int, w: float, lo: float, hi: float) -> dict:
            key = self.key(name) | dict(w=w, lo=lo, hi=hi, n=n, steps=20)
            return self.tables.row(table, key, self.score, model, n, seed, guidance=w, interval=(lo, hi), steps=20)

        rows = {part: row("intervals", n, self.args.seed, *part) for part in chosen}
        best = min(rows, key=lambda part: rows[part]["scores"]["Fréchet distance"]["value"])
        row("best in an interval", 80 if self.args.quick else 5 * self.args.n, self.args.seed + 1, *best)
        labels, images = (2, 4) if self.args.quick else (10, 16)
        for w, lo, hi in PARTS[:2] if self.args.quick else PARTS:
            key = self.key(name) | dict(w=w, lo=lo, hi=hi)
            self.tables.row("parts", key, by_label, model, w, lo, hi, self.args.seed, labels, images)

    def bits(self, name: str, model: Model) -> None:
        """Bits per dimension of test and training images, and by noise level."""
        quick = self.args.quick
        n = 6 if quick else self.args.n // 10

        def bits(data: Images, n: int, steps: int) -> dict:
            g = torch.Generator().manual_seed(self.args.seed)
            s = ev.bits_per_dim(model, data.x[:n], steps, y=data.y[:n], generator=g, progress=True)
            return dict(value=s.value, error=s.error, how=s.extractor)

        for kind, data in (("test", self.test), ("train", self.real)):
            key = self.key(name) | dict(data=kind, n=n)
            row = self.tables.row("bits", key, bits, data, n, 2 if quick else 25)
            print(f"{kind}: {row['value']:.3f} ± {row['error']:.3f} bits per dimension")
        for steps in (2, 4) if quick else (25, 50):  # the same images, uniform parts and probes
            few = max(2, n // 10)
            key = self.key(name) | dict(n=few, steps=steps)
            self.tables.row("bits by steps", key, bits, self.test, few, steps)
        x = self.test.x[: 5 * n]
        y = self.test.y[: 5 * n]
        for level in tqdm((-4, 4) if quick else range(-10, 13), "noise levels"):
            key = self.key(name) | dict(log_snr=level, n=len(x))
            self.tables.row("levels", key, bits_by_noise, model, x, y, level)
            self.tables.row("reading", dict(log_snr=level, n=len(x)), reading_bytes, x, level)

    def copies(self, name: str, model: Model, w: float) -> None:
        """Nearest training images."""
        n = 12 if self.args.quick else self.args.n // 2
        arguments = model, self.classifier, self.real, self.test, w, n, self.args.seed
        self.tables.row("copies", self.key(name), copies, *arguments)

    def samplers(self, name: str, model: Model) -> None:
        """A row for each sampler and number of evaluations."""
        n = 60 if self.args.quick else self.args.n
        for label, (sampler, calls) in SAMPLERS.items():
            for nfe in (4,) if self.args.quick else (6, 12, 24):
                key = self.key(name) | dict(sampler=label, nfe=nfe, n=n)
                options = dict(sampler=sampler, steps=nfe // calls)
                self.tables.row("samplers", key, self.score, model, n, self.args.seed, **options)


def main() -> None:
    """Measure what is missing, and say what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a shipped name or a file")
    parser.add_argument("--stage",
                        help="an earlier file of the same run, for the guidance sweep alone")
    parser.add_argument("--classifier", default="cifar10-classifier",
                        help="a shipped name or a file")
    parser.add_argument("--out", type=Path, default=WEIGHTS / "tables.json")
    parser.add_argument("--reference", type=Path,
                        default=WEIGHTS / "reference" / "cifar10.safetensors")
    parser.add_argument("--features", type=Path,
                        help="remember the features of all training images in this .pt file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--real", action="store_true",
                        help="measure real images only: floors and damage")
    parser.add_argument("--n", type=int, default=2000,
                        help="images behind a score; other tables are in proportion (default: 2000)")
    parser.add_argument("--quick", action="store_true",
                        help="a trial with a few images: its numbers mean nothing")
    args = parser.parse_args()
    model = load(args.model)
    classifier = load(args.classifier)
    real = cifar10("train")
    if args.quick: real = Images(real.x[:400], real.y[:400], real.names)

    if args.features and args.features.exists() and not args.quick: known = torch.load(args.features)
    else: known = ev.features(real, classifier, progress=True)
    if args.features and not args.quick: torch.save(known, args.features)
    if len(known) != len(real):
        raise SystemExit(f"{args.features} holds {len(known)} rows: expected {len(real)}, of this data")

    command = f"python tools/measure_tables.py {args.model}"
    if args.stage: command += " --stage STAGE"
    if args.n != 2000: command += f" --n {args.n}"
    if args.quick: command += " --quick"
    name = ev.name_of(classifier)
    about = dict(
        command=command, quick=args.quick, seed=args.seed, extractor=name, torch=torch.__version__,
        classifier=info(args.classifier).get("test_accuracy"), images=info(args.model).get("images"),
    )
    tables = Book(args.out, about)
    test = cifar10("test")
    if args.quick: measure_real(tables, real, known, test, classifier, 30, (20, 100))
    else:
        write_reference(args.reference, real, known, name, args.seed)
        measure_real(tables, real, known, test, classifier, 2000, (100, 250, 500, 1000, 2000, 5000, 10_000))
    if args.real: return

    measurement = Measurement(tables, classifier, real, test, args)
    w = measurement.guidance(args.model, model)
    measurement.intervals(args.model, model)
    measurement.bits(args.model, model)
    measurement.copies(args.model, model, w)
    measurement.best(args.model, model, w)
    measurement.samplers(args.model, model)
    if args.stage:
        stage = load(args.stage)
        measurement.best(args.stage, stage, measurement.guidance(args.stage, stage))
    for row in tables.tables["guidance"]:
        scores = ", ".join(f"{k} {v['value']:.3f}" for k, v in row["scores"].items())
        print(f"{row['images']:>9,} images, w = {row['w']}: {scores}")


if __name__ == "__main__": main()
