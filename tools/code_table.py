"""Measure how the code reads, and compare checkouts.

    python tools/code_table.py                         # the table of this checkout
    python tools/code_table.py --repo PATH --list      # of another, with the places that count
    python tools/code_table.py --before PATH --write   # both, into CONTRIBUTING.md, between markers

Everything but the types is read from syntax trees, so that a checkout need not be installed. The
types are what mypy says with the settings of this checkout's pyproject.toml. `--write` without
`--before` keeps the numbers that stand in the column "before". A minute.
"""
from __future__ import annotations

import argparse
import ast
import io
import json
import re
import subprocess
import sys
import tokenize
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- code table -->", "<!-- end of code table -->"
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


# ---- what is read --------------------------------------------------------------------------------

@cache
def _parsed(text: str) -> ast.Module: return ast.parse(text)


@dataclass(frozen=True)
class Source:
    """A text of Python.

    Attributes:
        name: its file, and its cell in a notebook.
        text: the code.
    """

    name: str
    text: str

    @property
    def lines(self) -> list[str]:
        """The lines of the text."""
        return self.text.split("\n")

    @property
    def tree(self) -> ast.Module:
        """Its syntax."""
        return _parsed(self.text)

    @property
    def module(self) -> str:
        """The last part of a module's name."""
        return Path(self.name).stem


@dataclass(frozen=True)
class Repo:
    """A checkout of the course.

    Attributes:
        path: its folder.
    """

    path: Path

    def files(self, *patterns: str) -> list[Source]:
        """The files that match patterns, without the index that nbdev writes for itself."""
        paths = sorted({p for pattern in patterns for p in self.path.glob(pattern)})
        paths = [p for p in paths if p.name != "_modidx.py"]
        name = lambda p: p.relative_to(self.path).as_posix()
        return [Source(name(p), p.read_text(encoding="utf-8")) for p in paths]

    def cells(self, *patterns: str) -> list[Source]:
        """The code cells of notebooks, without lines that only IPython reads."""
        found = []
        for path in sorted(p for pattern in patterns for p in self.path.glob(pattern)):
            for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
                if cell["cell_type"] != "code": continue
                text = re.sub(r"(?m)^\s*[%!].*$", "", "".join(cell["source"]))
                found.append(Source(f"{path.relative_to(self.path).as_posix()} [{cell['id']}]", text))
        return found

    def library(self) -> list[Source]:
        """The modules of lessons and toolbox."""
        return self.files("diffusion_course/*.py")

    def part_one(self) -> list[Source]:
        """The modules of lessons 1 to 11."""
        names = [name for number, name in self.lesson_modules().items() if number <= 11]
        return self.files(*(f"diffusion_course/{name}.py" for name in names))

    def lessons(self) -> list[Source]:
        """The code cells of lessons and toolbox, those that are not exported too."""
        return self.cells("nbs/*.ipynb", "nbs/toolbox/*.ipynb")

    def solutions(self) -> list[Source]:
        """The code cells of the solutions."""
        return self.cells("nbs/solutions/*.ipynb")

    def tests(self) -> list[Source]:
        """The tests."""
        return self.files("tests/*.py")

    def tools(self) -> list[Source]:
        """Tools and benchmarks."""
        return self.files("tools/*.py", "benchmarks/*.py", "setup.py")

    def lesson_modules(self) -> dict[int, str]:
        """The lessons' modules by number."""
        found = {}
        for path in sorted(self.path.glob("nbs/[0-9][0-9]_*.ipynb")):
            export = re.search(r"default_exp (\w+)", path.read_text(encoding="utf-8"))
            if export: found[int(path.name[:2])] = export[1]
        return found


# ---- lines ---------------------------------------------------------------------------------------

def longer_than(limit: int, sources: Iterable[Source]) -> list[str]:
    """The lines with more characters than `limit`, but for the `__all__` that nbdev writes."""
    found = []
    for s in sources:
        generated = _generated_lines(s)
        long = [k for k, line in enumerate(s.lines, 1) if len(line) > limit]
        found += [f"{s.name}:{k}" for k in long if k not in generated]
    return found


def _generated_lines(source: Source) -> set[int]:
    """The lines of an exported module's `__all__`."""
    if "\n# %% auto" not in source.text: return set()
    assignments = [n for n in source.tree.body if isinstance(n, ast.Assign)]
    names = [n for n in assignments if ast.unparse(n.targets[0]) == "__all__"]
    return {k for n in names for k in range(n.lineno, n.end_lineno + 1)}


def written_lines(sources: Iterable[Source]) -> int:
    """How many lines are not blank."""
    return sum(bool(line.strip()) for s in sources for line in s.lines)


def code_lines(sources: Iterable[Source]) -> int:
    """How many lines are neither blank nor a comment."""
    return sum(bool(line.strip()) and line.strip()[0] != "#" for s in sources for line in s.lines)


