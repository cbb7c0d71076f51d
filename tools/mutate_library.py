"""Change the library one place at a time and see whether the fast tests notice.

    python tools/mutate_library.py                        # 300 mutants over the core modules, some hours on one core
    python tools/mutate_library.py --n 40 samplers sde    # fewer, of these modules
    python tools/mutate_library.py --report               # what was found so far, with the survivors' diffs

A mutant changes one comparison, operation, number, order of arguments, condition or result, or takes one check away.
Each is tried on a copy of the checkout: the tests of its module (`TESTS`) run until one fails. Findings go into a file
as they come, so that a stopped run goes on where it was; a mutant is known by its place in the code rather than by its
line, so that findings outlive other changes. Mutants in `tools/equivalent_mutants.json` compute the same as what they
change, for the reason that stands there, and are not counted.
"""

from __future__ import annotations

import argparse
import ast
import copy
import difflib
import hashlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EQUIVALENT = ROOT / "tools" / "equivalent_mutants.json"

# What notices a change first stands first; test files that are named as the module are always among them.
_CONTRACT = ("contract", "recorded")
TESTS = {
    "schedules": ("predictions", "samplers", *_CONTRACT),
    "predictions": ("samplers", *_CONTRACT),
    "solvers": ("samplers", "sde", *_CONTRACT),
    "samplers": ("oracles", *_CONTRACT),
    "matching": ("cond", *_CONTRACT),
    "sde": ("samplers", *_CONTRACT),
    "ddpm": ("samplers", *_CONTRACT),
    "guidance": ("generation", *_CONTRACT),
    "edm": ("samplers", *_CONTRACT),
    "couplings": ("few_step", *_CONTRACT),
    "unet": ("cond", "checkpoints", *_CONTRACT),
    "generation": ("cond", "own_images", *_CONTRACT),
    "evaluation": ("own_images", *_CONTRACT),
    "checkpoints": ("contract", "damaged_files"),
    "distributions": ("predictions", *_CONTRACT),
    "vae": ("latent", *_CONTRACT),
    "latent": ("inpainting", *_CONTRACT),
    "few_step": ("recorded",),
    "inpainting": _CONTRACT,
    "cold": _CONTRACT,
}
ALWAYS = ("reference", "properties")  # tried last, for every module; the first checks documented defaults

_COMPARISONS = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_OPERATIONS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Pow: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.Mod: ast.FloorDiv,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}


@dataclass(frozen=True)
class Mutant:
    """One change of one module."""

    module: str
    where: str  # the function or class, "Denoiser.forward"
    operator: str
    old: str  # the code that is replaced
    new: str
    count: int  # of equal changes in the same place, from 0
    start: int  # offsets in the source
    end: int

    @property
    def key(self) -> str:
        return f"{self.module}.{self.where} [{self.count}]: {self.old} -> {self.new}"

    def applied(self, source: str) -> str:
        return source[: self.start] + self.new + source[self.end :]


# ---- making them ---------------------------------------------------------------------------------


