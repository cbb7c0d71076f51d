"""Audit the exercises: which wrong answers pass, which get no hint, which right ones are refused.

    python tools/audit_exercises.py                        # every exercise, a table per lesson
    python tools/audit_exercises.py solvers cold.reveal    # these lessons and exercises
    python tools/audit_exercises.py --most 40 --show generic

Each reference is changed in its syntax tree: a sign, a factor, an axis, a bound; every change is
judged as a learner's function is. Functions that no reading of the reference would give (None, NaN,
endless loops, inputs changed in place) are tried too, and rewritings that must pass: a + b for
b + a, single precision, numpy. A mutant that is accepted counts as equivalent only if it agrees
with the reference to ten digits, on the exercise's own trials and on changed ones; otherwise it
escaped. Some minutes on one core.
"""

from __future__ import annotations

import argparse
import ast
import copy
import inspect
import io
import itertools
import linecache
import math
import random
import signal
import sys
import textwrap
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from diffusion_course import checking
from diffusion_course.checking import LESSONS, Exercise, Report, check, exercises

SECONDS = 1.0  # a mutant that takes longer is stopped
HINTS = ("mistake", "diagnosis", "explained", "signature", "in place", "random", "nothing")


# ---- changes of a syntax tree --------------------------------------------------------------------

Edit = tuple[str, ast.AST]  # what is changed, and what stands there instead


@dataclass(frozen=True)
class Variant:
    """A function to be judged.

    Attributes:
        name: of its exercise.
        change: what was done to the reference.
        line: the changed line of the source.
        function: the result.
        seconds: after which it is stopped.
    """

    name: str
    change: str
    line: str
    function: Callable
    seconds: float = SECONDS


OPERATORS: dict[type, tuple[type, ...]] = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div,),
    ast.Div: (ast.Mult,),
    ast.FloorDiv: (ast.Div,),
    ast.Mod: (ast.FloorDiv,),
    ast.Pow: (ast.Mult,),
}
COMPARISONS: dict[type, tuple[type, ...]] = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.GtE),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.LtE),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
}
OTHERS = {
    "sin": "cos",
    "cos": "sin",
    "min": "max",
    "max": "min",
    "amin": "amax",
    "amax": "amin",
    "sum": "mean",
    "mean": "sum",
    "cumsum": "cumprod",
    "cumprod": "cumsum",
    "prod": "sum",
    "var": "std",
    "std": "var",
    "argmin": "argmax",
    "argmax": "argmin",
    "round": "floor",
    "floor": "ceil",
    "ceil": "floor",
    "exp": "expm1",
    "log": "log1p",
    "log1p": "log",
    "log2": "log",
    "log10": "log",
    "zeros_like": "ones_like",
    "minimum": "maximum",
    "maximum": "minimum",
    "softmax": "sigmoid",
    "any": "all",
    "all": "any",
}
DROPPED = {
    "sqrt",
    "square",
    "abs",
    "exp",
    "log",
    "clamp",
    "round",
    "flip",
    "sort",
    "cumsum",
    "cumprod",
    "unsqueeze",
    "reshape",
    "view",
    "transpose",
    "flatten",
    "movedim",
    "permute",
    "squeeze",
    "sum",
    "mean",
    "tanh",
    "cos",
    "sin",
    "mT",
    "T",
    "detach",
    "expand",
    "nan_to_num",
    "long",
    "softmax",
    "logsumexp",
    "min",
    "max",
}


def _call(f: ast.AST) -> str | None:
    "The name of what is called."
    if isinstance(f, ast.Attribute):
        return f.attr
    return f.id if isinstance(f, ast.Name) else None


