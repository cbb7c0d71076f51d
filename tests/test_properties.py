"""What every public function answers to arguments that are unusual or wrong.

`valid.py` has right arguments for each; here one of them is changed at a time, in every way below. The answer must be
right, or a `ValueError` that says what is expected; never NaN out of numbers, never an error of torch's or Python's.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import valid
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from traitlets import TraitError
from valid import CALLS

import diffusion_course as dc

LIBRARY = str(Path(dc.__file__).parent)


@pytest.fixture(autouse=True, scope="module")
def scratch(tmp_path_factory) -> Iterator[None]:
    valid.SCRATCH[:] = [str(tmp_path_factory.mktemp("valid"))]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with contextlib.chdir(valid.SCRATCH[0]):
        yield
    torch.set_num_threads(threads)


# ---- the ways in which an argument is changed ------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """Another value for an argument, and what may come of it."""

    name: str
    value: Any
    same: float | None = (
        None  # the answer must be as before, to this tolerance, unless it is refused
    )
    wrong: bool = False  # it must be refused, or give NaN or infinity, as arithmetic has it
    absurd: bool = False  # TypeError will do
    like: Any = None  # the answer must be that for this value


def _strided(x: Tensor) -> Tensor:
    return torch.stack([x, x], -1)[..., 0]


def _of_tensor(x: Tensor) -> Iterator[Change]:
    if x.is_floating_point():
        yield Change("strided", _strided(x), same=1e-5)
        yield Change("transposed", x.mT.contiguous().mT if x.ndim > 1 else _strided(x), same=1e-5)
        yield Change("requires grad", x.clone().requires_grad_(), same=1e-5)
        yield Change("double", x.double(), same=1e-3)
        yield Change("half", x.half(), same=0.1)
        yield Change("bfloat16", x.bfloat16(), same=0.3)
        yield Change("numpy", x.numpy().copy(), same=1e-3)
        yield Change("list", x.tolist(), same=1e-3)
        yield Change("whole", x.round().long(), same=1e-3, like=x.round())
        yield Change("bool", x > 0)
        yield Change("complex", x.to(torch.complex64), wrong=True)
        for bad in (math.nan, math.inf, -math.inf):
            y = x.clone()
            if y.numel():
                y.view(-1)[-1] = bad
            yield Change(f"with {bad}", y, wrong=True)
        for factor in (0.0, -1.0, 1e3, 1e-30, 1e15):
            yield Change(f"times {factor}", x * factor)
    else:
        yield Change("int32", x.to(torch.int32), same=1e-5)
        yield Change("as floats", x.float(), same=1e-5)
        yield Change("numpy", x.numpy().copy(), same=1e-5)
        yield Change("list", x.tolist(), same=1e-5)
        if x.dtype == torch.int64:
            yield Change("halves", x + 0.5, wrong=True)
            yield Change("negative", x - 10)
            yield Change("large", x + 1000)
            yield Change("with nan", torch.where(x == x.max(), math.nan, x.float()), wrong=True)
            yield Change("complex", x.to(torch.complex64), wrong=True)
    yield Change("empty", x[:0])
    yield Change("one", x[:1])
    yield Change("more", torch.cat([x, x]))
    yield Change("one number", x.flatten()[0] if x.numel() else x)
    yield Change("another dimension", x[None])
    if x.ndim > 1:
        yield Change("a dimension less", x[0])
        yield Change("cut", x[..., :1])
        yield Change("longer", torch.cat([x, x], -1))
        yield Change("expanded", x[:1].expand_as(x))
    yield from _absurd()


def _absurd() -> Iterator[Change]:
    for value in (None, "text", {}, object()):
        yield Change(f"{value!r:.8}", value, absurd=True)


def _of_float(x: float) -> Iterator[Change]:
    for bad in (math.nan, math.inf, -math.inf):
        yield Change(str(bad), bad)
    for value in (0.0, 1.0, -1.0, 0.5, 1e-30, 1 - 1e-12, 1 + 1e-9, 2.0, 1e3, 1e30, -1e30):
        yield Change(f"{value!r}", value)
    yield Change("NumPy's", np.float64(x), same=1e-6)
    yield Change("a tensor", torch.tensor(x, dtype=torch.float64), same=1e-6)
    yield Change("two", torch.tensor([x, x]))
    yield Change("a list", [x, x], absurd=True)
    yield Change("a complex number", complex(x, 1), absurd=True)
    yield from _absurd()


def _of_int(x: int) -> Iterator[Change]:
    for value in (0, 1, 2, -1, -(2**40), 2**70):
        yield Change(f"{value}", value)
    for value in (1.5, math.nan, math.inf):
        yield Change(f"{value}", value)
    yield Change("as float", float(x), same=1e-6)
    yield Change("NumPy's", np.int64(x), same=1e-6)
    yield Change("a tensor", torch.tensor(x), same=1e-6)
    yield Change("a list", [x], absurd=True)
    yield from _absurd()


def _of_sequence(x: tuple | list) -> Iterator[Change]:
    yield Change(
        "as list" if isinstance(x, tuple) else "as tuple",
        list(x) if isinstance(x, tuple) else tuple(x),
        same=1e-6,
    )
    yield Change("empty", ())
    yield Change("shorter", x[:-1])
    yield Change("longer", (*x, *x))
    yield Change("reversed", x[::-1])
    if x and isinstance(x[0], (int, float)):
        for value in (0, -1, math.nan, math.inf, 1e30, "a", None):
            yield Change(f"first {value}", (value, *x[1:]), absurd=True)
    yield Change("a number", 3, absurd=True)
    yield from _absurd()


def changes(value: Any) -> Iterator[Change]:
    """Other values, by the type of a right one."""
    if isinstance(value, Tensor):
        yield from _of_tensor(value)
    elif isinstance(value, bool):
        yield from _absurd()
    elif isinstance(value, int):
        yield from _of_int(value)
    elif isinstance(value, float):
        yield from _of_float(value)
    elif isinstance(value, str):
        for text in ("", "nonsense", "ä\n", "-" * 300):
            yield Change(f"{text:.9}", text)
        for other in (None, 3, 0.5):
            yield Change(repr(other), other, absurd=True)
    elif isinstance(value, (tuple, list)):
        yield from _of_sequence(value)
    elif isinstance(value, np.ndarray):
        for change in _of_tensor(torch.as_tensor(value)):
            if (
                isinstance(change.value, Tensor)
                and not change.value.requires_grad
                and change.value.dtype != torch.bfloat16
            ):
                yield Change(
                    change.name, change.value.numpy(), change.same, change.wrong, change.absurd
                )
    else:
        yield from _absurd()
        yield Change("a number", 3, absurd=True)


# ---- what may come of it ---------------------------------------------------------------------------------------------

ABSURD = (
    TypeError,
    AttributeError,
    TraitError,
    OSError,
)  # what arguments that nobody would give may end in
# Records keep what they are given; the functions that make them have looked at it.
RECORDS = {
    "predictions.Prediction",
    "samplers.Trajectory",
    "matching.History",
    "generation.Preview",
    "evaluation.Score",
    "evaluation.Nearest",
    "metrics.Floor",
    "clinic.Chart",
    "vae.DiagonalGaussian",
    "folders.FolderImages",
}
# Parts of networks, whose `forward` has looked at what comes in
INSIDE = re.compile(
    r"(ResidualBlock|Attention|Upsample|Block|TimeEmbedding|ConditionEmbedding|ScaledInput)\.forward$"
)
# What may look wrong and is right: (name, argument, change)
RIGHT = [
    re.compile(pattern)
    for pattern in (
        r"solvers\.\w+_step x (complex|bool)",  # what a field makes of them is its own affair
        r"schedules\.\w+\.t_from_log_snr l with -?inf",  # the ends of the path
        r"\S+ cond with nan|expect\.as_cond cond None|matching\.drop_conditions cond ",  # a number that is not known
        r"matching\.drop_conditions (drop|null) ",  # likewise
        r"predictions\.to_prediction \[(x1|eps|score)\] t (whole|bool|times 0.0)",  # singular, as it says
        r"(few_step\.FlowEnd|inpainting\.ReconstructionGuided)\.forward t 1.0",  # likewise
        r"schedules\.(combine|DDPM\.t_of) ",  # arithmetic inside others that have looked
        r"(schedules\.per_sample|solvers\.standard_normal|samplers\.\S+) \S+ with",  # for its shape alone
        r"(inpainting\.as_mask|images\.check_input) \S+ with",
        r"(sde\.sde_step|inpainting\.known_region|inpainting\.resampling) (noise|x1) complex",
        r"images\.check_input (t|weight) ",  # for networks, with tensors
        r"predictions\.Prediction\.mix [pq] nan|predictions\.without_inference value",  # handed on
        r"ddpm\.ddpm_loss x1 double",  # other numbers are drawn
        r"images\.sinusoidal t (half|bfloat16)",  # waves of rounded times
        r"images\.to_bytes x with",  # what lies outside is cut off, NaN is refused (test_images)
        r"inpainting\.\w+ (x|x1) with",  # what is to be filled may be anything
        r"classifier\.shifted x with|panes\.quantise x|plots\.show_paths xs with",  # moved, or left out of the picture
        r"plots\.show_paths xs times 1000|evaluation\.bits_per_dim probes 0|your_own\.write_letters letters -",  # slow
        r"(images\.Images\.to|seeds\.seeded|seeds\.generator_of) device",  # torch's own message
        r"expect\.(described|having|short|(number|pair) (low|high)|as_scalar|as_double) ",
        r"expect\.(finite|same_shape|tensor|floating) ",
        r"expect\.(one_or_each|as_labels|as_cond|as_index n)",
        r"metrics\.Floor|style\.CourseFigure figsize|plots\.show_paths ts",
        r"player\.play|plots\.\S+ values|latent\.DecoderConfig code",
    )
]


def tensors(value: Any, depth: int = 0) -> Iterator[Tensor]:
    """The tensors of floating-point numbers in an answer."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, bool):
        return
    elif isinstance(value, (float, np.floating)):
        yield torch.tensor(float(value), dtype=torch.float64)
    elif isinstance(value, np.ndarray) and value.dtype.kind == "f":
        yield torch.as_tensor(value)
    elif isinstance(value, dc.Prediction):
        yield from (value.x1, value.eps)
    elif depth > 3:
        return
    elif isinstance(value, nn.Module):
        yield from value.state_dict().values()
    elif isinstance(value, Mapping):
        for v in value.values():
            yield from tensors(v, depth + 1)
    elif isinstance(value, (tuple, list)):
        for v in value:
            yield from tensors(v, depth + 1)
    elif is_dataclass(value):
        for f in fields(value):
            yield from tensors(vars(value).get(f.name), depth + 1)


