"""Finished runs as the package's models: what the tools `ship*.py` share."""
from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from torch import nn

from diffusion_course.checkpoints import WEIGHTS, info, load, save


def newest(run: Path) -> Path:
    """The model of a run, or its latest stage while it isn't finished."""
    model = run / "model.safetensors"
    return model if model.exists() else max((run / "stages").glob("*.safetensors"))


def ship(source: Path, name: str, change: Callable[[nn.Module], None] = lambda model: None, **more: object) -> dict:
    """Copy a model with its record, in which the command is what a user would type. Say what was copied, and return the record."""
    model, about, target = load(source), info(source) | more, WEIGHTS / f"{name}.safetensors"
    change(model)
    about["command"] = re.sub(r" (--resume|--(folder|images|kept) \S+)", "", about.get("command", ""))
    config = about.get("config", {})
    config.pop("about", None)  # what the preset says of itself is in the code
    if "kept" in config: config["kept"] = ""
    save(model, target, **about)
    said = {k: v for k, v in about.items() if k not in ("config", "command", "torch", "device", "processes")}
    print(f"{name}: {target.stat().st_size / 1e6:.2f} MB, {said}")
    return about