# ---- statements ----------------------------------------------------------------------------------

def attribute_lines(sources: Iterable[Source]) -> list[str]:
    """Lines that call getattr or hasattr."""
    calls = [(s.name, n) for s in sources for n in ast.walk(s.tree) if isinstance(n, ast.Call)]
    found = {(name, c.lineno) for name, c in calls if ast.unparse(c.func) in ("getattr", "hasattr")}
    return [f"{name}:{line}" for name, line in sorted(found)]


def tuple_assignments(sources: Iterable[Source]) -> list[str]:
    """Assignments with a tuple on both sides: `a, b = x, y`."""
    nodes = [(s.name, n) for s in sources for n in ast.walk(s.tree) if isinstance(n, ast.Assign)]
    is_tuple = lambda node: isinstance(node, ast.Tuple)
    found = [(name, n) for name, n in nodes if is_tuple(n.value) and any(map(is_tuple, n.targets))]
    return [f"{name}:{node.lineno}" for name, node in found]


def _is_guard(node: ast.AST) -> bool:
    """Whether a statement is `if ...: raise ValueError(...)`."""
    if not isinstance(node, ast.If) or not isinstance(node.body[-1], ast.Raise): return False
    return ast.unparse(node.body[-1]).startswith("raise ValueError")


def guards_before(algorithm: str, source: Source) -> list[str]:
    """Lines of statements `if ...: raise ValueError(...)` above the function `algorithm`."""
    nodes = list(ast.walk(source.tree))
    start = next(n.lineno for n in nodes if isinstance(n, FUNCTIONS) and n.name == algorithm)
    guards = [n for n in nodes if _is_guard(n) and n.lineno < start]
    return [f"{source.name}:{k}" for n in guards for k in range(n.lineno, n.end_lineno + 1)]


# ---- parameters ----------------------------------------------------------------------------------

def signature_comments(sources: Iterable[Source]) -> list[str]:
    """Comments on parameters and results: neither help() nor an editor shows them."""
    found = []
    for s in sources:
        tokens = tokenize.generate_tokens(io.StringIO(s.text).readline)
        tokens = [t for t in tokens if t.type == tokenize.COMMENT and not _is_for_tools(t.string)]
        comments = [t.start[0] for t in tokens]
        functions = [n for n in ast.walk(s.tree) if isinstance(n, FUNCTIONS)]
        found += [f"{s.name}:{k}" for k in comments if any(_in_signature(k, n) for n in functions)]
    return found


def _is_for_tools(comment: str) -> bool:
    """Whether a comment speaks to mypy or ruff."""
    return re.match(r"# (type: ignore|noqa)", comment) is not None


def _in_signature(line: int, node: ast.FunctionDef) -> bool:
    """Whether a comment on this line is on a parameter or on the result."""
    parts = [*ast.walk(node.args), *(ast.walk(node.returns) if node.returns else ())]
    end = max((n.end_lineno for n in parts if hasattr(n, "end_lineno")), default=node.lineno)
    return node.lineno <= line <= end < node.body[0].lineno


def explained(docstring: str | None) -> set[str]:
    """The names that stand in the Args and Attributes of a docstring."""
    names: set[str] = set()
    indent = None  # of the names, within a section
    for line in (docstring or "").splitlines():
        depth = len(line) - len(line.lstrip())
        if re.fullmatch(r"\w+:", line): indent = -1 if line in ("Args:", "Attributes:") else None
        elif line.strip() and indent is not None:
            if indent < 0: indent = depth
            entry = re.match(r"(\*{0,2}\w+(, \*{0,2}\w+)*)( \([^)]*\))?:( |$)", line.strip())
            if entry and depth == indent: names |= {name.strip("* ") for name in entry[1].split(",")}
            if depth < indent: indent = None
    return names


def _arguments(node: ast.FunctionDef) -> list[ast.arg]:
    """The parameters of a function but self, cls and private ones."""
    a = node.args
    arguments = [*a.posonlyargs, *a.args, *a.kwonlyargs, *(p for p in (a.vararg, a.kwarg) if p)]
    return [p for p in arguments if p.arg not in ("self", "cls") and not p.arg.startswith("_")]


def _fields(node: ast.ClassDef) -> list[str]:
    """The public fields of a dataclass; of `settings`, those that no `option(default, help)` explains."""
    decorators = {ast.unparse(d).split("(")[0].split(".")[-1] for d in node.decorator_list}
    if not decorators & {"dataclass", "settings"}: return []
    fields = [n for n in node.body if isinstance(n, ast.AnnAssign)]
    fields = [n for n in fields if not ast.unparse(n.annotation).startswith("ClassVar")]
    if "settings" in decorators: fields = [n for n in fields if not _is_option(n.value)]
    names = [ast.unparse(n.target) for n in fields]
    return [name for name in names if not name.startswith("_")]