def _of_operation(node: ast.BinOp) -> Iterator[Edit]:
    sign = ast.unparse(ast.BinOp(ast.Name("_"), node.op, ast.Name("_"))).replace("_", "").strip()
    for other in OPERATORS.get(type(node.op), ()):
        if isinstance(node.op, ast.Pow):
            continue
        yield f"another operator than {sign}", ast.BinOp(node.left, other(), node.right)
    if isinstance(node.op, (ast.Add, ast.Sub, ast.Mult, ast.Div)):
        yield f"dropped what follows {sign}", node.left
        right: ast.AST = node.right
        if isinstance(node.op, ast.Sub):
            right = ast.UnaryOp(ast.USub(), node.right)
        if isinstance(node.op, ast.Div):
            right = ast.BinOp(ast.Constant(1), ast.Div(), node.right)
        yield f"dropped what stands before {sign}", right
    if isinstance(node.op, (ast.Sub, ast.Div, ast.MatMult, ast.Pow)):
        yield f"swapped the sides of {sign}", ast.BinOp(node.right, node.op, node.left)
    if isinstance(node.op, ast.Pow):
        yield "dropped an exponent", node.left


def _of_constant(node: ast.Constant) -> Iterator[Edit]:
    value = node.value
    if isinstance(value, bool):
        yield f"{not value} for {value}", ast.Constant(not value)
    elif isinstance(value, int):
        yield f"{value + 1} for {value}", ast.Constant(value + 1)
        if value > 0:
            yield f"{value - 1} for {value}", ast.Constant(value - 1)
    elif isinstance(value, float) and abs(value) > 1e-6:
        for other in (2 * value, value + 0.1):
            yield f"{other:g} for {value:g}", ast.Constant(other)


def _of_call(node: ast.Call) -> Iterator[Edit]:
    name = _call(node.func)
    if name is None:
        return
    method = isinstance(node.func, ast.Attribute) and not (
        isinstance(node.func.value, ast.Name) and node.func.value.id in ("torch", "math", "F")
    )
    if name in OTHERS:
        func = copy.deepcopy(node.func)
        if isinstance(func, ast.Attribute):
            func.attr = OTHERS[name]
        elif isinstance(func, ast.Name):
            func.id = OTHERS[name]
        yield f"{OTHERS[name]} for {name}", ast.Call(func, node.args, node.keywords)
    if name in DROPPED:
        inner = node.func.value if method and isinstance(node.func, ast.Attribute) else next(iter(node.args), None)
        if inner is not None and not isinstance(inner, ast.Starred):
            yield f"dropped {name}", inner
    if name == "range" and len(node.args) == 1:
        end = node.args[0]
        for text, args in (
            ("range one shorter", [ast.BinOp(end, ast.Sub(), ast.Constant(1))]),
            ("range one longer", [ast.BinOp(end, ast.Add(), ast.Constant(1))]),
            ("range from 1", [ast.Constant(1), end]),
        ):
            yield text, ast.Call(node.func, args, [])
    elif len(node.args) >= 2:
        for i in range(len(node.args) - 1):
            args = list(node.args)
            args[i], args[i + 1] = args[i + 1], args[i]
            yield f"swapped two arguments of {name}", ast.Call(node.func, args, node.keywords)
    for k, word in enumerate(node.keywords):
        if word.arg in ("dim", "keepdim", "min", "max", "unbiased", "correction", "minlength"):
            yield f"dropped {word.arg}=", ast.Call(node.func, node.args, node.keywords[:k] + node.keywords[k + 1 :])


def _of_subscript(node: ast.Subscript) -> Iterator[Edit]:
    index = node.slice
    if isinstance(index, ast.Slice):
        yield "dropped a slice", node.value
    if isinstance(index, ast.Tuple):
        for k, part in enumerate(index.elts):
            if isinstance(part, ast.Constant) and part.value is None:
                rest = index.elts[:k] + index.elts[k + 1 :]
                yield "dropped an axis", ast.Subscript(node.value, ast.Tuple(rest, ast.Load()), ast.Load())
        if any(isinstance(p, ast.Constant) and p.value is None for p in index.elts):
            yield "dropped all axes", node.value