def consumed(value: Any) -> Any:
    """An answer with its iterators run to their ends."""
    if isinstance(value, Iterator):
        return list(value)
    if (
        isinstance(value, contextlib.AbstractContextManager)
        and not isinstance(value, io.IOBase)
        and hasattr(value, "gen")
    ):
        with value as inside:
            return inside
    return value


def call(name: str, arguments: dict[str, Any]) -> Any:
    """The answer of a public name, or of a method of one."""
    module, *path = name.split(" ")[0].split(".")
    target: Any = importlib.import_module(f"diffusion_course.{module}")
    arguments = dict(arguments)
    if "self" in arguments:
        target, path = arguments.pop("self"), path[-1:]
    for part in path:
        target = getattr(target, part)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        return consumed(target(**arguments))


def complaint(
    name: str, argument: str, change: Change, arguments: dict[str, Any], before: list[Tensor]
) -> str | None:
    """What is wrong with the answer to a change, if anything is."""
    if any(pattern.match(f"{name} {argument} {change.name}") for pattern in RIGHT):
        return None
    try:
        found = list(tensors(call(name, arguments)))
    except ValueError as error:
        said = str(error)
        return (
            None
            if "expected" in said or _ours(error)
            else f"ValueError of another library: {said[:100]}"
        )
    except (FileNotFoundError, IndexError) as error:
        return None if _ours(error) else f"{type(error).__name__}: {str(error)[:100]}"
    except Exception as error:
        if change.absurd and isinstance(error, ABSURD):
            return None
        return f"{type(error).__name__}: {str(error).strip()[:100]}"
    if change.like is not None:
        before = list(tensors(call(name, arguments | {argument: change.like})))
    finite = all(bool(x.isfinite().all()) for x in found)
    if change.wrong:
        return None if found and not finite else "accepted, and the answer does not show it"
    if change.same is not None:
        for a, b in zip(found, before, strict=False) if len(found) == len(before) else ():
            if a.shape != b.shape:
                return f"gives shape {tuple(a.shape)}, not {tuple(b.shape)}"
            if not torch.allclose(
                a.detach().double(), b.detach().double(), atol=change.same, rtol=change.same, equal_nan=True
            ):
                return f"changes the answer by {(a.double() - b.double()).abs().max():.3g}"
    if any(bool(x.isnan().any()) for x in found) and not any(bool(x.isnan().any()) for x in before):
        return "gives NaN"
    return None