def _is_option(value: ast.expr | None) -> bool:
    """Whether a field is `option(default, help)`: `settings` lists those in the class's docstring."""
    return isinstance(value, ast.Call) and ast.unparse(value.func) == "option" and len(value.args) > 1


def _public(nodes: Iterable[ast.AST], *kinds: type) -> Iterator:
    named = (n for n in nodes if isinstance(n, kinds) and not n.name.startswith("_"))
    return (n for n in named if "overload" not in map(ast.unparse, n.decorator_list))


def unexplained(sources: Iterable[Source]) -> list[str]:
    """Parameters of public functions, classes and methods that no Args or Attributes explain.

    Those of `__init__`, and the fields of a dataclass, are the class's to explain. A method may
    leave it to its class; in one that has bases, to the method that it replaces.
    """
    found = []
    for s in sources:
        for node in _public(s.tree.body, *FUNCTIONS):
            known = explained(ast.get_docstring(node))
            names = [p.arg for p in _arguments(node)]
            found += [f"{s.module}.{node.name}: {name}" for name in names if name not in known]
        for owner in _public(s.tree.body, ast.ClassDef):
            known = explained(ast.get_docstring(owner))
            methods = [n for n in owner.body if isinstance(n, FUNCTIONS)]
            init = [n for n in methods if n.name == "__init__"]
            names = _fields(owner) + [p.arg for n in init for p in _arguments(n)]
            found += [f"{s.module}.{owner.name}: {name}" for name in names if name not in known]
            for node in methods:
                if node.name.startswith("_") and node.name != "__call__": continue
                if not (docstring := ast.get_docstring(node)) and owner.bases: continue
                names = [p.arg for p in _arguments(node)]
                names = [name for name in names if name not in known | explained(docstring)]
                found += [f"{s.module}.{owner.name}.{node.name}: {name}" for name in names]
    return found


def untyped(sources: Iterable[Source]) -> list[str]:
    """Public functions and methods that lack the type of a parameter or of the result."""
    found = []
    for s in sources:
        functions = [("", n) for n in _public(s.tree.body, *FUNCTIONS)]
        for owner in _public(s.tree.body, ast.ClassDef):
            functions += [(f"{owner.name}.", n) for n in _public(owner.body, *FUNCTIONS)]
        typed = lambda n: n.returns and all(p.annotation for p in _arguments(n))
        found += [f"{s.module}.{prefix}{n.name}" for prefix, n in functions if not typed(n)]
    return found


# ---- modules -------------------------------------------------------------------------------------

# An equation, an operator, an expectation or a norm, a function of its arguments: u(x, t), p(x | y).
MATHEMATICS = re.compile(r"[=∫∇∂∑√→²≤≥]|\bE ?[|\[(]|\|[^|]+\||\b[A-Za-z]\w*\([^)]*\)")
VERBS = "computes draws loads measures reads returns saves shows solves trains writes".split()


def _names(source: Source) -> set[str]:
    """The words in the names of a module's public functions and classes, and their plurals."""
    names = [n.name for n in _public(source.tree.body, *FUNCTIONS, ast.ClassDef)]
    words = {word.lower() for name in names for word in re.findall(r"[A-Z]?[a-z]{2,}", name)}
    return words | {f"{word}s" for word in words}


def opens_with_what_it_computes(source: Source, is_lesson: bool) -> bool:
    """Whether the first sentence of a module's docstring says what the module computes.

    A lesson's holds mathematics. In the toolbox it may instead hold a word from the name of a public
    function or class, or one of `VERBS`.

    Args:
        source: the module.
        is_lesson: whether it is a lesson's.
    """
    docstring = ast.get_docstring(source.tree) or ""
    opening = re.split(r"(?<=[.?!]) ", docstring)[0]
    if MATHEMATICS.search(re.sub(r"`[^`]*`", "", opening)): return True
    words = set(re.findall(r"[a-z]+", opening.lower()))
    return not is_lesson and bool(words & (_names(source) | set(VERBS)))


def vague_modules(repo: Repo) -> list[str]:
    """The modules whose docstring does not open with what they compute."""
    lessons = set(repo.lesson_modules().values())
    modules = [s for s in repo.library() if s.module not in ("__init__", "__main__")]
    return [s.module for s in modules if not opens_with_what_it_computes(s, s.module in lessons)]


def type_errors(repo: Repo, *more: Path) -> list[str]:
    """What mypy says of the package with this checkout's settings: nothing where all is well.

    Args:
        repo: the checkout.
        more: other files to check, which import the package.
    """
    command = [sys.executable, "-m", "mypy", "--config-file", ROOT / "pyproject.toml"]
    command += ["diffusion_course", *more]
    done = subprocess.run(command, cwd=repo.path, capture_output=True, encoding="utf-8")
    errors = [line for line in done.stdout.splitlines() if ": error:" in line]
    if done.returncode and not errors: raise RuntimeError(f"mypy failed: {done.stdout}{done.stderr}")
    return errors