def edits(node: ast.AST, names: list[list[str]], local: list[str]) -> Iterator[Edit]:
    """What may be wrong at a place of a syntax tree.

    Args:
        node: the place.
        names: the parameters of the function, those of one type together.
        local: the names it gives values to.
    """
    if isinstance(node, ast.BinOp):
        yield from _of_operation(node)
    if isinstance(node, ast.Constant):
        yield from _of_constant(node)
    if isinstance(node, ast.Call):
        yield from _of_call(node)
    if isinstance(node, ast.Subscript):
        yield from _of_subscript(node)
    if isinstance(node, ast.UnaryOp):
        if isinstance(node.op, ast.UAdd):
            return
        yield "dropped " + {ast.USub: "a minus", ast.Not: "a not", ast.Invert: "a ~"}[type(node.op)], node.operand
    if isinstance(node, ast.Compare):
        for other in COMPARISONS.get(type(node.ops[0]), ()):
            yield "another comparison", ast.Compare(node.left, [other(), *node.ops[1:]], node.comparators)
    if isinstance(node, ast.BoolOp):
        yield (
            "and for or, or the other way round",
            ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values),
        )
    if isinstance(node, ast.IfExp):
        yield "always the first of two", node.body
        yield "always the second of two", node.orelse
    if isinstance(node, ast.If):
        for value in (True, False):
            yield f"if {value}", ast.If(ast.Constant(value), node.body, node.orelse)
    if isinstance(node, ast.AugAssign):
        for op in OPERATORS.get(type(node.op), ()):
            yield "another operator", ast.AugAssign(node.target, op(), node.value)
        yield "dropped a statement", ast.Pass()
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
        alike = next((group for group in names if node.id in group), [])
        if len(alike) > 1:
            other = alike[(alike.index(node.id) + 1) % len(alike)]
            yield f"{other} for {node.id}", ast.Name(other, ast.Load())
    if isinstance(node, ast.Return) and node.value is not None:
        for name in (*local, *itertools.chain(*names)):
            if ast.unparse(node.value) != name:
                yield f"returned {name}", ast.Return(ast.Name(name, ast.Load()))


def rewritings(node: ast.AST) -> Iterator[Edit]:
    """Other ways to write what stands at a place of a syntax tree.

    Args:
        node: the place.
    """
    if isinstance(node, ast.BinOp):
        left, right = node.left, node.right
        if isinstance(node.op, (ast.Add, ast.Mult)):
            yield "swapped the sides of + or *", ast.BinOp(right, node.op, left)
        if isinstance(node.op, ast.Sub):
            yield "x + (-y)", ast.BinOp(left, ast.Add(), ast.UnaryOp(ast.USub(), right))
        if isinstance(node.op, ast.Div):
            yield "x * (1 / y)", ast.BinOp(left, ast.Mult(), ast.BinOp(ast.Constant(1), ast.Div(), right))
        if isinstance(node.op, ast.Pow) and isinstance(right, ast.Constant) and right.value == 2:
            yield "x * x", ast.BinOp(left, ast.Mult(), left)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        inner = node.args[0] if node.args else node.func.value
        if node.func.attr == "sqrt":
            yield "x ** 0.5", ast.BinOp(inner, ast.Pow(), ast.Constant(0.5))
        if node.func.attr == "square":
            yield "x * x", ast.BinOp(inner, ast.Mult(), inner)


# ---- functions made from them --------------------------------------------------------------------

_COUNT = itertools.count()


def _places(tree: ast.AST) -> list[tuple[ast.AST, str, int | None, ast.AST]]:
    "Every place of a syntax tree: what holds it, in which field, at which index, and what stands there."
    found: list[tuple[ast.AST, str, int | None, ast.AST]] = []
    for parent in ast.walk(tree):
        for field, value in ast.iter_fields(parent):
            if isinstance(parent, ast.FunctionDef) and field != "body":
                continue
            if isinstance(value, ast.AST):
                found.append((parent, field, None, value))
            if isinstance(value, list):
                found += [(parent, field, k, v) for k, v in enumerate(value) if isinstance(v, ast.AST)]
    return [p for p in found if not isinstance(p[3], (ast.expr_context, ast.operator, ast.cmpop))]


def _source(e: Exercise) -> str:
    return textwrap.dedent(inspect.getsource(e.reference))


def _made(tree: ast.Module, e: Exercise) -> Callable | None:
    "The function of a syntax tree, where it can be compiled; its lines can be shown in errors."
    text = ast.unparse(ast.fix_missing_locations(tree))
    path = f"<mutant {next(_COUNT)}>"
    try:
        with warnings.catch_warnings(action="ignore"):
            code = compile(text, path, "exec")
    except (SyntaxError, ValueError):
        return None
    linecache.cache[path] = (len(text), None, text.splitlines(True), path)
    space = dict(inspect.unwrap(e.reference).__globals__)
    exec(code, space)
    return space[e.reference.__name__]


