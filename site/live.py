"""What pages compute with: networks as ONNX files, tables of times, noise of seeds, and a runtime.

All of it is made at each build, from the shipped checkpoints, and written to `_static/live/`. The runtime is
ONNX Runtime Web (MIT License), fetched once into the user's cache; readers' browsers ask no other host for it.
"""
from __future__ import annotations

import base64
import gzip
import json
import shutil
import tarfile
import tempfile
import warnings
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pooch
import torch
from matplotlib.colors import to_hex
from torch import Tensor, nn

from diffusion_course.checkpoints import load
from diffusion_course.distributions import running_mixture
from diffusion_course.generation import noise
from diffusion_course.images import CIFAR10_NAMES
from diffusion_course.matching import MLP, fit
from diffusion_course.panes import FRAMES
from diffusion_course.predictions import Denoiser
from diffusion_course.samplers import uniform_grid
from diffusion_course.schedules import Cosine, Linear, Schedule
from diffusion_course.style import color_of

RUNTIME = "https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-1.30.0.tgz"
RUNTIME_HASH = "sha256:d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71"
# The smallest of its builds: for one thread, on the processor. Threads need two headers that plain hosts do not
# send; the build for graphics processors is twice as large.
SCRIPT = "package/dist/ort.wasm.bundle.min.mjs"
BINARY = "package/dist/ort-wasm-simd-threaded.wasm"

STEPS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 25, 32, 40, 50)
PICTURES = 10  # drawn at a time: one of each class
SEEDS = {"few-step": 16, "cifar10-latent": 16, "cifar10": 2}  # those whose noise is that of Python
SCHEDULES: dict[str, Schedule] = {"linear": Linear(), "cosine": Cosine()}
OPSET = 17


# ---- tables and noise ----------------------------------------------------------------------------

def rows(schedule: Schedule, ts: Tensor) -> dict[str, list[float]]:
    """What a step needs to know of a path, at each of some times.

    Args:
        schedule: of the path.
        ts: (T + 1,) times.

    Returns:
        columns of T + 1 numbers: t, alpha and sigma, and their derivatives a and b, which are what a network
        of the velocity was trained for: a x1 + b eps.
    """
    columns = dict(t=ts, alpha=schedule.alpha(ts), sigma=schedule.sigma(ts),
                   a=schedule.d_alpha(ts), b=schedule.d_sigma(ts))
    return {name: numbers(column) for name, column in columns.items()}


def numbers(x: Tensor) -> list[float]:
    """Numbers with nine digits, which is more than single precision tells apart.

    Args:
        x: (n,).
    """
    return [float(f"{value:.9g}") for value in x.double().tolist()]


def tables() -> dict[str, Any]:
    "Times, with alpha and sigma there, for each number of steps on each path."
    grids = {name: {n: rows(schedule, uniform_grid(n)) for n in STEPS} for name, schedule in SCHEDULES.items()}
    return dict(steps=STEPS, grids=grids, labels=CIFAR10_NAMES, pictures=PICTURES, seeds=SEEDS)


def plane() -> dict[str, Any]:
    "The plane: the mixture of Part I, a small network that learned it, and what is drawn behind the points."
    mixture = running_mixture()
    model = small_model()
    moments = torch.linspace(0.001, 0.999, FRAMES, dtype=torch.float64)
    columns = {name: numbers(vars(mixture)[name].flatten()) for name in ("means", "stds", "weights", "labels")}
    frames = {name: rows(schedule, moments) for name, schedule in SCHEDULES.items()}
    colors = {role: to_hex(color_of(role)) for role in ("exact", "learned")}
    return dict(mixture=columns, frames=frames, network=layers(model.net) | dict(loops=assembled()), colors=colors)


def assembled() -> str:
    "The loops of the small network, in base64; empty where they can't be assembled: pages have slower ones."
    if find_spec("wasmtime") is None: return ""
    from wasmtime import wat2wasm

    text = (Path(__file__).parent / "live" / "layers.wat").read_text(encoding="utf-8")
    return base64.b64encode(wat2wasm(text)).decode()


def small_model(steps: int = 3000) -> Denoiser:
    """A network of the velocity that has learned the mixture of Part I with its labels, in some seconds.

    Args:
        steps: of training.
    """
    x1, y = running_mixture().sample_labelled(8192, torch.Generator().manual_seed(0))
    model = Denoiser(MLP(width=64, n_labels=3), Linear())
    return fit(model, x1, steps, labels=y, batch_size=256, progress=False).model


def layers(net: MLP) -> dict[str, Any]:
    """A small network as text: its weights one after the other in single precision, and where each begins.

    Args:
        net: the network.
    """
    state = {**net.state_dict(), "x_waves": net.x_waves, "t_waves": net.t_waves}
    places: dict[str, list[int]] = {}
    at = 0
    for name, value in state.items():
        places[name] = [at, *value.shape]
        at += value.numel()
    flat = torch.cat([value.detach().flatten() for value in state.values()]).float()
    return dict(places=places, weights=base64.b64encode(flat.numpy().tobytes()).decode())