def _ours(error: BaseException) -> bool:
    trace = error.__traceback__
    while trace.tb_next:
        trace = trace.tb_next
    return trace.tb_frame.f_code.co_filename.startswith(LIBRARY)


def changed(name: str) -> Iterator[tuple[str, Change, dict[str, Any]]]:
    """Each argument of a name in turn, each way of changing it, and the arguments with it changed."""
    for argument in CALLS[name]():
        if argument == "self" or name in RECORDS or INSIDE.search(name):
            continue
        for change in changes(CALLS[name]()[argument]):
            yield argument, change, CALLS[name]() | {argument: change.value}


# Types, and names of tables; records and parts that others make; what is tried elsewhere: the command line, exercises
# and their diagnosis (test_checking, test_diagnosis), files (test_damaged_files), trainings (test_training), others'
# models (test_hub), players and panels (test_player, test_widgets)
ELSEWHERE = set(
    """
    predictions.with_labels expect.with_gradient
    predictions.Model samplers.Stepper samplers.handles_singular_ends options.Dataclass options.option options.settings
    ddpm.Posterior edm.Preconditioning unet.PartCost unet.Stage folders.Listing panes.Pane panes.draw_pane player.Scene
    player.Player widgets.Panel
    style.side_by_side style.shrink style.legend style.legend_below style.figure_of former.former
    runs.interruptions runs.folder_lock runs.Metrics training.Objective training.Run training.train training.started
    training.ladder training.DATA latent.LatentUNet
    evaluation.inception_fid evaluation.own_classifier
    evaluation.scores_of images.cifar10 images.digits clinic.examine cold.DEGRADATIONS plots.show_stages
    scenes.Group scenes.Caption scenes.Thing transformer.MultiHead transformer.DiTBlock transformer.TextBlock
    transformer.TextEncoder transformer.Prompted transformer.scenes transformer.attention_weights transformer.modulate
    discrete.TokenModel discrete.Tokens discrete.jump_step discrete.reveal_step discrete.likelihood
    discrete.reference_text discrete.text_windows discrete.binary_digits
    files.whole_file files.check_writable checkpoints.check_saveable style.in_words textures.Textures
    latent.Discriminator latent.adversarial_losses
""".split()
)
OTHERS = ("checking", "diagnosis", "relations", "trials", "cli", "hub")


