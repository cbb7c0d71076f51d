"""Measure the tables of lesson 16: `python tools/tables.py cifar10 --stage runs/cifar10-small/stages/000600064.safetensors`.

Writes diffusion_course/weights/tables.json, a row at a time: a run that was stopped goes on where it was, and rows of another model are measured
again. Also writes diffusion_course/weights/reference/cifar10.safetensors: features of 2,000 training pictures, for readers without CIFAR-10.
About an hour and a half on two cores. `--n 500` takes a quarter of that; `--quick` tries everything with a few pictures (and says so in the file:
give it another `--out`).
"""
from __future__ import annotations

import argparse
import io
import math
from collections.abc import Callable
from pathlib import Path

import torch
from book import Book
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from diffusion_course import evaluation as ev
from diffusion_course.checkpoints import WEIGHTS, info, load, write_tensors
from diffusion_course.generation import generate
from diffusion_course.images import Images, cifar10, to_bytes, to_float

SAMPLERS = {"euler (= ddim)": ("euler", 1), "heun": ("heun", 2), "dpmpp_2m": ("dpmpp_2m", 1), "ancestral": ("ancestral", 1),
            "euler_maruyama": ("euler_maruyama", 1)}
SCALES = (1.0, 1.5, 1.75, 2.0, 2.25, 2.5, 3.0, 4.0)


def plain(scores: dict[str, ev.Score]) -> dict:
    """Scores as JSON holds them."""
    return dict(scores={name: dict(value=s.value, floor=s.floor) for name, s in scores.items()})


# ---- real pictures against real ones ---------------------------------------------------------------------------------

def jpeg(x: Tensor, quality: int) -> Tensor:
    """Bytes (n, 3, H, W) as they come back from JPEG files."""
    def there_and_back(picture: Tensor) -> Tensor:
        file = io.BytesIO()
        Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).save(file, "jpeg", quality=quality)
        data = bytearray(Image.open(file).convert("RGB").tobytes())
        return torch.frombuffer(data, dtype=torch.uint8).reshape(*picture.shape[1:], 3).permute(2, 0, 1)
    return torch.stack([there_and_back(p) for p in x])