class _Finder(ast.NodeVisitor):
    """Walks a module; types, texts, messages of errors and settings of presets are passed by."""

    def __init__(self, module: str, source: str):
        self.module = module
        self.source = source.encode()
        lines = source.encode().splitlines(keepends=True)
        self.starts = [sum(map(len, lines[:i])) for i in range(len(lines) + 1)]
        self.place: list[str] = []
        self.found: list[Mutant] = []
        self.seen: Counter[tuple[str, str, str]] = Counter()

    def add(self, operator: str, node: ast.AST, new: ast.AST | str) -> None:
        start, end = (
            self.starts[line - 1] + column
            for line, column in (
                (node.lineno, node.col_offset),
                (node.end_lineno, node.end_col_offset),
            )
        )
        old = self.source[start:end].decode()
        text = new if isinstance(new, str) else ast.unparse(new)
        if isinstance(new, ast.expr) and not isinstance(new, (ast.Constant, ast.Call)):
            text = f"({text})"
        if self.place and text not in (old, f"({old})"):
            where = ".".join(self.place)
            which = " ".join(old.split()), " ".join(text.split())
            count = self.seen[where, *which]
            self.seen[where, *which] += 1
            offset, stop = (len(self.source[:k].decode()) for k in (start, end))
            made = Mutant(self.module, where, operator, *which, count, offset, stop)
            self.found.append(Mutant(**{**vars(made), "new": text}))

    def changed(self, operator: str, node: ast.AST, **fields: object) -> None:
        new = copy.copy(node)
        for name, value in fields.items():
            setattr(new, name, value)
        self.add(operator, node, new)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.place.append(node.name)
        for default in (*node.args.defaults, *filter(None, node.args.kw_defaults)):
            self.visit(default)
        for statement in node.body:
            self.visit(statement)
        self.place.pop()

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.place.append(node.name)
        for statement in node.body:
            self.visit(statement)
        self.place.pop()

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_Raise(self, node: ast.Raise) -> None:
        pass

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        pass

    def visit_If(self, node: ast.If) -> None:
        if len(node.body) == 1 and isinstance(node.body[0], ast.Raise) and not node.orelse:
            self.add("removed guard", node.test, "False")
        self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Constant):
            return  # a docstring
        if ast.unparse(node).startswith("expect."):
            self.add("removed guard", node, "pass")
        self.generic_visit(node)

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is None or ast.unparse(node.value) == "None":
            return
        self.changed("return value", node, value=ast.Constant(None))
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        for i, op in enumerate(node.ops):
            ops = [*node.ops[:i], _COMPARISONS[type(op)](), *node.ops[i + 1 :]]
            self.changed("comparison", node, ops=ops)
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        texts = [
            side
            for side in (node.left, node.right)
            if isinstance(side, (ast.JoinedStr, ast.Tuple, ast.List))
        ]
        if type(node.op) in _OPERATIONS and not texts:
            self.changed("arithmetic", node, op=_OPERATIONS[type(node.op)]())
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, (ast.Not, ast.USub)):
            self.add(
                "boolean" if isinstance(node.op, ast.Not) else "arithmetic", node, node.operand
            )
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        self.changed("boolean", node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            self.changed("constant", node, value=not value)
        elif isinstance(value, int):
            self.changed("constant", node, value=value + 1)
        elif isinstance(value, float):
            self.changed("constant", node, value=2 * value or 1.0)

    def visit_Call(self, node: ast.Call) -> None:
        if ast.unparse(node.func) in (
            "option",
            "warnings.warn",
            "field",
            "print",
            "cast",
            "TypeVar",
        ):
            return
        symmetric = ast.unparse(node.func) in ("max", "min")
        if (
            len(node.args) >= 2
            and not symmetric
            and not any(isinstance(a, ast.Starred) for a in node.args[:2])
        ):
            first, second, *others = node.args
            self.changed("argument order", node, args=[second, first, *others])
        self.generic_visit(node)


def mutants(module: str, source: str) -> list[Mutant]:
    """All changes of one module."""
    finder = _Finder(module, source)
    finder.visit(ast.parse(source))
    return finder.found


def sample(modules: Iterable[str], n: int, seed: int) -> list[Mutant]:
    """n mutants in an order that depends on the seed and on each mutant's key alone."""
    found = [m for module in modules for m in mutants(module, source_of(module))]
    return sorted(found, key=lambda m: hashlib.sha256(f"{seed} {m.key}".encode()).hexdigest())[:n]


def source_of(module: str, root: Path = ROOT) -> str:
    return (root / "diffusion_course" / f"{module}.py").read_text(encoding="utf-8")


# ---- trying them ---------------------------------------------------------------------------------


def copied_tree(folder: Path) -> Path:
    """The checkout, with the library and the tests copied and all else linked."""
    for path in ROOT.iterdir():
        if path.name.startswith(".") or path.name in ("build", "runs", "out"):
            continue
        if path.name not in ("diffusion_course", "tests"):
            (folder / path.name).symlink_to(path)
    ignored = shutil.ignore_patterns("__pycache__", "weights")
    for name in ("diffusion_course", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    (folder / "diffusion_course" / "weights").symlink_to(ROOT / "diffusion_course" / "weights")
    return folder


def files_of(module: str) -> list[str]:
    names = (module, *TESTS[module], *ALWAYS)
    return [
        f"tests/test_{name}.py" for name in names if (ROOT / "tests" / f"test_{name}.py").exists()
    ]


def tests_fail(tree: Path, files: list[str], seconds: float) -> tuple[str, str]:
    """ "failed", "passed" or "timeout", and the line that says which test: in a fork, which need not import torch."""
    output = tree / "output.txt"
    child = os.fork()
    if not child:
        os.setsid()
        os.chdir(tree)
        with open(output, "w", encoding="utf-8") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.path.insert(0, str(tree))
        os.environ["PYTHONPATH"] = str(tree)
        import pytest

        options = [
            "-x",
            "-q",
            "-m",
            "not slow and not browser",
            "-p",
            "no:cacheprovider",
            "--no-header",
            "-rN",
        ]
        code = 1
        try:
            code = int(pytest.main([*options, "--tb=line", *files]))
        finally:
            os._exit(code)
    end = time.monotonic() + seconds
    status = None
    while status is None and time.monotonic() < end:
        done, code = os.waitpid(child, os.WNOHANG)
        if done:
            status = os.waitstatus_to_exitcode(code)
        else:
            time.sleep(0.05)
    try:
        os.killpg(child, signal.SIGKILL)  # it, and what it has started
    except ProcessLookupError:
        pass
    if status is None:
        os.waitpid(child, 0)
        return "timeout", ""
    text = output.read_text(encoding="utf-8", errors="replace").splitlines()
    said = [line for line in text if "Error" in line or line.startswith(("FAILED", "ERROR"))]
    return ("passed" if status == 0 else "failed"), (said[0][:200] if said and status else "")


def tried(tree: Path, mutant: Mutant, times: dict[str, float]) -> dict:
    """Whether the tests notice a mutant, by which file, and how long it took."""
    path = tree / "diffusion_course" / f"{mutant.module}.py"
    source = path.read_text(encoding="utf-8")
    limits = {file: limit(tree, file, times) for file in files_of(mutant.module)}
    began = time.monotonic()
    try:
        path.write_text(mutant.applied(source), encoding="utf-8")
        for file in files_of(mutant.module):
            how, said = tests_fail(tree, [file], limits[file])
            if how != "passed":
                break
        else:
            file = said = ""
    finally:
        path.write_text(source, encoding="utf-8")
    found = "survived" if how == "passed" else "killed"
    return dict(
        found=found,
        by=file,
        how=how,
        said=said,
        operator=mutant.operator,
        seconds=round(time.monotonic() - began, 1),
    )


def limit(tree: Path, file: str, times: dict[str, float]) -> float:
    """Seconds that tests may take: several times what they do on the unchanged library, which they must pass."""
    if file not in times:
        began = time.monotonic()
        how, said = tests_fail(tree, [file], 1800)
        times[file] = time.monotonic() - began
        print(f"{file}: {how} in {times[file]:.0f} s {said}", flush=True)
        if how != "passed":
            raise SystemExit(f"{file} does not pass without a mutant: {said}")
    return 30 + 4 * times[file]


def forked(folder: Path, chosen: list[Mutant], out: Path) -> None:
    for package in (
        "torch",
        "numpy",
        "scipy.stats",
        "matplotlib.figure",
        "sklearn.datasets",
        "hypothesis",
        "pytest",
    ):
        __import__(package)
    import torch

    torch.set_num_threads(1)
    tree = copied_tree(folder)
    findings = read(out)
    todo = [m for m in chosen if m.key not in findings]
    times: dict[str, float] = {}
    for mutant in todo:
        findings[mutant.key] = tried(tree, mutant, times)
        write(out, findings)
        print(f"{findings[mutant.key]['found']:9} {mutant.key[:150]}", flush=True)


# ---- telling what was found ----------------------------------------------------------------------


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write(path: Path, findings: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(findings, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path)


def diff(mutant: Mutant) -> Iterator[str]:
    source = source_of(mutant.module)
    before, after = source.splitlines(), mutant.applied(source).splitlines()
    yield from list(
        difflib.unified_diff(before, after, mutant.module, mutant.module, n=2, lineterm="")
    )[2:]


def report(chosen: list[Mutant], findings: dict) -> str:
    equivalent = read(EQUIVALENT)
    rows: defaultdict[str, Counter] = defaultdict(Counter)
    lines = []
    for mutant in chosen:
        if mutant.key not in findings:
            continue
        found = findings[mutant.key]["found"]
        if found == "survived" and mutant.key in equivalent:
            found = "equivalent"
        for row in (mutant.module, "all"):
            rows[row][found] += 1
        if found == "survived":
            lines += [f"\n{mutant.key}", *diff(mutant)]
    lines.append("\n| module | killed | survived | equivalent | rate |\n|---|---|---|---|---|")
    for name in sorted(rows, key=lambda name: (name == "all", name)):
        killed, survived, same = (rows[name][k] for k in ("killed", "survived", "equivalent"))
        rate = killed / max(1, killed + survived)
        lines.append(f"| {name} | {killed} | {survived} | {same} | {rate:.0%} |")
    return "\n".join([*lines, f"{rows['all'].total()} of {len(chosen)} mutants tried"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", help=f"default: all of {', '.join(TESTS)}")
    parser.add_argument("--n", type=int, default=300, help="how many mutants")
    parser.add_argument("--seed", type=int, default=0, help="of the order in which they are taken")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "build" / "mutants.json", help="where findings are kept"
    )
    parser.add_argument("--report", action="store_true", help="try none, tell what was found")
    parser.add_argument("--again", action="store_true", help="try those once more that survived")
    args = parser.parse_args()
    unknown = set(args.modules) - set(TESTS)
    if unknown:
        parser.error(
            f"no tests are known for {', '.join(sorted(unknown))}: expected some of {', '.join(TESTS)}"
        )
    chosen = sample(args.modules or TESTS, args.n, args.seed)
    if args.again:
        write(args.out, {k: v for k, v in read(args.out).items() if v["found"] == "killed"})
    if not args.report:
        with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
            forked(Path(folder), chosen, args.out)
    print(report(chosen, read(args.out)))


if __name__ == "__main__":
    main()
