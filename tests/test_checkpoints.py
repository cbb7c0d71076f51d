"""Models in files: what was saved comes back, shipped ones go by name, and anything else is refused in words."""
from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diffusion_course import checkpoints
from diffusion_course.checkpoints import info, load, read_tensors, save, shipped, write_tensors
from diffusion_course.images import DenoiseNet
from diffusion_course.matching import MLP
from diffusion_course.predictions import Denoiser
from diffusion_course.schedules import DDPM, Cosine, Linear, VarianceExploding, VariancePreserving
from diffusion_course.unet import UNet, UNetConfig

SCHEDULES = {
    "linear": Linear(),
    "cosine": Cosine(),
    "VP": VariancePreserving(0.2, 15.0),
    "VE": VarianceExploding(0.02, 5.0),
    "DDPM": DDPM(torch.linspace(1e-4, 0.02, 50)),
}
SMALL = UNetConfig(
    shape=(1, 8, 8),
    widths=(32,),
    attention=(),
    patch=4,
    n_labels=3,
    dropout=0.1,
    embedding="fourier",
    modulate=False,
)
NETS = {
    "MLP": lambda: MLP(dim=2, width=16, n_labels=3),
    "DenoiseNet": lambda: DenoiseNet((1, 8, 8), width=16, n_labels=3),
    "UNet": lambda: UNet(SMALL),
}


def shaken(net: torch.nn.Module) -> torch.nn.Module:
    """The network with weights that are nowhere zero."""
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters(): p.add_(0.1 * torch.randn(p.shape, generator=g))
    return net.eval()