def test_every_public_name_is_tried() -> None:
    known = {name.split(" ")[0] for name in CALLS} | ELSEWHERE
    missing = []
    for module in set(dc._MODULES) - set(OTHERS):
        contents = vars(importlib.import_module(f"diffusion_course.{module}"))
        for name in contents["__all__"]:
            value = contents[name]
            recipe = (
                name.endswith(("Recipe", "Config"))
                or not callable(value)
                or not hasattr(value, "__name__")
            )
            typing = getattr(value, "__module__", "").startswith(("typing", "collections"))
            if not recipe and not typing and f"{module}.{name}" not in known:
                missing.append(f"{module}.{name}")
    assert not missing, f"no valid arguments are known for {sorted(missing)}"


@pytest.mark.parametrize("name", CALLS)
def test_one_argument_is_changed(name: str) -> None:
    before = list(tensors(call(name, CALLS[name]())))
    wrong = []
    for argument, change, arguments in changed(name):
        said = complaint(name, argument, change, arguments, before)
        if said:
            wrong.append(f"{argument} {change.name}: {said}")
    assert not wrong, "\n" + "\n".join(wrong)


# ---- the caller's state, and several changes at once -----------------------------------------------------------------

FIRST = [
    name for name in CALLS if set(dc.__all__) & set(name.split(" ")[0].split("."))
]  # names at the top


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


