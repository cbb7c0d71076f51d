"""Measure the tables of lesson 26: `python tools/measure_discrete.py runs/text runs/binary-digits`.

Writes diffusion_course/weights/discrete.json, row by row: a run that was stopped goes on where it was, and another
model begins anew. Of the chain of letter pairs: small networks of three seeds, their excess over the exact loss, and
the pair statistics of their samples over the number of steps. Of text: bits per letter of the model and of n-gram
models on the same held-out windows, and samples. Of digits: three seeds (that of the run, and two more trained here),
bits per pixel and what a classifier says over guidance. Twenty minutes of one core; `--quick` tries everything with a
few steps (and says so in the file): give it another `--out`.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from book import Book
from measure_text import checksum
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from diffusion_course.checkpoints import WEIGHTS, info, load
from diffusion_course.discrete import (
    LETTERS, PRESETS, ExactTokens, GuidedTokens, TokenChain, TokenNet, TokenNetConfig, binary_digits, bits,
    confident_step, decode, encode, fill, hidden, masked_loss, reference_text, reveal_step, text_windows,
)
from diffusion_course.training import train

SEEDS = (0, 1, 2)
STEPS = (1, 2, 4, 8, 16)
CHAIN = TokenNetConfig(length=16, width=64, depth=2, head=16)
ORDERS = {"random": reveal_step, "confident": confident_step}


def rng(seed: int) -> torch.Generator:
    """A source of randomness."""
    return torch.Generator().manual_seed(seed)


def spread(x: Tensor) -> dict:
    """Mean and standard error."""
    return dict(mean=x.mean().item(), error=(x.std() / len(x) ** 0.5).item())


# ---- the chain ---------------------------------------------------------------------------------------------------

def chain() -> TokenChain:
    """The chain of the lesson: letter pairs as in the training text, 16 letters long."""
    return TokenChain.counted(text_windows("train", 16).x, len(LETTERS))


def trained_on_chain(seed: int, steps: int) -> TokenNet:
    """A small network that learns from fresh samples of the chain, with a rate that falls to zero."""
    source, net, g = chain(), TokenNet(CHAIN, seed), rng(seed)
    adam = torch.optim.Adam(net.parameters(), 3e-3, betas=(0.9, 0.99))
    for k in range(steps):
        loss = masked_loss(net, source.sample(256, g), generator=g).mean()
        for group in adam.param_groups:
            group["lr"] = 3e-3 * min(1, (k + 1) / 100) * (1 + math.cos(math.pi * k / steps)) / 2
        adam.zero_grad()
        loss.backward()
        adam.step()
    return net.eval().requires_grad_(False)


def distance(x: Tensor, exact: Tensor) -> float:
    """Total variation between the pairs of neighbours in samples and their exact frequencies."""
    K = len(exact)
    found = torch.bincount(x[:, :-1].flatten() * K + x[:, 1:].flatten(), minlength=K * K).double()
    return ((found / found.sum()).reshape(K, K) - exact).abs().sum().item() / 2


def of_chain(net: TokenNet, n: int) -> dict:
    """Loss of the network and of the exact posterior on the same masks, and the pairs of samples over steps."""
    source = chain()
    x1 = source.sample(n, rng(100))
    hide = hidden(*x1.shape, rng(101))
    with torch.no_grad(): loss = masked_loss(net, x1, hide=hide).double()
    exact = masked_loss(ExactTokens(source), x1, hide=hide)
    pairs = []
    for steps in STEPS:
        *_, x = fill(net, n, steps, generator=rng(102 + steps))
        pairs.append(distance(x, source.pairs()))
    return dict(n=n, loss=spread(loss / math.log(2)), excess=spread((loss - exact) / math.log(2)), pairs=pairs)


# ---- text --------------------------------------------------------------------------------------------------------

class NGram:
    """A model that counts: the next letter after the last n - 1, interpolated with shorter contexts by the rule of
    Witten and Bell (1991)."""

    def __init__(self, text: str, n: int):
        self.n = n
        self.counts: list[dict[str, Counter[str]]] = [{} for _ in range(n)]
        for k in range(n):
            for i in range(k, len(text)):
                self.counts[k].setdefault(text[i - k : i], Counter())[text[i]] += 1

    def log2(self, context: str, letter: str) -> float:
        """log2 p(letter | context)."""
        p = 1 / len(LETTERS)
        for k in range(min(self.n, len(context) + 1)):
            after = self.counts[k].get(context[len(context) - k :])
            if after is None: break
            total, kinds = sum(after.values()), len(after)
            p = (after[letter] + kinds * p) / (total + kinds)
        return math.log2(p)

    def bits(self, line: str) -> float:
        """Bits per letter of a line that begins anywhere in a text."""
        known = [line[max(0, i - self.n + 1) : i] for i in range(len(line))]
        return -sum(self.log2(context, letter) for context, letter in zip(known, line, strict=True)) / len(line)


def windows(split: str, n: int) -> Tensor:
    """Stretches of the text that don't overlap, evenly spread."""
    x = text_windows(split).x
    return x[torch.linspace(0, len(x) - 1, min(n, len(x) // x.shape[1])).long()].long()


def of_counting(order: int, lines: list[str]) -> dict:
    """Bits per letter of an n-gram model that was counted on the training text."""
    model = NGram(reference_text("train"), order)
    return dict(bits=spread(torch.tensor([model.bits(line) for line in lines])))


def of_letters(net: TokenNet, x1: Tensor, draws: int) -> dict:
    """Bits per letter of the network."""
    return dict(n=len(x1), draws=draws, bits=spread(bits(net, x1, draws, generator=rng(0))))


def of_samples(net: TokenNet, steps: int, order: str, temperature: float, n: int) -> dict:
    """Samples of text: how many of their words the training text has, how varied they are, and what the net says.

    The first and the last word of a line may be cut, so they don't count. `distinct` are the different words per word.
    """
    *_, x = fill(net, n, steps, ORDERS[order], temperature=temperature, generator=rng(7))
    return of_lines(decode(x))


def of_lines(lines: list[str]) -> dict:
    """The words of lines: how many the training text has, and how many are different."""
    known = set(reference_text("train").split())
    found = [word for line in lines for word in line.split()[1:-1]]
    letters = torch.bincount(torch.cat([encode(line) for line in lines]).long(), minlength=len(LETTERS)).double()
    p = letters / letters.sum()
    return dict(words=len(found), known=sum(w in known for w in found) / max(1, len(found)),
                distinct=len(set(found)) / max(1, len(found)),
                spaces=p[0].item(), entropy=torch.special.entr(p).sum().item() / math.log(2),
                example=lines[:2])


# ---- digits ------------------------------------------------------------------------------------------------------

def more_digits(seed: int, images: int) -> TokenNet:
    """The preset with another seed."""
    recipe = replace(PRESETS["binary-digits"], seed=seed, images=images)
    with tempfile.TemporaryDirectory() as folder:
        return train(recipe, folder, progress=False, device="cpu").requires_grad_(False)  # type: ignore[return-value]


def judge() -> LogisticRegression:
    """A classifier of digits of two shades."""
    data = binary_digits("train")
    return LogisticRegression(max_iter=2000, C=0.1).fit(data.x.float().numpy(), data.y.numpy())


def of_digits(net: TokenNet, guidance: tuple[float, ...], n: int, draws: int) -> dict:
    """Bits per pixel of test images, told their labels or not, and what the classifier says of samples of 16 steps."""
    test, train_set, classifier = binary_digits("test"), binary_digits("train"), judge()
    x1 = test.x.long()
    y = torch.arange(n) % 10
    start = torch.full((n, 64), 2)
    rows = []
    for w in guidance:
        *_, x = fill(GuidedTokens(net, w), start, 16, y=y, generator=rng(8))
        right = float((classifier.predict(x.float().numpy()) == y.numpy()).mean())
        same = torch.stack([x[y == k].float().var(0).mean() for k in range(10)]).mean().item()
        rows.append(dict(w=w, right=right, variance=same))
    real = float((classifier.predict(test.x.float().numpy()) == test.y.numpy()).mean())
    variance = torch.stack([test.x[test.y == k].float().var(0).mean() for k in range(10)]).mean().item()
    part = torch.linspace(0, len(train_set) - 1, len(test)).long()
    return dict(bits=spread(bits(net, x1, draws, generator=rng(0))),
                told=spread(bits(net, x1, draws, y=test.y, generator=rng(0))),
                of_training=spread(bits(net, train_set.x[part].long(), draws, y=train_set.y[part], generator=rng(0))),
                guidance=rows, real=dict(right=real, variance=variance), n=n)


def of_pixels() -> dict:
    """Bits per pixel of models that count: each pixel by itself, without and with the label."""
    data, test = binary_digits("train"), binary_digits("test")
    x, z = data.x.double(), test.x.double()

    def of(p: Tensor) -> Tensor: return -(z * p.log2() + (1 - z) * (1 - p).log2()).mean(1)

    alone = (x.sum(0) + 0.5) / (len(x) + 1)
    by_label = torch.stack([(x[data.y == k].sum(0) + 0.5) / ((data.y == k).sum() + 1) for k in range(10)])
    return dict(alone=spread(of(alone)), by_label=spread(of(by_label[test.y])))


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path, help="the folder of `diffusion-course train text`, or a model")
    parser.add_argument("digits", type=Path, help="the same of `diffusion-course train binary-digits`")
    parser.add_argument("--out", type=Path, default=WEIGHTS / "discrete.json")
    parser.add_argument("--quick", action="store_true", help="a trial with a few steps: its numbers mean nothing")
    args = parser.parse_args()
    quick = args.quick
    nets = []
    for path in (args.text, args.digits): nets.append(load(path / "model.safetensors" if path.is_dir() else str(path)))
    text, digits = (net.requires_grad_(False) for net in nets)
    about = dict(command="python tools/measure_discrete.py runs/text runs/binary-digits", quick=quick,
                 torch=torch.__version__, letters=len(reference_text("train")), held_out=len(reference_text("test")),
                 weights=f"{checksum(text)} {checksum(digits)}")
    book = Book(args.out, about, anew=("weights", "letters"))
    x1 = windows("test", 20 if quick else 400)
    book.row("text", dict(part="held out"), of_letters, text, x1, 2 if quick else 16)
    book.row("text", dict(part="trained on"), of_letters, text, windows("train", len(x1)), 2 if quick else 16)
    for order in range(1, 8): book.row("counted", dict(order=order), of_counting, order, decode(x1))
    n = 8 if quick else 64
    book.row("samples", dict(order="held-out text", steps=0, temperature=1.0), of_lines, decode(windows("test", n)))
    for steps in (1, 4, 16, 64):
        for order in ORDERS:
            key = dict(order=order, steps=steps, temperature=1.0)
            book.row("samples", key, of_samples, text, steps, order, 1.0, n)
    for temperature in (0.5, 0.75):
        book.row("samples", dict(order="random", steps=64, temperature=temperature), of_samples, text, 64, "random",
                 temperature, n)
    book.row("pixels", dict(data="binary-digits"), of_pixels)
    for seed in SEEDS:
        first = seed == info(args.digits / "model.safetensors" if args.digits.is_dir() else str(args.digits)).get(
            "config", {}).get("seed")
        row = next((r for r in book.tables.get("digits", []) if r["seed"] == seed), None)
        if row: continue
        net = digits if first else more_digits(seed, 640 if quick else PRESETS["binary-digits"].images)
        book.row("digits", dict(seed=seed), of_digits, net, (0.0, 1.0, 2.0, 4.0), 20 if quick else 200,
                 2 if quick else 8)
    for seed in SEEDS:
        for steps in (20,) if quick else (300, 1200):
            if any(r["seed"] == seed and r["steps"] == steps for r in book.tables.get("chain", [])): continue
            net = trained_on_chain(seed, steps)
            book.row("chain", dict(seed=seed, steps=steps), of_chain, net, 100 if quick else 4000)


if __name__ == "__main__":
    np.random.seed(0)
    main()