def changed(
    name: str, e: Exercise, find: Callable[[ast.AST], Iterable[Edit]], most: int | None = None, seed: int = 0
) -> list[Variant]:
    """The reference with one change, for every place and every change.

    Args:
        name: of the exercise.
        e: the exercise.
        find: the changes at a place.
        most: the number of variants at most, drawn at random where there are more.
        seed: of the drawing.
    """
    source = _source(e)
    lines = source.splitlines()
    tree = ast.parse(source)
    nodes = [place[3] for place in _places(tree)]
    which = [
        (k, j)
        for k, node in enumerate(nodes)
        for j, _ in enumerate(find(node))
        if not (isinstance(node, ast.Constant) and isinstance(node.value, str))
    ]
    if most is not None and len(which) > most:
        which = sorted(random.Random(f"{seed} {name}").sample(which, most))
    found = []
    for k, j in which:
        other = ast.parse(source)
        parent, field, index, place = _places(other)[k]
        change, new = list(find(place))[j]
        if index is None:
            setattr(parent, field, new)
        else:
            getattr(parent, field)[index] = new
        f = _made(other, e)
        if f is not None:
            found.append(Variant(name, change, lines[getattr(nodes[k], "lineno", 1) - 1].strip(), f))
    return found


def mutants(name: str, e: Exercise, most: int | None = None, seed: int = 0) -> list[Variant]:
    """Mutants of a reference.

    Args:
        name: of the exercise.
        e: the exercise.
        most: the number of them at most.
        seed: of the drawing.
    """
    tree = ast.parse(_source(e))
    stored = [n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    kinds: dict[type, list[str]] = {}
    for parameter, value in zip(inspect.signature(e.reference).parameters, e.cases()[0], strict=False):
        kinds.setdefault(type(value), []).append(parameter)
    names = list(kinds.values())
    local = list(dict.fromkeys(stored))
    return changed(name, e, partial(edits, names=names, local=local), most, seed)


def _mapped(value: Any, f: Callable[[Tensor], Any]) -> Any:
    "f of every tensor of an answer; numbers become tensors."
    if isinstance(value, (tuple, list)) and any(isinstance(v, Tensor) for v in value):
        return type(value)(_mapped(v, f) for v in value)
    if isinstance(value, tuple):
        return tuple(_mapped(v, f) for v in value)
    return f(torch.as_tensor(value))


def hostile(name: str, e: Exercise) -> list[Variant]:
    """Functions that are wrong in ways that no change of the reference gives.

    Args:
        name: of the exercise.
        e: the exercise.
    """
    answer = e.reference
    first = e.reference(*e.cases()[0])

    def nothing(*args: Any) -> None:
        answer(*args)

    def endless(*args: Any) -> None:
        while True:
            pass

    def in_place(*args: Any) -> Any:
        out = answer(*args)
        for a in args:
            if isinstance(a, Tensor) and a.is_floating_point() and not a.requires_grad:
                a.add_(1)
        return out

    def raises(*args: Any) -> Any:
        print("so far so good")
        raise KeyError("x")

    wrong: dict[str, Callable] = {
        "returns None": nothing,
        "never ends": endless,
        "raises": raises,
        "one parameter too many": eval(f"lambda {', '.join(f'a{k}' for k in range(len(e.cases()[0]) + 1))}: 0"),
        "another axis": lambda *a: _mapped(answer(*a), lambda t: t[None]),
        "zeros": lambda *a: _mapped(answer(*a), torch.zeros_like),
        "always the first answer": lambda *a: first,
        "nan": lambda *a: _mapped(answer(*a), lambda t: t * math.nan),
        "nan in one place": lambda *a: _mapped(answer(*a), _holed),
        "random": lambda *a: _mapped(answer(*a), lambda t: t + 0.1 * torch.randn(t.shape)),
        "text": lambda *a: str(answer(*a)),
        "twice the answer": lambda *a: (answer(*a), answer(*a)),
        "complex": lambda *a: _mapped(answer(*a), lambda t: t + 0.1j),
    }
    if any(isinstance(a, Tensor) and a.is_floating_point() for a in e.cases()[0]):
        wrong["in place"] = in_place
    if isinstance(first, Tensor) and first.dtype in (torch.bool, torch.uint8):
        wrong["another dtype"] = lambda *a: answer(*a).double()
    for text, limit in (
        ("only its size", torch.abs),
        ("at least 0", partial(torch.clamp, min=0)),
        ("within [-1, 1]", partial(torch.clamp, min=-1, max=1)),
    ):
        if _float_answer(first):
            wrong[f"answer {text}"] = lambda *a, g=limit: _mapped(answer(*a), g)
        for i, value in enumerate(e.cases()[0]):
            if not _is_float(value):
                continue
            parameter = list(inspect.signature(e.reference).parameters)[i]
            wrong[f"{parameter} {text}"] = lambda *a, i=i, g=limit: answer(*a[:i], _kept(a[i], g), *a[i + 1 :])
    return [Variant(name, change, "", f, 0.1 if f is endless else SECONDS) for change, f in wrong.items()]


def _is_float(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, Tensor) and value.is_floating_point())