def damages(x: Tensor, y: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Ways to spoil pictures (n, 3, H, W) of bytes."""
    g, small = torch.Generator().manual_seed(0), lambda: torch.nn.functional.avg_pool2d(to_float(x), 2)
    noisy = lambda size: lambda: to_bytes(to_float(x) + size * torch.randn(x.shape, generator=g))
    return {
        "as they are": lambda: x, "mirrored": lambda: x.flip(3), "a byte darker": lambda: (x.int() - 1).clamp(0).byte(),
        "noise 0.05": noisy(0.05), "noise 0.2": noisy(0.2), "JPEG, quality 90": lambda: jpeg(x, 90), "JPEG, quality 50": lambda: jpeg(x, 50),
        "half the pixels a side": lambda: to_bytes(torch.nn.functional.interpolate(small(), scale_factor=2, mode="bilinear")),
        "upside down": lambda: x.flip(2), "half of the labels": lambda: x[y < 5][torch.arange(len(x)) % int((y < 5).sum())],
        "every picture ten times": lambda: x[torch.arange(len(x)) // 10],
    }


def write_reference(path: Path, real: Images, known: Tensor, name: str, seed: int) -> None:
    """Features of two sets of 1,000 pictures that share none, and mean and covariance of all, in less than 1 MB."""
    chosen = torch.cat(ev.split(1000, len(real), seed))
    tensors = dict(features=known[chosen].half(), labels=real.y[chosen].byte(), mean=known.mean(0).float(), covariance=torch.cov(known.T).float())
    write_tensors(path, tensors, dict(extractor=name, data="CIFAR-10, train", n=len(real), index=chosen.tolist()))


def real_tables(book: Book, real: Images, known: Tensor, judge: torch.nn.Module, n: int, sizes: tuple[int, ...]) -> None:
    """Floors by n, and what damage costs, both in features of training pictures."""
    name = ev.name_of(judge)
    for size in sizes:
        for seed in range(5 if size <= 2000 else 2):
            book.row("floors", dict(n=size, seed=seed, extractor=name), lambda n, seed: plain(ev.real_scores(known, n, name, seed)), size, seed)
    a, b = ev.split(n, len(real))
    for kind, spoil in damages(real.x[b], real.y[b]).items():
        spoilt = lambda spoil: plain(ev.compare_features(known[a], ev.features(spoil(), judge), name))
        book.row("damage", dict(kind=kind, n=n, extractor=name), spoilt, spoil)


# ---- pictures of a model ---------------------------------------------------------------------------------------------

def bits_by_noise(model: torch.nn.Module, x: Tensor, y: Tensor, log_snr: float) -> dict:
    """Bits a number: the rate at this noise level, and what bytes cost to read from x at this noise, on average."""
    g = torch.Generator().manual_seed(round(1000 * (log_snr + 50)))
    parts = [ev.information_rate(model, to_float(x[i: i + 100]), log_snr, y=y[i: i + 100], generator=g) for i in range(0, len(x), 100)]
    rate, some, sigma = torch.cat(parts).double(), to_float(x[:40]).flatten(), math.exp(-log_snr / 2)
    seen = some + sigma * torch.randn(some.shape, generator=g)
    away = (seen[:, None] - torch.arange(256) / 127.5 + 1).square() / (2 * sigma**2)
    decode = torch.nn.functional.cross_entropy(-away, x[:40].flatten().long()) / math.log(2)
    return dict(rate=float(rate.mean()), error=float(rate.std() / len(rate) ** 0.5), decode=float(decode))


def quantiles(distance: Tensor) -> dict:
    """A distribution in 21 numbers."""
    return dict(n=len(distance), quantiles=distance.double().quantile(torch.linspace(0, 1, 21, dtype=torch.float64)).tolist())


def copies(model: torch.nn.Module, judge: torch.nn.Module, real: Images, test: Images, w: float, n: int, seed: int) -> dict:
    """The nearest training pictures of 8 samples, and how far samples and test pictures are from their nearest."""
    y, found = torch.arange(n) % 10, {}
    x = to_bytes(generate(model, n, 20, "dpmpp_2m", w, seed, batch=100, progress=True, y=y))
    for kind, extractor in (("features", judge), ("pixels", None)):
        near = ev.nearest(torch.cat([x, test.x[:n]]), real, extractor, k=3)
        found[kind] = dict(samples=quantiles(near.distance[:n, 0]), test=quantiles(near.distance[n:, 0]),
                           eight=dict(index=near.index[:8].tolist(), flipped=near.flipped[:8].tolist(), distance=near.distance[:8].tolist()))
    return dict(n=n, guidance=w, seed=seed, steps=20, y=y[:8].tolist(), **found)


def main() -> None:
    """Measure what is missing, and say what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a shipped name or a file")
    parser.add_argument("--stage", help="an earlier file of the same run, for the guidance sweep alone")
    parser.add_argument("--classifier", default="cifar10-classifier", help="a shipped name or a file")
    parser.add_argument("--out", type=Path, default=WEIGHTS / "tables.json")
    parser.add_argument("--reference", type=Path, default=WEIGHTS / "reference" / "cifar10.safetensors")
    parser.add_argument("--features", type=Path, help="remember the features of all training pictures in this .pt file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--real", action="store_true", help="measure real pictures only: floors and damage")
    parser.add_argument("--n", type=int, default=2000, help="pictures behind a score of samples; other tables are in proportion (default: 2000)")
    parser.add_argument("--quick", action="store_true", help="a trial with a few pictures: its numbers mean nothing")
    args = parser.parse_args()
    n, many, few, nearby = (60, 80, 6, 12) if args.quick else (args.n, 5 * args.n, args.n // 10, args.n // 2)
    nfes, scales, levels = ((4,), (1.0, 2.0), (-4, 4)) if args.quick else ((6, 12, 24), SCALES, range(-10, 13))
    model, judge, test, real = load(args.model), load(args.classifier), cifar10("test"), cifar10("train")
    if args.quick: real = Images(real.x[:400], real.y[:400], real.names)

    if args.features and args.features.exists() and not args.quick: known = torch.load(args.features)
    else: known = ev.features(real, judge, progress=True)
    if args.features and not args.quick: torch.save(known, args.features)
    if len(known) != len(real): raise SystemExit(f"{args.features} holds {len(known)} rows: expected {len(real)}, of this data")

    command = f"python tools/tables.py {args.model}{' --stage STAGE' if args.stage else ''}{f' --n {args.n}' if args.n != 2000 else ''}{' --quick' if args.quick else ''}"
    about = dict(command=command, quick=args.quick, seed=args.seed, extractor=ev.name_of(judge), torch=torch.__version__,
                 classifier=info(args.classifier).get("test_accuracy"), images=info(args.model).get("images"))
    book = Book(args.out, about)
    if not args.quick: write_reference(args.reference, real, known, about["extractor"], args.seed)
    real_tables(book, real, known, judge, 30 if args.quick else 2000, (20, 100) if args.quick else (100, 250, 500, 1000, 2000, 5000, 10_000))
    if args.real: return
    which = lambda name: dict(images=info(name).get("images"), extractor=about["extractor"], seed=args.seed)
    score = lambda m, n, seed=args.seed, **how: plain(ev.evaluate(m, judge, real, n, seed=seed, **how))

    def sweep(name: str, m: torch.nn.Module) -> float:
        rows = [book.row("guidance", which(name) | dict(w=w, n=n, steps=20), score, m, n, guidance=w, steps=20) for w in scales]
        return min(rows, key=lambda r: r["scores"]["Fréchet distance"]["value"])["w"]

    best = sweep(args.model, model)

    def bits(data: Images) -> dict:
        g = torch.Generator().manual_seed(args.seed)
        s = ev.bits_per_dim(model, data.x[:few], 2 if args.quick else 25, y=data.y[:few], generator=g, progress=True)
        return dict(value=s.value, error=s.error, how=s.extractor)

    for kind, data in (("test", test), ("train", real)):
        measured = book.row("bits", which(args.model) | dict(data=kind, n=few), bits, data)
        print(f"{kind}: {measured['value']:.3f} ± {measured['error']:.3f} bits per dimension")
    for level in tqdm(levels, "noise levels"):
        book.row("levels", which(args.model) | dict(log_snr=level), bits_by_noise, model, test.x[: 5 * few], test.y[: 5 * few], level)
    book.row("copies", which(args.model), copies, model, judge, real, test, best, nearby, args.seed)
    book.row("best", which(args.model) | dict(w=best, n=many), score, model, many, args.seed + 1, guidance=best, steps=20)
    for sampler, (name, calls) in SAMPLERS.items():
        for nfe in nfes:
            key = which(args.model) | dict(sampler=sampler, nfe=nfe, n=n)
            book.row("samplers", key, score, model, n, sampler=name, steps=nfe // calls)
    if args.stage:
        stage = load(args.stage)
        w = sweep(args.stage, stage)
        book.row("best", which(args.stage) | dict(w=w, n=many), score, stage, many, args.seed + 1, guidance=w, steps=20)
    for row in book.tables["guidance"]:
        print(f"{row['images']:>9,} pictures, w = {row['w']}: " + ", ".join(f"{k} {v['value']:.3f}" for k, v in row["scores"].items()))


if __name__ == "__main__": main()
