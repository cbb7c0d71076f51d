"""Training: what it draws, averages and writes; that a run that is killed, stopped or crowded out of its disk goes
on exactly; bad input."""
from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from diffusion_course import checkpoints, training
from diffusion_course.checkpoints import info, load, read_tensors, save, write_tensors
from diffusion_course.images import Images, digit_classifier, digits
from diffusion_course.options import as_dict, with_options
from diffusion_course.predictions import Denoiser
from diffusion_course.runs import saved_config
from diffusion_course.schedules import Linear
from diffusion_course.training import (
    PRESETS,
    DenoiserRecipe,
    Run,
    autocast,
    batch_indices,
    dtype_of_products,
    ladder,
    seeded,
    train,
)
from diffusion_course.unet import UNet, UNetConfig

NET = UNetConfig(shape=(1, 8, 8), widths=(32,), attention=(), patch=4)  # the smallest there is
TINY = dataclasses.replace(
    PRESETS["digits"],
    net=NET,
    images=320,
    batch=32,
    warmup=64,
    log_every=64,
    save_every=96,
    stages=(128,),
    precision="fp32",
)
TIMES = ("images_per_second", "seconds")


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny networks, and sums in one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Interrupted(Exception):
    """What stands for the end of a process here."""


def go(folder: Path, config: DenoiserRecipe = TINY, stop_at: int | None = None, **kwargs) -> torch.nn.Module | None:
    """Train, and end at the row of metrics with so many pictures."""
    def watch(run: Run) -> None:
        if run.seen == stop_at: raise Interrupted
    try: return train(config, folder, progress=False, watch=watch, **kwargs)
    except Interrupted: return None


def fresh(config: DenoiserRecipe = TINY, folder: Path = Path("nowhere")) -> Run:
    return Run(config, folder, Accelerator(mixed_precision="no"))


def rows(folder: Path) -> list[dict[str, str]]:
    """metrics.csv without what the clock says."""
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as f:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(f)]


def same(a: Path, b: Path) -> None:
    """Two folders hold the same run, bit for bit, but for the times."""
    names = lambda folder: sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    assert names(a) == names(b)
    assert rows(a) == rows(b)
    for name in names(a):
        if name.endswith(".png"): assert (a / name).read_bytes() == (b / name).read_bytes(), name
        if not name.endswith(".safetensors"): continue
        (x, about_x), (y, about_y) = read_tensors(a / name), read_tensors(b / name)
        assert x.keys() == y.keys()
        assert all(torch.equal(x[k], y[k]) for k in x), f"{name}: {[k for k in x if not torch.equal(x[k], y[k])]}"
        assert about_x.get("loss") == about_y.get("loss") and about_x.get("info", {}).get(
            "loss"
        ) == about_y.get("info", {}).get("loss")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole")
    go(folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


# ---- what a run leaves, and that it goes on exactly ------------------------------------------------------------------

def test_a_run_leaves_metrics_stages_samples_state_and_model(whole: Path) -> None:
    assert sorted(contents(whole)) == [
        "metrics.csv",
        "model.safetensors",
        "samples/000000128.png",
        "stages/000000128.safetensors",
        "state.safetensors",
    ]
    assert [int(row["images"]) for row in rows(whole)] == [64, 128, 192, 256, 320]
    about = info(whole / "model.safetensors")
    assert about["images"] == 320 and with_options(TINY, about["config"]) == TINY
    assert about["loss"] == pytest.approx(float(rows(whole)[-1]["loss"]), abs=1e-6)
    average = read_tensors(whole / "state.safetensors")[0]
    net = load(whole / "model.safetensors").net.state_dict()
    assert all(
        torch.equal(average[f"average.module.net.{k}"].half().float(), v) for k, v in net.items()
    ), "the averaged weights are the model"


@pytest.mark.parametrize("stop_at", [64, 192, 256])
def test_a_run_that_ends_between_checkpoints_goes_on_exactly(stop_at: int, whole: Path, tmp_path: Path) -> None:
    go(tmp_path, stop_at=stop_at)
    assert not (tmp_path / "model.safetensors").exists()
    go(tmp_path, resume=True)
    same(whole, tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        dict(channels_last=False),
        dict(flip=True),
        dict(net=dataclasses.replace(NET, dropout=0.3)),
        dict(precision="bf16"),
        dict(precision="fp16"),
        dict(times="mixed"),
    ],
    ids=str,
)
def test_every_kind_of_run_goes_on_exactly(change: dict, tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, images=192, stages=(), **change)
    go(tmp_path / "a", config)
    go(tmp_path / "b", config, stop_at=128)
    go(tmp_path / "b", config, resume=True)
    same(tmp_path / "a", tmp_path / "b")


