"""An accelerator in tests without one: tensors that say they are on "mps" or "cuda", and compute on the CPU.

`with pretend("mps"):` the storage of a tensor remembers on which device it is said to be. Views, `detach`,
parameters, saved tensors and the other owners of a storage agree by themselves, and PyTorch, which only ever sees
CPU tensors, does everything else as always: autograd, modules, optimisers. Two modes watch:

- a TorchFunctionMode sees every call of PyTorch from Python. It answers `x.device`, moves tensors (`to`, `cpu`,
  `cuda`), puts new tensors on the device that was asked for, and compares generators with it;
- a TorchDispatchMode sees every kernel, those that C++ calls included (backward passes, `one_hot`). It passes the
  devices of the inputs on to the outputs, and refuses.

What is refused, with a `DeviceError` that names the call, the kernel and the devices:

(a) inputs on different devices, but for numbers () on the CPU where PyTorch takes them (elementwise kernels), CPU
    indices and copies between devices;
(b) torch.float64 and torch.complex128 on "mps", also as what a copy from "mps" to the CPU is turned into;
(c) kernels that MPS has not (`MPS_LACKS`);
(d) a generator of another device than the numbers that it draws;
(e) numpy arrays of tensors on the device, without `.cpu()`.

Waits for the device, such as `.item()`, are counted by place in `syncs`.

C++ code that makes a tensor of its own (a `zeros` inside `one_hot`) does not say where: the tensor is undetermined,
goes wherever the first other tensor that it meets is, and to the CPU if it is handed to Python before.
"""
from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import diffusion_course

CPU = torch.device("cpu")
PACKAGE = os.path.dirname(diffusion_course.__file__)
DOUBLE = (torch.float64, torch.complex128)
_MASKS = (torch.bool, torch.uint8)

# Kernels without an MPS version. Source: the dispatch table that PyTorch 2.14 ships (torchgen/packaged/ATen/native/
# native_functions.yaml: a CPU kernel, neither MPS nor Composite), without those that only a CPU ever asks for.
_NO_MPS_KERNEL = """
    special_ndtri special_log_ndtr special_airy_ai special_laguerre_polynomial_l special_legendre_polynomial_p
    linalg_eig linalg_eigvals _linalg_eigvals linalg_ldl_factor_ex linalg_ldl_solve linalg_matrix_sqrth ormqr
    logspace mode heaviside frexp put_ take segment_reduce _pdist_forward multi_margin_loss
    multilabel_margin_loss_forward rrelu_with_noise _adaptive_avg_pool3d adaptive_max_pool3d fractional_max_pool2d
    fractional_max_pool3d _fused_adagrad_
"""
# Those that came to MPS after PyTorch 2.6, the oldest one supported here. Source: `UNIMPLEMENTED_XFAILLIST` of
# earlier versions of torch/testing/_internal/common_mps.py and test/test_mps.py (eigh and SVD: computed on the CPU
# there, or not at all).
_NO_MPS_KERNEL_IN_2_6 = """
    _linalg_eigh linalg_eigh _linalg_svd linalg_lstsq linalg_matrix_exp kthvalue cummax cummin _cummax_helper
    _cummin_helper lcm igamma igammac linalg_householder_product geqrf
"""
MPS_LACKS = frozenset(f"{_NO_MPS_KERNEL} {_NO_MPS_KERNEL_IN_2_6}".split())

# Kernels that take numbers () on the CPU beside tensors on the device, though they are not marked as elementwise.
_TAKE_NUMBERS = {
    "where",
    "fill",
    "fill_",
    "masked_fill",
    "masked_fill_",
    "lerp",
    "lerp_",
    "clamp",
    "clamp_",
    "full_like",
}
_TAKE_CPU_INDICES = {
    "index",
    "index_put",
    "index_put_",
    "_index_put_impl_",
    "_unsafe_index",
    "_unsafe_index_put",
}
_COPY = {"copy_", "copy", "_copy_from"}
_WAIT = {
    "_local_scalar_dense",
    "is_nonzero",
    "equal",
    "nonzero",
    "masked_select",
    "_unique",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "allclose",
}


class DeviceError(RuntimeError):
    """What would fail on a real device, or be avoidably slow."""


_places: dict[int, tuple[StorageWeakRef, torch.device | None]] = (
    {}
)  # of storages that are not simply on the CPU


def _storage(x: Tensor) -> torch.UntypedStorage | None:
    try: return x.untyped_storage()
    except (NotImplementedError, RuntimeError): return None  # sparse tensors, torch.func's wrappers