# ---- networks ------------------------------------------------------------------------------------

class FromUnit(nn.Module):
    """Latents on the scale of diffusion -> images.

    Args:
        vae: an autoencoder.
    """

    def __init__(self, vae: Any):
        super().__init__()
        self.vae = vae

    def forward(self, z: Tensor) -> Tensor:
        """Images (B, 3, 32, 32).

        Args:
            z: (B, c, h, w).
        """
        return self.vae.decode(self.vae.from_unit(z))


def export(net: nn.Module, inputs: dict[str, Tensor], path: Path) -> None:
    """Write a network as an ONNX file that keeps its weights in 16 bits and computes in 32.

    Args:
        net: in single precision; its weights are rounded as in the shipped checkpoints.
        inputs: its arguments by name, with a batch in front, whose size stays free.
        path: of the file.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    axes = {name: {0: "batch"} for name in (*inputs, "out")}
    # The exporter of 2025 and later takes ten times as long, and more packages, for the same graph.
    with torch.no_grad(), warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        traced = Path(folder) / "traced.onnx"
        torch.onnx.export(net.eval(), tuple(inputs.values()), str(traced), dynamo=False, opset_version=OPSET,
                          input_names=list(inputs), output_names=["out"], dynamic_axes=axes)
        model = onnx.load(str(traced))
    graph = model.graph
    casts = []
    for weight in graph.initializer:
        if weight.data_type != TensorProto.FLOAT: continue
        name, value = weight.name, numpy_helper.to_array(weight)
        weight.CopyFrom(numpy_helper.from_array(value.astype("float16"), f"{name}.half"))
        casts.append(helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    path.write_bytes(model.SerializeToString())


def write_networks(folder: Path) -> None:
    """Write the shipped networks that draw, the decoder of their latents, and the noise of some seeds.

    Args:
        folder: where they go.
    """
    for name, seeds in SEEDS.items():
        model = load(name)
        x = noise(model, 2, 0)
        inputs = dict(x=x, t=torch.tensor([0.25, 0.5]), y=torch.tensor([0, 10]))
        export(model.net, inputs, folder / f"{name}.onnx")
        start = torch.stack([noise(model, PICTURES, seed) for seed in range(seeds)])
        if name != "few-step": (folder / f"{start.shape[2]}.noise").write_bytes(start.numpy().tobytes())
        if name == "few-step": export(FromUnit(model.net.vae()), dict(z=x), folder / "decoder.onnx")


# ---- the runtime ---------------------------------------------------------------------------------

def write_runtime(folder: Path) -> None:
    """Write the runtime, its binary compressed: plain hosts would send 14 MB in place of 4.

    Args:
        folder: where it goes.

    Raises:
        OSError: where it is neither in the cache nor to be had.
        ValueError: where what was fetched is not what was expected.
    """
    pooch.get_logger().setLevel("WARNING")
    found = pooch.retrieve(RUNTIME, RUNTIME_HASH, path=pooch.os_cache("diffusion_course"))
    with tarfile.open(found) as archive:
        for name, path in ((SCRIPT, folder / "ort.mjs"), (BINARY, folder / "ort.wasm")):
            member = archive.extractfile(name)
            if member is None: raise ValueError(f"{found} has no file {name}: expected one")
            with path.open("wb") as file: shutil.copyfileobj(member, file)
    binary = folder / "ort.wasm"
    (folder / "ort.wasm.gz").write_bytes(gzip.compress(binary.read_bytes(), 6, mtime=0))
    binary.unlink()


def write_pictures(folder: Path) -> str:
    """Write what drawing images needs.

    Args:
        folder: where it goes.

    Returns:
        why it cannot be done here; empty where it was.
    """
    if find_spec("onnx") is None: return "the package onnx is not installed"
    try: write_runtime(folder)
    except (OSError, ValueError) as error:
        return f"{RUNTIME} could not be fetched ({type(error).__name__})"
    write_networks(folder)
    return ""


# ---- all of it -----------------------------------------------------------------------------------

def build(source: Path, folder: Path) -> str:
    """Write everything that pages compute with.

    Args:
        source: of the scripts.
        folder: where it goes.

    Returns:
        why images cannot be drawn; empty where they can.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    why = write_pictures(folder)
    files = {path.name: [f"{zlib.crc32(path.read_bytes()):08x}", path.stat().st_size]
             for path in sorted(folder.iterdir())}
    write_constant(folder / "tables.js", "TABLES", dict(tables(), files=files))
    write_constant(folder / "plane-data.js", "PLANE", plane())
    for script in sorted(source.glob("*.js")): shutil.copy(script, folder)
    return why


def write_constant(path: Path, name: str, value: Any) -> None:
    """Write a script that defines one constant: scripts, unlike data, also open from a folder.

    Args:
        path: of the script.
        name: of the constant.
        value: what JSON can say.
    """
    text = json.dumps(value, separators=(",", ":"))
    path.write_text(f"const {name} = {text};\n", encoding="utf-8")