def test_a_step_in_fp16_whose_gradient_overflows_is_skipped(tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, precision="fp16")
    run = Run(config, tmp_path, Accelerator(cpu=True))
    run.scaler.load_state_dict(run.scaler.state_dict() | dict(scale=2.0**100))
    before = [w.detach().clone() for w in run.weights]
    run.step()
    assert all(map(torch.equal, before, run.weights)) and run.scaler.get_scale() == 2.0**99
    run.scaler.load_state_dict(run.scaler.state_dict() | dict(scale=1024.0))
    run.step()
    assert not all(map(torch.equal, before, run.weights)) and run.scaler.get_scale() == 1024
    assert run.measured().isfinite().all(), "a step that was skipped doesn't end the run"


@pytest.mark.parametrize(
    "bf16, card, chosen",
    [(True, (8, 0), torch.bfloat16), (False, (7, 5), torch.float16), (False, (6, 1), torch.float32)],
)
def test_auto_takes_what_the_card_is_quick_at(
    bf16: bool, card: tuple[int, int], chosen: torch.dtype, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: bf16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: card)
    assert dtype_of_products(torch.device("cuda"), "auto") == chosen
    assert dtype_of_products(torch.device("cuda"), "fp32") == torch.float32


def test_a_run_can_be_made_longer(whole: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, decay=0.0, stages=())
    go(tmp_path / "a", config)
    go(tmp_path / "b", dataclasses.replace(config, images=192))
    go(tmp_path / "b", config, resume=True)
    same(tmp_path / "a", tmp_path / "b")


def test_a_finished_run_stays_as_it_is(whole: Path, tmp_path: Path) -> None:
    go(tmp_path)
    before = rows(tmp_path)
    go(tmp_path, resume=True)
    assert rows(tmp_path) == before and math.isfinite(info(tmp_path / "model.safetensors")["loss"])
    same(whole, tmp_path)


def test_resuming_nothing_begins(whole: Path, tmp_path: Path) -> None:
    go(tmp_path, resume=True)
    same(whole, tmp_path)


def test_a_state_written_before_there_were_start_and_recent_is_read(tmp_path: Path) -> None:
    go(tmp_path, stop_at=256)
    tensors, about = read_tensors(tmp_path / "state.safetensors")
    assert (
        about["steps"] * 32 == 192 and "recent.steps" not in tensors
    ), "a checkpoint at a row of metrics has nothing to remember"
    del about["config"]["start"], about["loss"]
    write_tensors(tmp_path / "state.safetensors", tensors, about)
    assert saved_config(TINY, tmp_path) == TINY
    assert go(tmp_path, resume=True) is not None


def test_a_torn_row_of_metrics_is_dropped(whole: Path, tmp_path: Path) -> None:
    go(tmp_path, stop_at=256)
    with open(tmp_path / "metrics.csv", "ab") as f: f.write(b"320,0.7\n\xff\xfe,,garbage")
    go(tmp_path, resume=True)
    same(whole, tmp_path)


# ---- what goes wrong: one clear error, nothing lost, nothing half written --------------------------------------------

def full_disk(tensors: dict, path: Path, metadata: dict) -> None:
    """What safetensors does when no space is left."""
    Path(path).write_bytes(b"the beginning")
    raise OSError(28, "No space left on device")