def _float_answer(value: Any) -> bool:
    return all(map(_float_answer, value)) if isinstance(value, tuple) else _is_float(value)


def _kept(value: Any, limit: Callable[[Tensor], Tensor]) -> Any:
    "A number or tensor after a limit, of the type it had."
    return limit(value) if isinstance(value, Tensor) else float(limit(torch.tensor(value, dtype=torch.float64)))


def _holed(t: Tensor) -> Tensor:
    out = t.double().clone()
    out.view(-1)[-1] = math.nan
    return out


def _single(e: Exercise, back: bool) -> Callable:
    "The reference in single precision."

    def narrow(a: Any) -> Any:
        return a.float() if isinstance(a, Tensor) and a.dtype == torch.float64 else a

    def single(*args: Any) -> Any:
        out = e.reference(*map(narrow, args))
        return _mapped(out, lambda t: t.double() if t.dtype == torch.float32 else t) if back else out

    return single


def correct(name: str, e: Exercise, most: int | None = None, seed: int = 0) -> list[Variant]:
    """Variants that must pass: rewritings that agree with the reference to ten digits, and other guises.

    Args:
        name: of the exercise.
        e: the exercise.
        most: the number of rewritings at most.
        seed: of the drawing.
    """
    found = [v for v in changed(name, e, rewritings, most, seed) if agrees(v.function, e)]
    right: dict[str, Callable] = {
        "any arguments": lambda *a: e.reference(*a),
        "partial": partial(e.reference),
        "numpy": lambda *a: _mapped(e.reference(*a), lambda t: t.detach().numpy()),
        "sparse": lambda *a: _mapped(e.reference(*a), lambda t: t.detach().to_sparse() if t.ndim else t),
        "lists": lambda *a: _mapped(e.reference(*a), lambda t: t.tolist() if t.is_floating_point() else t),
        "tensors for numbers": lambda *a: _mapped(e.reference(*a), lambda t: t),
    }
    for change, f in (
        ("no gradients", torch.no_grad()(e.reference)),
        ("single precision", _single(e, False)),
        ("single precision and back", _single(e, True)),
    ):
        try:
            f(*e.cases()[0])
        except Exception:
            continue  # it needs gradients, or its arguments keep to double precision
        right[change] = f
    return found + [Variant(name, change, "", f) for change, f in right.items()]


