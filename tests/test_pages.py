"""The way through the course: "Next" lines, links, the glossary, the ledger of the last page."""
from __future__ import annotations

import re
from functools import cache
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

import pytest
from conftest import LESSONS, NBS, NOTEBOOKS, ROOT, name_of, read

GLOSSARY, LAST = NBS / "glossary.ipynb", NBS / "last_page.ipynb"
LINK = re.compile(r"\]\(((?:[^()\s]|\([^()\s]*\))+)\)")
ENTRY = re.compile(r"^- \*\*(.+?)\*\*: (.+) \[Lesson (\d+)\]\((\S+?)#(\S+)\)$", re.M)
# Where a term has another form than its entry's name in the section that introduces it.
FORMS = {
    "adaptive solver": "adaptive", "averaged weights": "EMA", "betas": r"\beta",
    "cold diffusion": "cold", "crop and paste": "paste", "Euler's method": "Euler",
    "floor of a distance": "floor", "floor of a loss": "floor", "guidance interval": "interval",
    "Heun's method": "Heun", "held-out data": "held out", "Karras grid": "Karras", "KL divergence": "Kullback-Leibler",
    "KL weight": "weight", "label agreement": "label_agreement", "latent diffusion": "latent",
    "latent of a data point": "latent", "latent of an autoencoder": "latent",
    "latent scale": "scale", "log-normal levels": "log-normal", "marginal path": "marginal",
    "memorisation": "memoris", "ODE": "ordinary differential equation",
    "Ornstein-Uhlenbeck process": "Ornstein-Uhlenbeck", "particles": "particle",
    "perceptual loss": "perceptual", "power spectrum": "spectrum",
    "precision and recall": "Recall", "rate and distortion": "rate-distortion",
    "SDE": "stochastic differential equation", "strong and weak order": "strong",
    "student and teacher": "student", "tilted density": "tilt",
    "variance exploding": "VarianceExploding", "variational autoencoder": r"q(z\mid x)",
    "vector-quantised": "VQ-VAE", "weight of the loss": "weight",
    "work-precision plot": "work-precision",
}
# Bold in a lesson, and no term: words that are stressed, and columns of a table that explains them.
STRESSED = {
    "new", "mean", "zero", "meet", "known", "independently", "preserved", "blurry", "round",
    "clip", "linear", "one curve", "one minus the floor", "mean of the velocitie",
    "predicts the noise", "outside", "contrast", "likeness", "distance", "variety", "asymmetry",
    "label", "grain", "return", "neighbour", "upper", "untouched", "agreement",
}


# ---- notebooks as text ---------------------------------------------------------------------------

@cache
def prose(path: Path) -> str:
    """The Markdown of a notebook, or of a page."""
    if path.suffix != ".ipynb": return path.read_text(encoding="utf-8")
    return "\n\n".join(c["source"] for c in read(path)["cells"] if c["cell_type"] == "markdown")


def anchor(heading: str) -> str:
    """What JupyterLab and GitHub's notebooks call a heading."""
    return re.sub(r"[*`]", "", heading).replace(" ", "-")


@cache
def sections(path: Path) -> dict[str, str]:
    """What stands below each heading of a notebook, code too, by the heading's anchor."""
    found: dict[str, str] = {}
    open_ones: list[tuple[int, str]] = []
    for cell in read(path)["cells"]:
        for line in cell["source"].splitlines():
            heading = re.match(r"(#{1,3}) (.+)$", line) if cell["cell_type"] == "markdown" else None
            if heading:
                depth, name = len(heading[1]), anchor(heading[2])
                open_ones = [(d, n) for d, n in open_ones if d < depth] + [(depth, name)]
                found.setdefault(name, "")
            # The title's section would be the whole notebook.
            for _, name in open_ones[1:] or open_ones: found[name] += line + "\n"
    return found


def terms() -> dict[str, re.Match]:
    """The entries of the glossary by their names."""
    entries = list(ENTRY.finditer(prose(GLOSSARY)))
    assert len({e[1] for e in entries}) == len(entries) == prose(GLOSSARY).count("\n- ") > 100
    return {e[1]: e for e in entries}


# ---- the way through -----------------------------------------------------------------------------

def test_the_next_lines_lead_from_the_first_lesson_to_the_last_page() -> None:
    for path, following in pairwise([*LESSONS, LAST]):
        line = re.search(r"\*\*Next\.\*\* .+", prose(path))
        assert line, f"{path.name} has no line that begins with **Next.**"
        targets = LINK.findall(line[0])
        assert following.name in targets, f"{path.name}: {targets}, expected {following.name}"


PAGES = [*NOTEBOOKS, ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_between_pages_lead_somewhere(path: Path) -> None:
    for link in LINK.findall(prose(path)):
        if re.match(r"https?://|data:|mailto:|attachment:", link): continue
        name, _, heading = unquote(link).partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), f"{path.name} links to {link}: no such file"
        if heading and target.suffix == ".ipynb":
            assert heading in sections(target), f"{path.name} links to {link}: no such heading"