def points(net: torch.nn.Module) -> torch.Tensor:
    return torch.randn(4, *getattr(net, "shape", (2,)), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("make", NETS.values(), ids=NETS)
def test_a_denoiser_comes_back(make, schedule, tmp_path: Path) -> None:
    model = Denoiser(shaken(make()), schedule, "v")
    save(model, tmp_path / "deeper" / "m.safetensors", half=False, quality=0.5, seed=3)
    back, x, y = load(tmp_path / "deeper" / "m.safetensors"), points(model.net), torch.tensor([0, 1, 2, 3])
    assert type(back.net) is type(model.net) and not back.net.training and back.kind == "v"
    for t in (0.3, torch.tensor([0.1, 0.4, 0.6, 0.9])):
        assert torch.allclose(back(x, t, y=y).x1, model(x, t, y=y).x1, atol=1e-5)
    assert torch.equal(
        schedule.alpha(torch.linspace(0.05, 0.95, 7)),
        back.schedule.alpha(torch.linspace(0.05, 0.95, 7)),
    )
    assert info(tmp_path / "deeper" / "m.safetensors") == dict(quality=0.5, seed=3)
    assert [p.name for p in (tmp_path / "deeper").iterdir()] == ["m.safetensors"]


@pytest.mark.parametrize("make", NETS.values(), ids=NETS)
def test_a_network_alone_comes_back(make, tmp_path: Path) -> None:
    net = shaken(make())
    save(net, tmp_path / "n.safetensors", half=False)
    back = load(tmp_path / "n.safetensors")
    assert type(back) is type(net) and all(torch.equal(v, back.state_dict()[k]) for k, v in net.state_dict().items())
    given = lambda n: dataclasses.asdict(n.config) if dataclasses.is_dataclass(n.config) else n.config
    assert given(back) == given(net)


def test_sigma_data_comes_back(tmp_path: Path) -> None:
    save(Denoiser(shaken(MLP(width=16)), Linear(), "F", sigma_data=0.7), tmp_path / "m.safetensors")
    assert load(tmp_path / "m.safetensors").sigma_data == 0.7


def test_half_precision_loses_one_part_in_two_thousand(tmp_path: Path) -> None:
    net = shaken(UNet(SMALL))
    save(net, tmp_path / "half.safetensors")
    save(net, tmp_path / "whole.safetensors", half=False)
    for k, v in load(tmp_path / "half.safetensors").state_dict().items():
        assert v.dtype == torch.float32
        assert ((v - net.state_dict()[k]).abs() <= net.state_dict()[k].abs() / 2048 + 3e-8).all()
    size = lambda name: (tmp_path / f"{name}.safetensors").stat().st_size
    assert size("half") < 0.7 * size("whole")


def test_loading_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    save(UNet(SMALL), tmp_path / "m.safetensors")
    before = torch.get_rng_state()
    load(tmp_path / "m.safetensors")
    assert torch.equal(before, torch.get_rng_state())


def test_no_code_is_run_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(MLP(width=16), tmp_path / "m.safetensors")
    torch.save(MLP(width=16), tmp_path / "pickled.safetensors")

    def never(*_, **__): raise AssertionError("a pickle was opened")
    for module, name in (
        (pickle, "load"),
        (pickle, "loads"),
        (pickle, "Unpickler"),
        (torch, "load"),
    ):
        monkeypatch.setattr(module, name, never)
    load(tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match="damaged, or no safetensors file"):
        load(tmp_path / "pickled.safetensors")


@pytest.mark.parametrize("cut", [0, 5, 200, -10])
def test_a_damaged_file_is_named(cut: int, tmp_path: Path) -> None:
    save(MLP(width=16), tmp_path / "m.safetensors")
    (tmp_path / "m.safetensors").write_bytes((tmp_path / "m.safetensors").read_bytes()[:cut])
    with pytest.raises(
        ValueError, match=r"m\.safetensors is damaged.*expected a checkpoint of this course"
    ):
        load(tmp_path / "m.safetensors")


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no file .*nowhere"):
        load(tmp_path / "nowhere.safetensors")
    save_file({"w": torch.ones(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match="of something else"):
        load(tmp_path / "foreign.safetensors")
    write_tensors(tmp_path / "tensors.safetensors", {"w": torch.ones(2)}, dict(a=1))
    with pytest.raises(ValueError, match="not a model"): load(tmp_path / "tensors.safetensors")


@pytest.mark.parametrize(
    "change, named",
    [
        (dict(net="GPT"), "GPT.*MLP"),
        (dict(config=dict(width=32)), "does not fit"),
        (dict(config=dict(depht=3)), "does not fit"),
    ],
    ids=["net", "size", "setting"],
)
def test_a_description_that_does_not_fit_is_refused(change: dict, named: str, tmp_path: Path) -> None:
    save(MLP(width=16), tmp_path / "m.safetensors")
    tensors, about = read_tensors(tmp_path / "m.safetensors")
    write_tensors(tmp_path / "m.safetensors", tensors, about | change)
    with pytest.raises(ValueError, match=named): load(tmp_path / "m.safetensors")


def test_an_unknown_name_lists_those_there_are() -> None:
    with pytest.raises(ValueError) as error: load("cifar11")
    assert "'cifar11'" in str(error.value) and all(name in str(error.value) for name in shipped())


def test_other_networks_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match="a Linear of torch.nn.modules.linear: expected this package's, or one made known by checkpoints.register",
    ):
        save(torch.nn.Linear(2, 2), tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.safetensors"
    write_tensors(path, {"w": torch.arange(3)}, dict(n=1))

    def full(tensors, file, metadata):
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(OSError, match="could not be written.*No space left.*as it was"):
        write_tensors(path, {"w": torch.zeros(3)}, dict(n=2))
    assert read_tensors(path)[1] == dict(n=1) and torch.equal(read_tensors(path)[0]["w"], torch.arange(3))
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_model_loads_and_says_where_it_is_from(name: str) -> None:
    model, about = load(name), info(name)
    net = getattr(model, "net", model)
    assert not net.training and all(p.isfinite().all() for p in net.parameters())
    assert json.dumps(about)


# ---- what is written can be read -----------------------------------------------------------------

class Tied(torch.nn.Module):
    """A network two of whose layers share their weights."""

    def __init__(self, width: int = 4):
        super().__init__()
        self.config: object = dict(width=width)
        self.first = torch.nn.Linear(width, width, bias=False)
        self.second = torch.nn.Linear(width, width, bias=False)
        self.second.weight = self.first.weight


@pytest.fixture
def tied(monkeypatch: pytest.MonkeyPatch) -> Tied:
    monkeypatch.setattr(checkpoints, "_REGISTERED", {})
    checkpoints.register(Tied)
    return Tied()


@pytest.mark.parametrize("config, message", [
    (dict(widht=2), "a Tied can't be made again of its config, .*widht"),
    (dict(width=3), r"a Tied made of its config, .*, has another first.weight"),
    (dict(width=torch.tensor(4)), "the config of a Tied holds a tensor, width: expected a list"),
    (5, "a Tied has config 5: expected a dataclass or a dictionary"),
    (dict(width=object()), "can't be written .*: expected what JSON can hold"),
])
def test_a_config_that_makes_another_network_is_refused(
    config: object, message: str, tied: Tied, tmp_path: Path,
) -> None:
    tied.config = config
    with pytest.raises(ValueError, match=message): save(tied, tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match=message): checkpoints.check_saveable(tied)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("half", [True, False])
def test_tied_weights_come_back(half: bool, tied: Tied, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    save(tied, tmp_path / "m.safetensors", half=half)
    assert torch.equal(before, torch.get_rng_state())
    back = load(tmp_path / "m.safetensors")
    assert back.second.weight is back.first.weight
    torch.testing.assert_close(back.first.weight, tied.first.weight, atol=3e-4, rtol=0)


def test_views_of_one_tensor_are_written(tmp_path: Path) -> None:
    x = torch.arange(6.0)
    tensors = {"x": x, "part": x[2:4], "again": x, "none": x[:0]}
    write_tensors(tmp_path / "t.safetensors", tensors, {})
    found, _ = read_tensors(tmp_path / "t.safetensors")
    assert all(torch.equal(found[name], v) for name, v in tensors.items())


@pytest.mark.parametrize("scale", [1e-8, 1e-5, 1.0, 1e4, 1e8])
def test_weights_of_any_size_keep_their_digits(scale: float, tied: Tied, tmp_path: Path) -> None:
    with torch.no_grad(): tied.first.weight.mul_(scale)
    save(tied, tmp_path / "m.safetensors")
    error = (load(tmp_path / "m.safetensors").first.weight - tied.first.weight).abs().max()
    assert error <= tied.first.weight.abs().max() / 2048


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(value: float, tied: Tied, tmp_path: Path) -> None:
    with torch.no_grad(): tied.first.weight[0, 0] = value
    with pytest.raises(ValueError, match="first.weight holds 1 values that are NaN or infinite"):
        save(tied, tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())