def test_a_full_disk_costs_nothing_that_was_saved(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go(tmp_path, stop_at=256)
    before = contents(tmp_path)
    monkeypatch.setattr(checkpoints, "save_file", full_disk)
    with pytest.raises(
        OSError, match=r"state\.safetensors could not be written .*No space left.*as it was"
    ):
        go(tmp_path, resume=True)
    after = contents(tmp_path)
    assert after.keys() == before.keys() and all(before[k] == after[k] for k in before if k != "metrics.csv")
    monkeypatch.undo()
    go(tmp_path, resume=True)
    same(whole, tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[: len(b) // 2],
        lambda b: b"",
        lambda b: b"PK" + b[2:],
        lambda b: b[:8] + b"{" * 40 + b[48:],
    ],
    ids=["cut", "empty", "other", "header"],
)
def test_a_damaged_state_is_named_and_left_alone(damage, whole: Path, tmp_path: Path) -> None:
    (tmp_path / "state.safetensors").write_bytes(damage((whole / "state.safetensors").read_bytes()))
    before = contents(tmp_path)
    for resume in (True, False):
        with pytest.raises(ValueError, match=r"state\.safetensors.*expected"):
            go(tmp_path, resume=resume)
    assert contents(tmp_path) == before


def test_a_model_is_no_state_and_a_state_no_model(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "state.safetensors").write_bytes((whole / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match="not the state of a run"): go(tmp_path, resume=True)
    with pytest.raises(ValueError, match="not a model"): load(whole / "state.safetensors")


def test_a_state_of_another_network_is_refused(whole: Path, tmp_path: Path) -> None:
    tensors, about = read_tensors(whole / "state.safetensors")
    tensors.pop("model.net.stem.weight")
    write_tensors(tmp_path / "state.safetensors", tensors, about)
    with pytest.raises(ValueError, match="does not fit this configuration.*stem"):
        go(tmp_path, resume=True)


def test_a_folder_is_not_used_twice(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds a run already.*--resume.*--folder"): go(whole)
    (tmp_path / "model.safetensors").write_bytes((whole / "model.safetensors").read_bytes())
    for resume in (True, False):
        with pytest.raises(ValueError, match="holds a model"): go(tmp_path, resume=resume)
    assert list(contents(tmp_path)) == ["model.safetensors"]


def test_nor_by_two_at_a_time(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    said = []

    def second(run: Run) -> None:
        try: train(TINY, tmp_path, resume=True, progress=False)
        except ValueError as error: said.append(str(error))
    train(dataclasses.replace(TINY, images=64), tmp_path, progress=False, watch=second)
    assert len(said) == 1 and "another process" in said[0]


@pytest.mark.parametrize(
    "change, named",
    [
        (dict(lr=1e-4), "lr is 0.0001: expected 0.002"),
        (dict(batch=64), "batch"),
        (dict(seed=1), "seed"),
        (dict(kind="eps"), "kind"),
        (dict(net=dataclasses.replace(NET, widths=(64,))), "net"),
    ],
    ids=lambda v: str(v)[:20],
)
def test_a_run_goes_on_as_it_began(change: dict, named: str, whole: Path) -> None:
    before = contents(whole)
    with pytest.raises(ValueError, match=named):
        go(whole, dataclasses.replace(TINY, **change), resume=True)
    assert contents(whole) == before


def test_a_run_says_what_it_computes_with_and_how_long_it_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture,
) -> None:
    short = dataclasses.replace(TINY, images=60 * TINY.batch, stages=(), precision="fp32")
    train(short, tmp_path, device="cpu")
    said = capsys.readouterr().err
    n = sum(p.numel() for p in UNet(NET).parameters()) / 1e6
    assert f"{n:.2g} M weights, {short.images:,} images in batches of {TINY.batch}, on cpu" in said
    assert "fp32, channels_last" in said and "images a second, so about 1 minute to go" in said
    train(short, tmp_path / "silent", device="cpu", progress=False)
    assert not capsys.readouterr().err


@pytest.mark.parametrize("mode", (torch.no_grad, torch.inference_mode))
def test_training_whatever_grad_mode_the_caller_is_in(tmp_path: Path, mode: Callable) -> None:
    short = dataclasses.replace(TINY, images=64)
    expected = train(short, tmp_path / "a", device="cpu", progress=False)
    with mode(): model = train(short, tmp_path / "b", device="cpu", progress=False)
    for p, q in zip(model.parameters(), expected.parameters(), strict=True): assert torch.equal(p, q)


def test_a_diverging_run_says_so_and_keeps_its_last_state(tmp_path: Path) -> None:
    go(tmp_path, stop_at=128)
    before = (tmp_path / "state.safetensors").read_bytes()
    sick = dataclasses.replace(TINY, log_every=32)

    def broken(run: Run) -> None:
        with torch.no_grad(): run.weights[0].fill_(math.nan)
    with pytest.raises(
        ValueError, match="the loss is nan after 160 images.*expected finite.*smaller lr"
    ):
        train(sick, tmp_path, resume=True, progress=False, watch=broken)
    assert (tmp_path / "state.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    "change, named",
    [
        (dict(data="mnist"), "data is 'mnist'.*digits"),
        (dict(images=0), "images is 0"),
        (dict(batch=0), "batch"),
        (dict(lr=0.0), "lr is 0.0: expected a positive"),
        (dict(lr=math.nan), "lr is nan"),
        (dict(decay=1.5), r"decay is 1.5.*\[0, 1\]"),
        (dict(ema=1.0), "ema"),
        (dict(clip=-1.0), "clip"),
        (dict(warmup=-1), "warmup"),
        (dict(seed=-1), "seed is -1"),
        (dict(stages=(0,)), "stages"),
        (dict(betas=(0.9,)), "betas"),
        (dict(betas=(0.9, 1.0)), "betas"),
        (dict(precision="fp8"), "precision is 'fp8'"),
        (dict(times="normal"), "times is 'normal'"),
        (dict(drop=1.5), "drop"),
        (dict(log_every=0), "log_every"),
        (dict(weight_decay=-1.0), "weight_decay"),
    ],
    ids=lambda v: str(v)[:20],
)
def test_bad_settings_are_named(change: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named): dataclasses.replace(TINY, **change)


@pytest.mark.parametrize(
    "net, named",
    [
        (dataclasses.replace(NET, n_labels=5), "net.n_labels is 5: expected 10"),
        (
            dataclasses.replace(NET, shape=(3, 8, 8)),
            r"net.shape is \(3, 8, 8\): expected.*\(1, 8, 8\)",
        ),
    ],
    ids=["labels", "shape"],
)
def test_data_that_do_not_fit_are_refused_before_anything_is_written(
    net: UNetConfig, named: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=named):
        go(tmp_path / "run", dataclasses.replace(TINY, net=net))
    assert not (tmp_path / "run").exists()


def test_a_batch_that_processes_cannot_share_is_refused() -> None:
    three = type("Three", (), dict(device=torch.device("cpu"), num_processes=3, process_index=0))()
    with pytest.raises(ValueError, match="batch is 32: expected a multiple of the 3 processes"):
        Run(TINY, Path("nowhere"), three)


def test_other_bad_input() -> None:
    for args in ((0, 4, 0, 0), (10, 0, 0, 0), (10, 4, -1, 0)):
        with pytest.raises(ValueError, match="expected a whole number"): batch_indices(*args)
    with pytest.raises(ValueError, match="precision is 'half': expected one of auto, bf16, fp16, fp32"):
        autocast(torch.device("cpu"), "half")
    with pytest.raises(ValueError, match="kind|target"):
        dataclasses.replace(TINY, kind="noise").build()


# ---- a model to begin from -------------------------------------------------------------------------------------------

def test_a_run_begins_from_a_model_and_goes_on_without_its_file(whole: Path, tmp_path: Path) -> None:
    file = tmp_path / "begin.safetensors"
    save(load(whole / "model.safetensors"), file)
    config = dataclasses.replace(TINY, start=str(file), stages=())
    run, model = fresh(config), load(file)
    assert (
        all(
            torch.equal(a, b)
            for a, b in zip(run.model.parameters(), model.parameters(), strict=True)
        )
        and run.model.training
    )
    go(tmp_path / "a", config)
    go(tmp_path / "b", config, stop_at=192)
    file.unlink()
    go(tmp_path / "b", config, resume=True)
    same(tmp_path / "a", tmp_path / "b")
    assert float(rows(tmp_path / "a")[0]["loss"]) < float(rows(whole)[0]["loss"])


def test_it_has_to_be_the_same_model(whole: Path) -> None:
    start = str(whole / "model.safetensors")
    for other in (dict(net=dataclasses.replace(NET, widths=(64,))), dict(kind="eps")):
        with pytest.raises(ValueError, match="start is .*expected"):
            dataclasses.replace(TINY, start=start, **other).build()
    with pytest.raises(ValueError, match="no model 'nothing'"):
        dataclasses.replace(TINY, start="nothing").build()


# ---- what is drawn ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("n, batch", [(10, 4), (7, 7), (5, 12), (1500, 128)])
def test_every_picture_comes_once_an_epoch(n: int, batch: int) -> None:
    steps = -(-3 * n // batch)
    seen = torch.cat([batch_indices(n, batch, k, seed=0) for k in range(steps)])
    assert all(len(batch_indices(n, batch, k, seed=0)) == batch for k in range(steps))
    epochs = seen[: 3 * n].reshape(3, n)
    assert all(torch.equal(e.sort().values, torch.arange(n)) for e in epochs)
    assert not torch.equal(epochs[0], epochs[1]) and not torch.equal(
        batch_indices(1500, 128, 0, seed=0), batch_indices(1500, 128, 0, seed=1)
    )


def test_generators_differ_with_every_number_and_repeat() -> None:
    draw = lambda *numbers: torch.rand(4, generator=seeded("cpu", *numbers)).tolist()
    numbers = [(0, 2, 0, 0), (1, 2, 0, 0), (0, 3, 0, 0), (0, 2, 1, 0), (0, 2, 0, 1), (0, 1, 2, 0)]
    assert len({tuple(draw(*n)) for n in numbers}) == len(numbers)
    assert draw(0, 2, 5, 1) == draw(0, 2, 5, 1)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_step_depends_on_nothing_but_its_number(dropout: float) -> None:
    config, losses = dataclasses.replace(TINY, net=dataclasses.replace(NET, dropout=dropout), flip=True), []
    for k in range(2):
        run = fresh(config)
        torch.manual_seed(k)
        before, run.steps = torch.get_rng_state(), 17
        run.step()
        assert torch.equal(torch.get_rng_state(), before), "the global generator is nobody else's"
        losses.append(run.recent[0])
        assert run.steps == 18
    assert torch.equal(*losses)


def test_times_are_logit_normal_or_uniform_one_in_each_cell() -> None:
    n, g = 4096, torch.Generator().manual_seed(0)
    t = TINY.draw_times(n, g).double()
    normal = torch.special.ndtr(t.logit())
    for u in (normal, dataclasses.replace(TINY, times="uniform").draw_times(n, g).double()):
        assert (
            torch.equal((u * n).floor().clamp(0, n - 1).unique().long(), torch.arange(n))
            or (u.sort().values - (torch.arange(n) + 0.5) / n).abs().max() < 1.1 / n
        )
    assert 0 < t.min() and t.max() < 1 and t.logit().std() == pytest.approx(1, abs=0.01)


def test_mixed_times_are_uniform_in_15_of_100_and_else_logit_normal() -> None:
    n, g = 20_000, torch.Generator().manual_seed(0)
    t = dataclasses.replace(TINY, times="mixed").draw_times(n, g).double().sort().values
    fraction = 0.15 * t + 0.85 * torch.special.ndtr(t.logit())  # below t
    assert (fraction - (torch.arange(n) + 0.5) / n).abs().max() < 4 / n
    batch = torch.stack([dataclasses.replace(TINY, times="mixed").draw_times(20, g) for _ in range(2000)])
    below = lambda x: 0.15 * x + 0.85 * torch.special.ndtr(torch.tensor(x).logit())
    assert (batch < 0.1).double().mean() == pytest.approx(float(below(0.1)), abs=0.003)


@pytest.mark.parametrize("drop, share", [(0.0, 0.0), (0.25, 0.25), (1.0, 1.0)])
def test_labels_are_dropped_as_often_as_asked(drop: float, share: float) -> None:
    seen = []

    class Spy(torch.nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            seen.append(y)
            return x
    x, y = digits().batch(slice(1000))
    dataclasses.replace(TINY, drop=drop).loss(Denoiser(Spy(), Linear()), x, y, torch.Generator().manual_seed(0))
    assert (seen[0] == 10).float().mean() == pytest.approx(share, abs=0.05)
    assert torch.equal(torch.where(seen[0] == 10, y, seen[0]), y)


# ---- what is computed ------------------------------------------------------------------------------------------------

def test_the_average_is_the_formula() -> None:
    run = fresh(dataclasses.replace(TINY, ema=0.5, lr=0.02))
    expected = None
    for n in range(12):
        run.step()
        w, keep = run.model.net.stem.weight.detach().clone(), min(0.5, (1 + n) / (10 + n))
        expected = w if expected is None else keep * expected + (1 - keep) * w
    assert torch.allclose(run.average.module.net.stem.weight, expected, atol=1e-6)
    assert not torch.allclose(run.average.module.net.stem.weight, w, atol=1e-4)
    assert not run.average.training and not run.average.module.training and run.model.training


def test_the_rate_rises_stays_and_falls() -> None:
    c = DenoiserRecipe(images=100_000, batch=100, warmup=10_000, decay=0.4)
    assert c.rate(0) == pytest.approx(0.01) and c.rate(4_900) == pytest.approx(0.5)
    assert c.rate(9_900) == c.rate(60_000) == 1.0
    assert (
        c.rate(80_000) == pytest.approx(0.5)
        and c.rate(100_000) == pytest.approx(0, abs=1e-12)
        and c.rate(10**6) == pytest.approx(0, abs=1e-12)
    )
    assert dataclasses.replace(c, decay=0.0).rate(99_999) == 1.0 and dataclasses.replace(c, warmup=0).rate(0) == 1.0


def test_long_gradients_are_shortened() -> None:
    run = fresh(dataclasses.replace(TINY, clip=1e-3))
    run.step()
    assert run.recent[0][1] > 1e-2, "metrics.csv holds the length before"
    assert torch.stack([p.grad.norm() for p in run.weights]).norm() <= 1.001e-3


def test_the_floor_is_zero_where_the_label_tells_the_picture() -> None:
    two = Images(digits().x[[0, 1]], torch.tensor([0, 1]), tuple("0123456789"))
    known, half, unknown = (dataclasses.replace(TINY, drop=d).floor(two) for d in (0.0, 0.5, 1.0))
    assert known == pytest.approx(0, abs=1e-9) and unknown > 1e-3 and half == pytest.approx(unknown / 2, rel=1e-6)
    assert dataclasses.replace(TINY, net=dataclasses.replace(NET, n_labels=0)).floor(
        two
    ) == pytest.approx(unknown, rel=1e-6)
    assert dataclasses.replace(TINY, kind="eps").floor(two) is None
    assert (
        TINY.floor(
            Images(
                torch.zeros(5001, 1, 1, 1, dtype=torch.uint8),
                torch.zeros(5001, dtype=torch.int64),
                ("a",),
            )
        )
        is None
    )
    assert TINY.floor(digits()) == TINY.floor(digits()), "no chance in it"


def test_no_model_is_below_the_floor_of_digits(whole: Path) -> None:
    floor = TINY.floor(digits())
    assert 0.1 < floor < 0.5
    assert all(float(row["loss"]) > floor for row in rows(whole))


def test_the_ladder_rises() -> None:
    seen = [n for n, _ in ladder()]
    assert seen == sorted(seen) and all(picture.size[0] > 100 for _, picture in ladder())


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_being_written_down(name: str) -> None:
    c = PRESETS[name]
    assert with_options(type(c)(), as_dict(c)) == c
    with torch.device("meta"): net = UNet(c.net)
    x = torch.zeros(2, *c.net.shape, device="meta")
    assert net(x, torch.zeros(2, device="meta"), torch.zeros(2, dtype=torch.int64, device="meta")).shape == x.shape


# ---- processes that end, and processes that share --------------------------------------------------------------------

ARGUMENTS = [
    "train",
    "digits",
    "--net.widths",
    "32",
    "--net.patch",
    "4",
    "--net.attention",
    "",
    "--images",
    "1280",
    "--batch",
    "16",
    "--warmup",
    "64",
    "--log_every",
    "48",
    "--save_every",
    "32",
    "--stages",
    "320,960",
    "--precision",
    "fp32",
]
DRIVER = '''
"Trains by the command line in children of one process that has imported everything."
import json, os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from diffusion_course import training
from diffusion_course.cli import main
from diffusion_course.images import digits
digits()
out, arguments, chance = Path(sys.argv[1]), json.loads(sys.argv[2]), random.Random(0)

def child(folder, *more):
    pid = os.fork()
    if pid: return pid
    try: code = main([*arguments, "--folder", str(out / folder), *more])
    except SystemExit as end: code = end.code
    except KeyboardInterrupt: code = 130
    except BaseException as error: print(repr(error), file=sys.stderr); code = 99
    os._exit(code)

def status(pid): return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

begin = time.monotonic()
assert status(child("whole")) == 0
took = time.monotonic() - begin
kills = again = 0
while kills < 20:
    pid = child(f"killed{again}", "--resume")
    time.sleep(chance.uniform(0.05, 0.4) * took)
    done, ended = os.waitpid(pid, os.WNOHANG)
    if done:
        assert os.waitstatus_to_exitcode(ended) == 0
        again += 1
        continue
    os.kill(pid, signal.SIGKILL)
    assert status(pid) == -signal.SIGKILL
    kills += 1
assert status(child(f"killed{again}", "--resume")) == 0
codes = {}
for sign in (signal.SIGTERM, signal.SIGINT):
    state, codes[sign.name] = out / sign.name / "state.safetensors", []
    written = lambda: state.stat().st_mtime_ns if state.exists() else None
    for _ in range(2):
        before, pid = written(), child(sign.name, "--resume")
        while written() == before:
            assert os.waitpid(pid, os.WNOHANG)[0] == 0, "it ended by itself"
            time.sleep(0.005)
        os.kill(pid, sign)
        codes[sign.name].append(status(pid))
    assert status(child(sign.name, "--resume")) == 0
print(json.dumps(dict(kills=kills, runs=again + 1, codes=codes)))
'''


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """Folders of runs that were killed twenty times, or asked to stop, and resumed each time; and what happened."""
    if not hasattr(os, "fork"): pytest.skip("no fork here")
    folder = tmp_path_factory.mktemp("ended")
    (folder / "driver.py").write_text(DRIVER, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, folder / "driver.py", folder, json.dumps(ARGUMENTS)],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_twenty_kills_change_nothing(ended: tuple[Path, dict]) -> None:
    folder, said = ended
    assert said["kills"] == 20
    for k in range(said["runs"]): same(folder / "whole", folder / f"killed{k}")


@pytest.mark.slow
@pytest.mark.parametrize("sign, code", [("SIGTERM", 143), ("SIGINT", 130)])
def test_asked_to_stop_it_saves_and_goes_on_exactly(sign: str, code: int, ended: tuple[Path, dict]) -> None:
    folder, said = ended
    same(folder / "whole", folder / sign)
    assert said["codes"][sign] == [code, code]


SHARED = '''
"""Trains three times by the command line in each of the processes that `accelerate launch` starts, and notes which
pictures each sees."""
import json, os, sys
import torch
torch.set_num_threads(1)
from diffusion_course import images
from diffusion_course.cli import main
rank, out, arguments = int(os.environ["RANK"]), sys.argv[1], json.loads(sys.argv[2])
seen, batch = [], images.Images.batch

def noted(self, i, flip=None):
    if isinstance(i, torch.Tensor) and len(i) < 100: seen.append(i.tolist())
    return batch(self, i, flip)

images.Images.batch = noted
for folder, more in (("a", ["--images", "320"]), ("b", ["--images", "160"]), ("b", ["--images", "320", "--resume"])):
    seen.clear()
    assert main([*arguments, "--folder", f"{out}/{folder}", *more]) == 0
    with open(f"{out}/{folder}{rank}.json", "w", encoding="utf-8") as f: json.dump(seen, f)
'''


@pytest.mark.slow
def test_two_processes_share_the_pictures_and_go_on_exactly(tmp_path: Path) -> None:
    (tmp_path / "shared.py").write_text(SHARED, encoding="utf-8")
    arguments = [
        *ARGUMENTS[:8],
        "--batch",
        "32",
        "--log_every",
        "48",
        "--save_every",
        "96",
        "--decay",
        "0",
        "--precision",
        "fp32",
    ]
    # With --cpu in place of --multi_gpu it would start one process, whatever number it is told.
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--num_processes",
        "2",
        "--main_process_port",
        "0",
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*launch, tmp_path / "shared.py", tmp_path, json.dumps(arguments)],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env=env,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    same(tmp_path / "a", tmp_path / "b")
    first, second = (json.loads((tmp_path / f"a{rank}.json").read_text("utf-8")) for rank in (0, 1))
    for step, (i, j) in enumerate(zip(first, second, strict=True)):
        assert sorted(i + j) == sorted(batch_indices(1500, 32, step, 0).tolist()) and not set(i) & set(j)
    assert info(tmp_path / "a" / "model.safetensors")["processes"] == 2


# ---- the presets -----------------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_digits_are_recognisable(tmp_path: Path) -> None:
    from diffusion_course.guidance import classifier_free
    from diffusion_course.samplers import dpmpp_2m, sample, uniform_grid
    torch.set_num_threads(2)
    model = train(PRESETS["digits"], tmp_path, progress=False)
    y = torch.arange(10).repeat_interleave(30)
    x = torch.randn(300, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    x = sample(classifier_free(model, 1.5), x, uniform_grid(20), dpmpp_2m(), y=y)
    assert (digit_classifier()(x) == y).float().mean() >= 0.9
    assert sum(p.numel() for p in model.parameters()) < 600_000
    assert training.PRESETS["digits"].flip is False, "a mirrored 2 is no digit"


@pytest.mark.parametrize("wrong, message", [
    (dict(kind="bogus"), "kind is 'bogus': expected one of"),
    (dict(lr="fast"), "lr is 'fast': expected a positive number"),
    (dict(images="many"), "images is 'many': expected a whole number, 1 or more"),
    (dict(data="cifar100"), "data is 'cifar100': expected 'cifar10' or 'digits'"),
])
def test_settings_that_are_none_are_named(wrong, message):
    with pytest.raises(ValueError, match=message): DenoiserRecipe(**wrong)


def test_notes_that_training_writes_itself_are_refused_before_it_begins(tmp_path):
    with pytest.raises(ValueError, match="info has loss, torch: expected other names"):
        train(DenoiserRecipe(data="digits"), tmp_path / "run", loss=1.0, torch="x")
    assert not (tmp_path / "run").exists()


def test_notes_may_not_have_the_names_that_training_writes(tmp_path):
    train(dataclasses.replace(TINY, images=64, batch=32), tmp_path / "run", progress=False, who="me")
    written = info(tmp_path / "run" / "model.safetensors").keys() - {"who", "config", "device"}
    assert written >= {"images", "loss"}  # config and device are parameters
    for name in written:
        with pytest.raises(ValueError, match=f"info has {name}"):
            train(TINY, tmp_path / "other", **{name: 1})


class Unknown(torch.nn.Linear):
    """A network that `checkpoints` does not know."""

    config = dict(in_features=64, out_features=64)


@dataclasses.dataclass(frozen=True)
class OfAnUnknown(training.Recipe):
    """Trains one."""

    def build(self): return Unknown(64, 64)
    def loss(self, model, x, y, generator): return model(x.flatten(1)).square().mean()


@pytest.mark.parametrize("recipe, info, message", [
    (OfAnUnknown(data="digits"), {}, "a network or schedule 'Unknown': expected one of"),
    (TINY, dict(note=object()), "settings or info can't be written .*: expected what"),
], ids=["network", "note"])
def test_what_could_not_be_saved_is_not_trained(recipe, info, message, tmp_path, monkeypatch):
    monkeypatch.setattr(training.Run, "step", lambda run: pytest.fail("a step was made"))
    with pytest.raises(ValueError, match=message):
        train(recipe, tmp_path / "run", progress=False, device="cpu", **info)
    assert not (tmp_path / "run").exists()