# ---- judging -------------------------------------------------------------------------------------


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in what takes longer.

    Args:
        seconds: of computing, so that a busy machine changes nothing.
    """

    def stop(*_: object) -> None:
        raise TimeoutError("took too long")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds, 0.5)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def judged(v: Variant) -> Report:
    """What `check` says of a variant.

    Args:
        v: the variant.
    """
    checking._STRICT = True  # a diagnosis that fails is a fault
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        try:
            with limited(v.seconds):
                return check(v.name, v.function)
        except TimeoutError:
            return Report(v.name, "not yet", "took too long", "error")


def _close(a: Any, b: Any) -> bool:
    "To ten digits, in values, shapes and number."
    if isinstance(a, (tuple, list)) or isinstance(b, (tuple, list)):
        return type(a) is type(b) and len(a) == len(b) and all(map(_close, a, b))
    try:
        p, q = torch.as_tensor(a).detach(), torch.as_tensor(b).detach()
    except (TypeError, ValueError, RuntimeError):
        return a == b
    if p.shape != q.shape:
        return False
    if p.is_complex() or q.is_complex():
        return torch.allclose(p + 0j, q + 0j, rtol=1e-10, atol=1e-12)
    return torch.allclose(p.double(), q.double(), rtol=1e-10, atol=1e-12, equal_nan=True)


def _fresh(value: Any, how: random.Random) -> Any:
    "Other numbers of the kind: in [0, 1] where they were, of their sign, in their order."
    if isinstance(value, float):
        power = how.uniform(0.5, 2)
        if value == 1:
            return how.uniform(0.6, 0.95)
        return value**power if 0 <= value < 1 else value * how.uniform(0.6, 1.6)
    if not isinstance(value, Tensor) or not value.is_floating_point() or not value.numel():
        return value
    if bool(((value >= 0) & (value <= 1)).all()):
        return value ** how.uniform(0.5, 2)
    noise = torch.rand(
        value.shape, generator=torch.Generator().manual_seed(how.randrange(10**6)), dtype=value.dtype
    )
    return value * (0.5 + noise if bool((value < 0).any()) else how.uniform(0.6, 1.6))


def _shorter(case: tuple) -> tuple:
    "The trial without its last sample."
    sizes = [len(a) for a in case if isinstance(a, Tensor) and a.ndim]
    n = max(Counter(sizes), key=sizes.count) if sizes else 0
    if n < 3:
        return case
    return tuple(a[:-1] if isinstance(a, Tensor) and a.ndim and len(a) == n else a for a in case)


def agrees(f: Callable, e: Exercise) -> bool:
    """Whether a function equals the reference to ten digits, on its trials and on eight changes of each.

    Args:
        f: the function.
        e: the exercise.
    """
    how = random.Random(0)
    for k, case in enumerate(e.cases()):
        tries = [lambda k=k: e.cases()[k]]
        seeds = [how.randrange(10**9) for _ in range(7)]
        tries += [
            lambda k=k, s=s: tuple(_fresh(a, r) for r in [random.Random(s)] for a in e.cases()[k]) for s in seeds
        ]
        if any(isinstance(a, Tensor) for a in case):
            tries.append(lambda k=k: _shorter(e.cases()[k]))
        for make in tries:
            with redirect_stdout(io.StringIO()):
                try:
                    right = e.reference(*make())
                except Exception:
                    continue  # no valid input
                try:
                    with limited(SECONDS):
                        own = f(*make())
                except Exception:
                    return False
            if not _close(own, right):
                return False
    return True


# Changes that no valid input shows: the exercise, a part of the name of the change or of the line, and why
HARMLESS = (
    ("distributions.mixture_sample", ".clamp(max=", "weights that sum to 1 need no clamp"),
    ("sde.settled_variance", "answer", "a variance is positive"),
    ("evaluation.guess_divergence", "(vJ * v)", "v holds signs: to multiply is to divide"),
    ("evaluation.guess_divergence", "v within", "v holds signs"),
    ("evaluation.copy_ratio", "data within", "images lie in [-1, 1]"),
)


def harmless(v: Variant) -> bool:
    """Whether a change shows on no valid input, though it does on some that the audit makes up.

    Args:
        v: the variant.
    """
    return any(v.name == name and (part in v.change or part in v.line) for name, part, _ in HARMLESS)


@dataclass
class Audit:
    """What was found for one exercise.

    Attributes:
        name: of the exercise.
        reports: each mutant that is no equivalent of the reference, with what was said to it.
        equivalent: how many mutants are.
        refused: right variants that were refused, with what was said.
        right: how many right variants there are.
    """

    name: str
    reports: list[tuple[Variant, Report]]
    equivalent: int
    refused: list[tuple[Variant, Report]]
    right: int

    @property
    def escapes(self) -> list[Variant]:
        """Wrong variants that passed."""
        return [v for v, r in self.reports if r]

    def share(self, *causes: str) -> int:
        """How many refusals have one of these causes.

        Args:
            *causes: of `Report.cause`.
        """
        return sum(r.cause in causes for _, r in self.reports if not r)


def audit(name: str, e: Exercise, most: int, seed: int = 0, others: int | None = None) -> Audit:
    """Judge the mutants of an exercise, other wrong functions, and its right variants.

    Args:
        name: of the exercise.
        e: the exercise.
        most: the number of mutants at most, drawn at random where there are more.
        seed: of the drawing.
        others: the number of other wrong functions at most.
    """
    wrong = hostile(name, e)
    if others is not None:
        wrong = random.Random(f"{seed} {name}").sample(wrong, min(others, len(wrong)))
    found = Audit(name, [], 0, [], 0)
    for v in mutants(name, e, most, seed) + wrong:
        report = judged(v)
        if (report or report.status == "not attempted") and (harmless(v) or agrees(v.function, e)):
            found.equivalent += 1
        else:
            found.reports.append((v, report))
    right = correct(name, e, most, seed)
    found.right = len(right)
    found.refused = [(v, r) for v in right if not (r := judged(v))]
    return found


# ---- showing -------------------------------------------------------------------------------------

HEAD = (
    "| lesson | wrong | equivalent | refused % | hint % | of mutants % | own mistake % | diagnosis % | generic % "
    "| error % | right | right refused |"
)


def row(name: str, audits: list[Audit]) -> str:
    """A line of the table: what is refused of all wrong functions; of the refused, what gets a hint, also of the
    mutants alone, without the functions that `hostile` adds; where hints come from.

    Args:
        name: of the lesson.
        audits: of its exercises.
    """
    total = sum(len(a.reports) for a in audits)
    refused = total - sum(len(a.escapes) for a in audits)
    percent = lambda n, of: f"{100 * n / max(of, 1):.1f}"
    shares = [
        sum(a.share(*causes) for a in audits)
        for causes in (HINTS, ("mistake",), tuple(h for h in HINTS if h != "mistake"), ("difference",), ("error",))
    ]
    told = [r.cause in HINTS for a in audits for v, r in a.reports if v.line and not r]
    cells = [
        name,
        total,
        sum(a.equivalent for a in audits),
        percent(refused, total),
        percent(shares[0], refused),
        percent(sum(told), len(told)),
        *(percent(n, refused) for n in shares[1:]),
        sum(a.right for a in audits),
        sum(len(a.refused) for a in audits),
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def shown(audits: list[Audit], kinds: list[str]) -> Iterator[str]:
    """The escapes, the right variants that were refused, and what else is asked for.

    Args:
        audits: of the exercises.
        kinds: causes to list.
    """
    for a in audits:
        for v in a.escapes:
            yield f"ESCAPED {v.name}: {v.change}, in `{v.line}`"
        for v, r in a.refused:
            yield f"REFUSED {v.name}: {v.change}, in `{v.line}`: {r.message}"
        for v, r in a.reports:
            if not r and r.cause in kinds:
                yield f"{r.cause} {v.name}: {v.change}, in `{v.line}`: {r.message}"


def main() -> None:
    """Audit what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="lessons or exercises; all if none are given")
    parser.add_argument("--most", type=int, default=60, help="mutants of one exercise at most (default 60)")
    parser.add_argument("--seed", type=int, default=0, help="of the drawing of mutants (default 0)")
    parser.add_argument(
        "--show",
        nargs="*",
        default=[],
        help="also list refusals of these causes: mistake diagnosis explained difference error ...",
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    names = given.names or list(LESSONS)
    everything: list[Audit] = []
    print(HEAD + "\n" + "|---" * HEAD.count(" | ") + "|---|", flush=True)
    for lesson in LESSONS:
        wanted = [(n, e) for n, e in exercises() if n.startswith(f"{lesson}.") and (lesson in names or n in names)]
        audits = [audit(n, e, given.most, given.seed) for n, e in wanted]
        if audits:
            print(row(lesson, audits), flush=True)
        everything += audits
    print(row("all", everything))
    for line in shown(everything, given.show):
        print(line)
    sys.exit(any(a.refused for a in everything))


if __name__ == "__main__":
    main()
