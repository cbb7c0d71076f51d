"""The other libraries, imported without what nothing here uses of them.

torchvision is imported by smalldiffusion and torch-fidelity for their data sets; a stand-in takes its place while
these are loaded. The package k_diffusion imports CLIP and more at its top; only its module `sampling` is loaded.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import sys
import types
import warnings
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path

STOOD_IN = ["torchvision"] + [
    f"torchvision.{name}"
    for name in ("datasets", "models", "transforms", "transforms.functional", "utils")
]


class _StandIn(types.ModuleType):
    """A module that has every name: a class that does nothing."""

    def __init__(self, name: str):
        super().__init__(name)
        self.__path__: list[str] = []
        self.__spec__ = ModuleSpec(name, None, is_package=True)

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        inner = sys.modules.get(f"{self.__name__}.{name}")
        return inner or type(name, (), {"__init__": lambda self, *args, **kwargs: None})


@contextlib.contextmanager
def _without_torchvision() -> Iterator[None]:
    before = {name: m for name, m in sys.modules.items() if name.partition(".")[0] == "torchvision"}
    for name in before:
        del sys.modules[name]
    sys.modules.update({name: _StandIn(name) for name in STOOD_IN})
    try:
        yield
    finally:
        for name in STOOD_IN:
            del sys.modules[name]
        sys.modules.update(before)


def load(name: str) -> types.ModuleType:
    """A peer's module; ImportError where it isn't installed."""
    if name in sys.modules:
        return sys.modules[name]
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        package = name.partition(".")[0]
        if package == "k_diffusion" and package not in sys.modules:
            spec = importlib.util.find_spec(package)
            if spec is None or spec.origin is None:
                raise ImportError("k_diffusion isn't installed")
            module = types.ModuleType(package)
            module.__path__ = [str(Path(spec.origin).parent)]
            sys.modules[package] = module
        if package not in ("smalldiffusion", "torch_fidelity", "k_diffusion"):
            return importlib.import_module(name)
        with _without_torchvision():
            return importlib.import_module(name)


def has(name: str) -> bool:
    """Whether a peer can be loaded."""
    try:
        load(name)
    except ImportError:
        return False
    return True