def _place(x: Tensor) -> torch.device | None:
    """Where a tensor is said to be; None: undetermined."""
    storage = _storage(x)
    found = None if storage is None else _places.get(storage._cdata)
    return x.device if found is None else found[1]


def _put(x: Tensor, device: torch.device | None) -> None:
    """Say where a tensor is."""
    storage = _storage(x)
    if storage is None: return
    if device == CPU: return _places.pop(storage._cdata, None) and None
    # the weak reference keeps the address from being given to another storage
    _places[storage._cdata] = StorageWeakRef(storage), device
    if len(_places) % 5000 == 0:
        for key in [key for key, (ref, _) in _places.items() if ref.expired()]: del _places[key]


def _is_known(x: Tensor) -> bool:
    storage = _storage(x)
    return storage is None or storage._cdata in _places


def _tensors(values: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples, lists and dictionaries."""
    if isinstance(values, Tensor): yield values
    elif isinstance(values, (tuple, list)):
        for v in values: yield from _tensors(v)
    elif isinstance(values, dict):
        for v in values.values(): yield from _tensors(v)


def _line() -> str:
    """The innermost line of the library, or else the outermost of the tests, that runs now."""
    frame, place = sys._getframe(2), "?"
    while frame:
        folder, file = os.path.split(frame.f_code.co_filename)
        if folder == PACKAGE: return f"{file}:{frame.f_lineno} {frame.f_code.co_name}"
        if file.startswith("test_"): place = f"{file}:{frame.f_lineno}"
        frame = frame.f_back
    return place


def _name(f: Callable) -> str:
    owner, name = getattr(f, "__objclass__", None), getattr(f, "__name__", str(f))
    return f"Tensor.{name}" if owner is torch._C.TensorBase else name


class _Move(torch.autograd.Function):
    """A copy on another device; gradients go back to where the tensor came from."""

    @staticmethod
    def forward(ctx, x: Tensor, device: torch.device, how: dict) -> Tensor:
        ctx.back = _place(x), x.dtype
        y = torch.Tensor.to(x, **how, copy=True)
        _put(y, device)
        return y

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple:
        device, dtype = ctx.back
        return _Move.apply(grad, device or CPU, dict(dtype=dtype)), None, None


class Pretended:
    """What the modes share: the device, the calls that are running, what has been counted.

    Args:
        kind: of the device.
        collect: note faults in `faults` and go on, instead of raising the first: for a survey.

    Attributes:
        device: that is pretended.
        syncs: how often the program waited for the device, by kernel and line of the library.
        faults: what was refused, where it was collected.
    """

    def __init__(self, kind: str, collect: bool = False):
        self.device, self.collect = torch.device(kind, 0), collect
        self.syncs: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.calls: list[str] = []
        self.asked: list[torch.device | None] = []  # the argument `device` of the calls that are running

    def resolve(self, device: Any) -> torch.device:
        """The argument `device` of a call, with its index."""
        device = device if isinstance(device, torch.device) else torch.device(device)
        return self.device if device.type == self.device.type else device

    def fail(self, what: str, text: str) -> None:
        """Refuse a kernel or a call."""
        call = f"{self.calls[-1]} ({what})" if self.calls else what
        message = f"{call} at {_line()}: {text}"
        if not self.collect: raise DeviceError(message)
        self.faults[message] += 1

    def wait(self, kernel: str) -> None: self.syncs[f"{kernel} at {_line()}"] += 1


@dataclass(frozen=True)
class _Facts:
    """What is known of a kernel."""

    name: str
    arguments: tuple
    makes: bool  # has an argument `device`
    takes_numbers: bool  # on the CPU, beside tensors on the device


@cache
def _facts(kernel) -> _Facts:
    name, arguments = kernel._schema.name.removeprefix("aten::"), tuple(kernel._schema.arguments)
    takes_numbers = (
        torch.Tag.pointwise in kernel.tags or name in _TAKE_NUMBERS or name.startswith("_foreach_")
    )
    return _Facts(name, arguments, any(a.name == "device" for a in arguments), takes_numbers)


class _Kernels(TorchDispatchMode):
    """Passes devices on from kernel to kernel, and refuses what a device would."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else every kernel goes through torch._dynamo, which is slow

    def __init__(self, world: Pretended):
        super().__init__()
        self.world = world

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunction(): return self._run(func, args, kwargs or {})

    def _run(self, func, args: tuple, kwargs: dict):
        world, facts = self.world, _facts(func)
        name = facts.name
        inputs = [(a, x) for a, v in zip(facts.arguments, args, strict=False) for x in _tensors(v)]
        if kwargs:
            inputs += [
                (a, x)
                for a in facts.arguments
                if a.name in kwargs
                for x in _tensors(kwargs[a.name])
            ]
        places = [_place(x) for _, x in inputs]
        known = [p for p in places if p is not None]
        device = next((p for p in known if p != CPU), CPU if known else None)
        if any(p != device for p in known): device = self._mixed(facts, inputs, places, device)
        if facts.makes:
            asked = world.asked[-1] if world.asked else None
            here = kwargs.get("device")
            if asked is not None: device = asked
            elif here is not None and world.resolve(here) != CPU: device = world.resolve(here)
            if here is not None and world.resolve(here) == world.device: kwargs = kwargs | dict(device=CPU)
        if device is not None and device != CPU:
            if device.type == "mps": self._on_mps(name, kwargs)
            by_mask = name in _TAKE_CPU_INDICES and any(x.dtype in _MASKS for x in _tensors(args[1]))
            if by_mask or name in _WAIT: world.wait(name)
        out = func(*args, **kwargs)
        for (_, x), place in zip(inputs, places, strict=True):
            if place is None and device is not None: _put(x, device)
        for y in _tensors(out):
            if device != CPU and not _is_known(y): _put(y, device)
            if (
                y.dtype in DOUBLE
                and (_place(y) or CPU).type == "mps"
                and not any(x.dtype in DOUBLE for _, x in inputs)
            ):
                world.fail(name, f"{y.dtype} on {world.device}, which MPS does not have")
        return out

    def _mixed(self, facts: _Facts, inputs: list, places: list, device: torch.device) -> torch.device:
        """The device of what comes out where the inputs are on several, or a refusal."""
        name = facts.name
        if name in _COPY:
            (_, to), (_, x) = inputs[:2]
            if places[1] != CPU: self.world.wait(name)
            if places[1].type == "mps" and to.dtype in DOUBLE and to.dtype != x.dtype:
                self.world.fail(name, f"from mps to {to.dtype} on the CPU at once; expected .cpu() first")
            return places[0]
        for (argument, x), place in zip(inputs, places, strict=True):
            if place in (None, device): continue
            if name in _TAKE_CPU_INDICES and argument.name == "indices" and place == CPU: continue
            written = argument.alias_info is not None and argument.alias_info.is_write
            small = facts.takes_numbers or name in _TAKE_CPU_INDICES and argument.name == "values"
            if place == CPU and x.ndim == 0 and small and not written: continue
            where = ", ".join(
                f"{a.name} {tuple(x.shape)} on {p}"
                for (a, x), p in zip(inputs, places, strict=True)
            )
            self.world.fail(name, f"inputs on different devices: {where}")
        return device

    def _on_mps(self, name: str, kwargs: dict) -> None:
        if name in MPS_LACKS: self.world.fail(name, "MPS has no such kernel")
        if kwargs.get("dtype") in DOUBLE:
            self.world.fail(name, f"{kwargs['dtype']} on mps, which MPS does not have")


class _Calls(TorchFunctionMode):
    """Answers where tensors are, moves them, and puts new ones where they were asked to be."""

    def __init__(self, world: Pretended):
        super().__init__()
        self.world = world

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        special = _SPECIAL.get(func)
        if special is not None: return special(self.world, func, args, kwargs)
        if getattr(func, "__name__", "") == "__get__": return func(*args, **kwargs)
        return _call(self.world, func, args, kwargs)


def _call(world: Pretended, func: Callable, args: tuple, kwargs: dict) -> Any:
    """Any other function of PyTorch."""
    asked = kwargs.get("device")
    if asked is not None:
        asked = world.resolve(asked)
        if asked == world.device: kwargs = kwargs | dict(device=CPU)
    _check_generator(world, func, args, kwargs, asked)
    world.calls.append(_name(func))
    world.asked.append(asked)
    try: out = func(*args, **kwargs)
    finally:
        world.calls.pop()
        world.asked.pop()
    if not world.calls:
        for y in _tensors(out):
            if _place(y) is None: _put(y, CPU)
    return out


def _check_generator(
    world: Pretended, func: Callable, args: tuple, kwargs: dict, asked: torch.device | None
) -> None:
    is_generator = lambda v: torch._C.Generator in type(v).__mro__  # isinstance is slow here
    g = next(filter(is_generator, (*args, *kwargs.values())), None)
    if g is None: return
    places = [p for x in _tensors((args, kwargs)) if (p := _place(x)) not in (None, CPU)]
    device = asked or (places[0] if places else CPU)
    if g.device.type != device.type:
        world.fail(_name(func), f"draws on {device} with a generator of {g.device}")


def _device(world: Pretended, func: Callable, args: tuple, kwargs: dict) -> torch.device:
    return _place(args[0]) or CPU


def _is_on(kind: str) -> Callable:
    return lambda world, func, args, kwargs: (_place(args[0]) or CPU).type == kind


def _to(world: Pretended, func: Callable, args: tuple, kwargs: dict) -> Tensor:
    x, *rest = args
    rest = [*rest, *([kwargs["other"]] if "other" in kwargs else [])]
    how = {k: v for k, v in kwargs.items() if k not in ("copy", "other")}
    if rest and isinstance(rest[0], Tensor):
        device, dtype, form = _place(rest[0]) or CPU, rest[0].dtype, None
    else:
        device, dtype, _, form = torch._C._nn._parse_to(*rest, **how)
    return _moved(world, x, device, dtype, form, kwargs.get("copy", False))


def _cpu(world: Pretended, func: Callable, args: tuple, kwargs: dict) -> Tensor:
    return _moved(world, args[0], CPU, form=kwargs.get("memory_format"))


def _accelerator(world: Pretended, func: Callable, args: tuple, kwargs: dict) -> Tensor:
    return _moved(world, args[0], torch.device(_name(func).removeprefix("Tensor.")))


def _moved(
    world: Pretended, x: Tensor, device: torch.device | None, dtype: torch.dtype | None = None,
    form: torch.memory_format | None = None, copy: bool = False,
) -> Tensor:
    """`x.to(...)`, between pretended and real devices."""
    here, how = _place(x) or CPU, {}
    device = here if device is None else world.resolve(device)
    if dtype is not None: how["dtype"] = dtype
    if form is not None: how["memory_format"] = form
    if device == here:
        return _call(world, torch.Tensor.to, (x,), dict(dtype=x.dtype) | how | dict(copy=copy))
    if device.type == "meta": return _call(world, torch.Tensor.to, (x, "meta"), how)
    final = dtype or x.dtype
    if "mps" in (here.type, device.type) and final in DOUBLE:
        how_else = "; expected .cpu() first" if device == CPU else ""
        world.fail("Tensor.to", f"{x.dtype} on {here} to {final} on {device}{how_else}")
    if here != CPU: world.wait("copy to the CPU")
    world.calls.append("Tensor.to")
    world.asked.append(None)
    try: return _Move.apply(x, device, how)
    finally:
        world.calls.pop()
        world.asked.pop()


def _numpy(world: Pretended, func: Callable, args: tuple, kwargs: dict) -> Any:
    place = _place(args[0]) or CPU
    if place == world.device and not kwargs.get("force"):
        world.fail(_name(func), f"a tensor on {place} as a numpy array; expected .cpu() first")
    return func(*args, **kwargs)


def _tolist(world: Pretended, func: Callable, args: tuple, kwargs: dict) -> Any:
    if _place(args[0]) == world.device: world.wait("tolist")
    return func(*args, **kwargs)


def _new(world: Pretended, func: Callable, args: tuple, kwargs: dict) -> Tensor:
    """torch.tensor, as_tensor, asarray, new_tensor: a tensor of anything."""
    kwargs = dict(kwargs)
    device, dtype = kwargs.pop("device", None), kwargs.get("dtype")
    of, values = (args[0], args[1:]) if func in _NEW_LIKE else (None, args)
    data = values[0] if values else kwargs.get("data", kwargs.get("obj"))
    if len(values) > 1: dtype = values[1]
    if len(values) > 2: device = values[2]
    if device is None and of is not None: device = _place(of)
    if isinstance(data, Tensor):
        shares = func in (torch.as_tensor, torch.asarray) and not kwargs.get("copy")
        y = _moved(world, data if shares else data.detach(), device, dtype, copy=not shares)
        return y.requires_grad_(kwargs["requires_grad"]) if kwargs.get("requires_grad") else y
    if isinstance(data, (list, tuple)):
        for x in _tensors(data):
            if (_place(x) or CPU) == world.device: world.wait(_name(func))
    owner = () if of is None else (of,)
    out = func(*owner, *values[:1], **kwargs | dict(dtype=dtype))
    place = CPU if device is None else world.resolve(device)
    if place.type == "mps" and out.dtype in DOUBLE:
        world.fail(_name(func), f"{out.dtype} on {place}, which MPS does not have")
    _put(out, place)
    return out


def _deepcopy(world: Pretended, func: Callable, args: tuple, kwargs: dict) -> Tensor:
    out, place = func(*args, **kwargs), _place(args[0])
    _put(out, place)
    if out.grad is not None: _put(out.grad, place)
    return out


def _set_grad(world: Pretended, func: Callable, args: tuple, kwargs: dict) -> None:
    x, grad = args
    if isinstance(grad, Tensor) and _place(grad) not in (None, _place(x)):
        world.fail("Tensor.grad", f"a gradient on {_place(grad)} of a tensor on {_place(x)}")
    func(*args, **kwargs)


_NEW_LIKE = (Tensor.new_tensor,)
_SPECIAL: dict[Callable, Callable] = {
    Tensor.device.__get__: _device,
    Tensor.is_cpu.__get__: _is_on("cpu"),
    Tensor.is_cuda.__get__: _is_on("cuda"),
    Tensor.is_mps.__get__: _is_on("mps"),
    Tensor.to: _to,
    Tensor.cpu: _cpu,
    Tensor.cuda: _accelerator,
    Tensor.numpy: _numpy,
    Tensor.__array__: _numpy,
    Tensor.__dlpack__: _numpy,
    Tensor.tolist: _tolist,
    torch.tensor: _new,
    torch.as_tensor: _new,
    torch.asarray: _new,
    Tensor.new_tensor: _new,
    Tensor.__deepcopy__: _deepcopy,
    Tensor.grad.__set__: _set_grad,
}


def _generators(world: Pretended) -> type:
    """A class in place of torch.Generator, whose generators remember where they are said to be."""
    real = torch._C.Generator

    class Kind(type(real)):
        def __instancecheck__(cls, value: object) -> bool: return isinstance(value, real)

    class Generator(real, metaclass=Kind):
        def __new__(cls, device: Any = "cpu"): return super().__new__(cls, "cpu")
        def __init__(self, device: Any = "cpu"): self._device = world.resolve(device)

        @property
        def device(self) -> torch.device: return self._device

    return Generator


def _autocasts(world: Pretended) -> type:
    """A class in place of torch.autocast: that of the device is that of the CPU."""
    class autocast(torch.autocast):
        def __init__(self, device_type: str, *args, **kwargs):
            super().__init__("cpu" if device_type == world.device.type else device_type, *args, **kwargs)

    return autocast


def _grouped(world: Pretended) -> Callable:
    """Optimisers and averages group tensors by device in C++, which knows the real one only."""
    real = torch._C._group_tensors_by_device_and_dtype

    def group(lists, with_indices=False):
        found = real(lists, with_indices)
        return {
            (_place(next(_tensors(ts))) or CPU, dtype): (ts, i)
            for (_, dtype), (ts, i) in found.items()
        }
    return group


@contextmanager
def pretend(kind: str, collect: bool = False) -> Iterator[Pretended]:
    """Inside, there is a device of this kind: "mps" or "cuda". `Pretended` explains the arguments."""
    world = Pretended(kind, collect)
    state = lambda *_, **__: world.wait("random state") or torch.get_rng_state()
    set_state = lambda value, *_, **__: world.wait("random state") or torch.set_rng_state(value)
    with ExitStack() as stack:
        put = lambda *where: stack.enter_context(patch.object(*where))
        put(torch, "Generator", _generators(world))
        put(torch, "autocast", _autocasts(world))
        put(torch._C, "_group_tensors_by_device_and_dtype", _grouped(world))
        put(torch.accelerator, "is_available", lambda: True)
        put(torch.accelerator, "current_accelerator", lambda *_, **__: torch.device(kind))
        put(torch.accelerator, "current_stream", lambda *_: SimpleNamespace(is_capturing=lambda: False))
        if kind == "cuda":
            put(torch.cuda, "_lazy_init", lambda: None)
            put(torch.cuda, "get_rng_state", state)
            put(torch.cuda, "set_rng_state", set_state)
            put(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
            put(torch.cuda, "get_device_capability", lambda *_: (8, 0))
        stack.enter_context(_Kernels(world))
        stack.enter_context(_Calls(world))
        yield world