def test_every_page_beside_the_lessons_can_be_reached_from_the_index() -> None:
    links = LINK.findall(prose(NBS / "index.ipynb"))
    assert {GLOSSARY.name, LAST.name} <= set(links)
    assert GLOSSARY.name in LINK.findall(prose(LAST)) and LAST.name in LINK.findall(prose(GLOSSARY))


def test_the_hours_of_the_index_are_the_sum_of_the_minutes() -> None:
    text = prose(NBS / "index.ipynb")
    minutes = {int(n): int(m) for n, m in re.findall(r"^\| \[(\d\d) .* (\d+) \|$", text, re.M)}
    count, hours = re.search(r"All (\d+) lessons take about (\d+) hours", text).groups()
    assert int(count) == len(minutes) and int(hours) == round(sum(minutes.values()) / 60)
    ways = {
        "under 4": [1, 3, 5, 7], "8": [*range(1, 7), 8, 9, 10], "6": [5, 9, 14, 15, 16, 23],
    }
    for said, way in ways.items():
        assert f"({said} hours)" in text
        hours = sum(minutes[n] for n in way) / 60
        assert hours < int(said.split()[1]) if " " in said else round(hours) == int(said)


# ---- the glossary --------------------------------------------------------------------------------

def test_every_term_stands_in_the_section_that_its_entry_links_to() -> None:
    for name, entry in terms().items():
        target = NBS / entry[4]
        assert entry[4].startswith(f"{int(entry[3]):02}_"), f"{name}: {entry[3]} is not {entry[4]}"
        section = sections(target)[entry[5]].lower()
        assert FORMS.get(name, name).lower() in section, f"{name} is not in {entry[4]}#{entry[5]}"
    assert FORMS.keys() <= terms().keys()


def test_entries_stand_in_the_order_of_the_alphabet_and_are_short() -> None:
    names = [re.sub(r"[^a-z0-9 ]", "", name.lower()) for name in terms()]
    assert names == sorted(names)
    for name, entry in terms().items():
        meaning = entry[2].split(" *Elsewhere:*")[0]
        assert meaning.endswith((".", "$")) and len(meaning.split()) <= 40, name


def bold_terms(path: Path) -> set[str]:
    """What a lesson sets in bold where it explains it: up to four words, no sentence, no title."""
    found = set()
    for section in re.split(r"^(?=## )", prose(path), flags=re.M):
        if section.startswith(("## Traps", "## Exercises", "## Recap")): continue
        for words in re.findall(r"\*\*([^*\n]+)\*\*", section):
            is_term = re.match(r"[a-zé]|[A-Z]{2}|[A-Z][\w\-]+$", words) and words[-1] not in ".:?,"
            if is_term and len(words.split()) <= 4:
                found.add(re.sub(r"^(the|from) |(?<!s)s$", "", words.lower()))
    return found


# Lessons 22 and 23 put to use what these explain.
@pytest.mark.parametrize("path", LESSONS[:21], ids=name_of)
def test_every_term_that_a_lesson_sets_in_bold_is_in_the_glossary(path: Path) -> None:
    known = " ".join(LINK.sub("", prose(GLOSSARY)).lower().split())
    missing = {words for words in bold_terms(path) - STRESSED if words not in known}
    assert not missing, f"terms of {path.name} without an entry in the glossary: {sorted(missing)}"


# ---- the last page -------------------------------------------------------------------------------

def test_the_ledger_has_a_row_for_each_lesson_which_links_to_it() -> None:
    rows = re.findall(r"^\| \[(\d\d) [^\]]+\]\((\S+?)\) \|(.+)\|$", prose(LAST), re.M)
    assert [link.split("#")[0] for _, link, _ in rows] == [path.name for path in LESSONS]
    for number, _, rest in rows:
        cells = rest.split(" | ")
        assert len(cells) == 4 and all(cell.strip() for cell in cells), number
        others = [target for target in LINK.findall(rest) if not target.startswith(f"{number}_")]
        assert not others, f"row {number} links to {others}"


def cited(text: str) -> dict[str, str]:
    """The year of each work that is cited as: names (year), *title*."""
    pairs = re.findall(r"\((\d{4})(?:, [^)]*)?\), \[?\*([^*]+)\*", text)
    return {re.split(r"[:,]", " ".join(title.lower().split()))[0]: year for year, title in pairs}


def test_works_have_the_years_that_the_lessons_give_them() -> None:
    lessons: dict[str, str] = {}
    for path in LESSONS: lessons |= cited(prose(path))
    last = cited(prose(LAST))
    common = last.keys() & lessons.keys()
    assert len(common) > 10
    differing = {title for title in common if last[title] != lessons[title]}
    assert not differing, differing
