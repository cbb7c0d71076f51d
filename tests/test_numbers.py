"""A number in a lesson's prose is one that the lesson shows: printed by a cell, standing in its code, its formulas or a
table file that it reads.

Left out are what is folded (`<details>`) or to be tried, where the text says what a panel shows at settings that the
reader chooses, and cells that name the benchmark or tool which prints their table.
"""
from __future__ import annotations

import bisect
import re
from pathlib import Path

import nbformat
import pytest
from conftest import LESSONS, ROOT, name_of

NUMBER = re.compile(r"(?<![\w.,])\d[\d,]*(?:\.\d+)?(?!\w)")

# What is no claim about a result: markup, formulas, names, years, places in books, numbered lists
NOT_SAID = [re.compile(pattern, flags) for pattern, flags in [
    (r"<details>.*?</details>", re.S), (r"\*\*(Try this|Predict)\.\*\*.*?(\n\n|\Z)", re.S),
    (r"\*\*Papers\.\*\*.*", re.S), (r"\$\$.*?\$\$", re.S), (r"\$[^$]*\$", 0),
    (r"`[^`]*`", 0), (r"\[\d+\]\([^)]*\)", 0), (r"\]\([^)]*\)", 0), (r"<[^>]*>", 0), (r"\b(1[89]|20)\d\d\b", 0),
    (r"\b(lessons?|exercises?|sections?|algorithms?|eqs?\.|equations?|figures?|appendix|tables?|trap|part|about)\s+"
     r"\d[\d.]*((\s*(to|and|,)\s*)\d[\d.]*)*(?=\s*minutes|\b(?!\s*%))", re.I),
    (r"\(\d\)", 0), (r"^\s*\d+\.\s", re.M), (r"\*\*\d+ ·", 0), (r"^#.*$", re.M),
]]

# Numbers that are right without being printed, and why
KNOWN = {
    "3,072": "3 · 32 · 32", "60,000": "the images of CIFAR-10", "256": "a byte's values", "1,500": "digits to train on",
    "192": "3 · 64 features", "6.02": "20 log10 2 decibels", "7.6": "log 2,000",
    "4,000": "pairs of a floor, tools/measure_floors.py",
}
SOURCED = {
    "13_unet": {"35.7": "Ho et al. (2020)"},
    "14_training": {"3.17": "Ho et al. (2020)", "102": "Ho et al. (2020): 800,000 steps of 128"},
    "16_evaluation": {"3.75": "Ho et al. (2020), table 1", "2.99": "Lipman et al. (2023), table 1"},
    "17_vae": {"0.83": "1 / (1 + c) at c = 0.2"},
    "18_latent": {"0.18215": "Stable Diffusion's scale", "860": "millions of weights of Stable Diffusion's U-Net"},
}

SCALE = {"million": 1e6, "billion": 1e9}


def shown(path: Path) -> list[float]:
    """All numbers that a lesson shows, in order of size."""
    nb = nbformat.read(path, as_version=4)
    texts = []
    for cell in nb.cells:
        if cell.cell_type == "markdown": texts += re.findall(r"\$[^$]+\$", cell.source)
        else:
            texts.append(cell.source)
            for output in cell.outputs:
                html = output.get("data", {}).get("text/html", "")
                texts += [output.get("text", ""), output.get("data", {}).get("text/plain", "")]
                texts.append(re.sub(r"base64,[\w+/=]+|boot\(.*?\)</script>", "", html, flags=re.S))
    code = "\n".join(cell.source for cell in nb.cells if cell.cell_type == "code")
    tables = (ROOT / "diffusion_course" / "weights").glob("*.json")
    texts += [table.read_text(encoding="utf-8") for table in tables if table.stem in code]
    found = re.findall(r"\d[\d,_]*(?:\.\d+)?(?:e[+-]?\d+)?", "\n".join(texts))
    return sorted(float(re.sub("[,_]", "", number)) for number in found)


def said(path: Path) -> list[tuple[str, bool, str]]:
    """The numbers that a lesson's prose claims: as each is written, whether in per cent, and what stands around it."""
    claims = []
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type != "markdown": continue
        commands = re.findall(r"(?:benchmarks|tools)/\w+\.py", cell.source)
        if commands and all((ROOT / command).exists() for command in commands): continue
        text = cell.source
        for pattern in NOT_SAID: text = pattern.sub(" ", text)
        for match in NUMBER.finditer(text):
            around = " ".join(text[max(0, match.start() - 50): match.end() + 30].split())
            in_per_cent = text[match.end():].lstrip().startswith("%")
            claims.append((match.group().rstrip(","), in_per_cent, around))
    return claims


def is_among(values: list[float], value: float, error: float) -> bool:
    k = bisect.bisect_left(values, value - error)
    return k < len(values) and values[k] <= value + error


@pytest.mark.parametrize("path", LESSONS, ids=name_of)
def test_every_number_in_the_prose_is_shown(path: Path) -> None:
    values, known = shown(path), KNOWN | SOURCED.get(path.stem, {})
    unseen = []
    for number, in_per_cent, around in said(path):
        word = re.search(rf"(?<!\S){re.escape(number)} (million|billion)\b", around)
        value = float(number.replace(",", ""))
        decimals = len(number.partition(".")[2])
        half = 0.505 * 10.0**-decimals
        counts = not decimals and value <= 12 and not in_per_cent  # "two of six", written in figures
        if counts or number in known or is_among(values, value, half): continue
        if word and is_among(values, value * SCALE[word[1]], half * SCALE[word[1]]): continue
        if in_per_cent and is_among(values, value / 100, half / 100): continue
        unseen.append(f"{number}: ... {around} ...")
    assert not unseen, "numbers that nothing prints:\n" + "\n".join(unseen)


def test_a_number_that_nothing_prints_is_found() -> None:
    values = sorted([0.0213, 41.0, 3.0])
    assert is_among(values, 0.021, 0.0005) and not is_among(values, 0.022, 0.0005)
    text = "It fell to 0.021 (lesson 14, 2020), by 41 % of $x + 99$ and `77`."
    for pattern in NOT_SAID: text = pattern.sub(" ", text)
    assert NUMBER.findall(text) == ["0.021", "41"]