# ---- the table -----------------------------------------------------------------------------------

@dataclass(frozen=True)
class Row:
    """A number, and what it may be at most.

    Attributes:
        name: what is measured.
        limit: the largest number that is right.
        find: the places that count.
        per: divides their number; default: 1.
        unit: of the limit.
    """

    name: str
    limit: float
    find: Callable[[Repo], list[str]]
    per: Callable[[Repo], float] = lambda repo: 1
    unit: str = ""

    def value(self, repo: Repo) -> float:
        """The number in a checkout."""
        return len(self.find(repo)) / self.per(repo)

    def shown(self, value: float) -> str:
        """A number as the table has it."""
        return f"{value:.1f}{self.unit}" if self.unit else f"{value:.0f}"


def _lines(what: str, sources: Callable[[Repo], list[Source]]) -> list[Row]:
    """Lines over 100 characters, as a percentage, and over 120."""
    over = lambda limit: lambda repo: longer_than(limit, sources(repo))
    percent = lambda repo: written_lines(sources(repo)) / 100
    return [
        Row(f"lines over 100 characters, {what}", 6, over(100), percent, " %"),
        Row(f"lines over 120 characters, {what}", 0, over(120)),
    ]


def _tuples(what: str, sources: Callable[[Repo], list[Source]]) -> Row:
    """Assignments with a tuple on both sides per 1,000 lines of code."""
    find = lambda repo: tuple_assignments(sources(repo))
    thousands = lambda repo: code_lines(sources(repo)) / 1000
    return Row(f"`a, b = x, y` per 1,000 lines, {what}", 15, find, thousands)


def _guards(repo: Repo) -> list[str]:
    return guards_before("euler_step", repo.files("diffusion_course/solvers.py")[0])


TYPES = Row("type errors (mypy)", 0, type_errors)
ROWS = [
    Row("lines with getattr or hasattr, library", 15, lambda r: attribute_lines(r.library())),
    _tuples("Part I", Repo.part_one),
    _tuples("library", Repo.library),
    *_lines("library", Repo.library),
    _lines("lessons and toolbox", Repo.lessons)[1],
    *_lines("solutions", Repo.solutions),
    *_lines("tests", Repo.tests),
    *_lines("tools and benchmarks", Repo.tools),
    Row("lines of guards before the first algorithm of `solvers`", 0, _guards),
    TYPES,
    Row("public functions without types", 0, lambda r: untyped(r.library())),
    Row("comments in signatures", 0, lambda r: signature_comments(r.library())),
    Row("public parameters that no docstring explains", 0, lambda r: unexplained(r.library())),
    Row("modules that don't open with what they compute", 0, vague_modules),
]


def table(now: Repo, before: dict[str, str]) -> str:
    """Markdown: what is measured, its limit, before and now.

    Args:
        now: the checkout.
        before: what stands in the column "before", by the name of the row.
    """
    lines = ["| | at most | before | now |", "|---|---|---|---|"]
    for row in ROWS:
        cells = row.name, f"{row.limit:g}{row.unit}", before.get(row.name, ""), row.shown(row.value(now))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def written_before(text: str) -> dict[str, str]:
    """The column "before" of a table in a text."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {cells[0]: cells[2] for cells in rows if len(cells) == 4}


def main(argv: list[str] | None = None) -> None:
    """Print the table; write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repo", type=Path, default=ROOT,
                        help="the checkout to measure (default: this one)")
    parser.add_argument("--before", type=Path, metavar="PATH", help="an older one, to compare with")
    parser.add_argument("--list", action="store_true",
                        help="name the places that count, where they are more than the limit")
    parser.add_argument("--write", action="store_true",
                        help="write the table into its CONTRIBUTING.md")
    args = parser.parse_args(argv)
    repo = Repo(args.repo.resolve())
    page = repo.path / "CONTRIBUTING.md"
    text = page.read_text(encoding="utf-8")
    if args.before:
        old = Repo(args.before.resolve())
        before = {row.name: row.shown(row.value(old)) for row in ROWS}
    else: before = written_before(text)
    new = table(repo, before)
    print(new)
    if args.list:
        for row in ROWS:
            if row.value(repo) > row.limit: print(f"\n{row.name}:", *row.find(repo), sep="\n    ")
    if args.write:
        if BEGIN not in text: raise SystemExit(f"{page} has no {BEGIN}: expected the markers of the table")
        head, rest = text.split(BEGIN)
        page.write_text(f"{head}{BEGIN}\n{new}\n{END}{rest.split(END)[1]}", encoding="utf-8", newline="\n")


if __name__ == "__main__": main()