STATES: dict[str, Callable[[], Any]] = {
    "no grad": torch.no_grad,
    "inference mode": torch.inference_mode,
    "grad": torch.enable_grad,
    "double": lambda: default_dtype(torch.float64),
    "cpu": lambda: torch.device("cpu"),
    "another default device": lambda: torch.device("meta"),  # an answer made there has no numbers to compare
}
# New networks are made there if, and only if, the default is the meta device: they have shapes alone, as wanted
ON_META = {"matching.MLP", "unet.UNet", "transformer.DiT", "discrete.TokenNet", "checkpoints.load"}


@pytest.mark.parametrize("name", [name for name in FIRST if name not in ON_META])
def test_another_default_device_changes_no_answer(name: str) -> None:
    expected = list(tensors(call(name, CALLS[name]())))
    arguments = CALLS[name]()
    with torch.device("meta"):
        found = call(name, arguments)
    for a, b in zip(tensors(found), expected, strict=True):
        assert a.device == b.device and torch.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    name=st.sampled_from(FIRST),
    states=st.lists(st.sampled_from(list(STATES)), min_size=1, max_size=2, unique=True),
)
def test_the_callers_state_changes_no_answer(name: str, states: list[str]) -> None:
    if "another default device" in states and name in ON_META:
        return
    arguments, expected = CALLS[name](), list(tensors(call(name, CALLS[name]())))
    with contextlib.ExitStack() as stack:
        for state in states:
            stack.enter_context(STATES[state]())
        found = call(name, arguments)
    for a, b in zip(tensors(found), expected, strict=True):
        assert a.dtype == b.dtype and torch.allclose(
            a.double(), b.double(), rtol=1e-4, atol=1e-5, equal_nan=True
        )


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data(), name=st.sampled_from(FIRST))
def test_two_arguments_are_changed(data: st.DataObject, name: str) -> None:
    arguments = CALLS[name]()
    before = list(tensors(call(name, CALLS[name]())))
    names = [k for k in arguments if k != "self"]
    if len(names) < 2 or name in RECORDS:
        return
    for argument in data.draw(
        st.lists(st.sampled_from(names), min_size=2, max_size=2, unique=True)
    ):
        every = [c for c in changes(arguments[argument]) if not c.absurd]
        if not every:
            return
        change = data.draw(st.sampled_from(every), label=argument)
        if any(pattern.match(f"{name} {argument} {change.name}") for pattern in RIGHT):
            return
        arguments[argument] = change.value
    said = complaint(name, argument, Change("both", None), arguments, before)
    assert not said or said == "gives NaN", said
