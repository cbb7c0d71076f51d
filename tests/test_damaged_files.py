"""Files that were cut off, or in which bits have flipped: a clear error that names the file, or the right content."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import rng
from PIL import Image
from torch import Tensor

import diffusion_course as dc
from diffusion_course import images
from diffusion_course.checkpoints import read_tensors, write_tensors
from diffusion_course.folders import ATTRIBUTES, read_attributes, read_folder, read_image
from diffusion_course.runs import Metrics, can_resume, saved_config
from diffusion_course.training import COLUMNS, DenoiserRecipe
from diffusion_course.unet import UNetConfig

# ---- how a file is damaged -------------------------------------------------------------------------------------------


def cuts(data: bytes, whole: int = 0) -> Iterator[bytes]:
    """A file cut off at every hundredth, and at each of its first bytes up to `whole`."""
    places = {len(data) * k // 100 for k in range(100)} | set(range(min(whole, len(data))))
    for place in sorted(places):
        yield data[:place]


def flips(data: bytes, n: int, first: int | None = None) -> Iterator[bytes]:
    """n copies with one bit flipped, within the first bytes where that is asked for; the same at each run."""
    random_ = random.Random(len(data) + n)
    for _ in range(n):
        damaged = bytearray(data)
        damaged[random_.randrange(first or len(data))] ^= 1 << random_.randrange(8)
        yield bytes(damaged)


def survives(
    path: Path,
    read: Callable[[], Any],
    right: Callable[[Any], bool] | None,
    damaged: Iterator[bytes],
) -> None:
    """Each damaged version is refused by name, or read as it should be; the file itself stays as it is."""
    data = path.read_bytes()
    for version in damaged:
        path.write_bytes(version)
        try:
            found = read()
        except (ValueError, FileNotFoundError) as error:
            assert path.name in str(error) and (
                "expected" in str(error) or "can't be read" in str(error)
            ), error
        else:
            assert right is None or right(found), (
                f"{len(version)} of {len(data)} bytes were taken for the whole"
            )
        assert path.read_bytes() == version, "a damaged file is not ours to replace"
    path.write_bytes(data)


# ---- checkpoints -----------------------------------------------------------------------------------------------------


def test_tensors(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    tensors = {
        "a": torch.randn(3, 40, generator=rng()),
        "b": torch.arange(5),
        "c": torch.ones((), dtype=torch.bfloat16),
    }
    write_tensors(path, tensors, dict(note="é", numbers=[1, 2.5]))
    data = path.read_bytes()
    header = len(data) - 3 * 40 * 4

    def right(found: tuple[dict[str, Tensor], dict]) -> bool:
        return (
            found[1] == dict(note="é", numbers=[1, 2.5])
            and found[0].keys() == tensors.keys()
            and all(torch.equal(found[0][k], v) for k, v in tensors.items())
        )

    assert right(read_tensors(path))
    survives(path, lambda: read_tensors(path), right, cuts(data, header))
    survives(path, lambda: read_tensors(path), right, flips(data, 300))
    survives(path, lambda: read_tensors(path), right, flips(data, 300, header))


def test_models(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    model = dc.Denoiser(dc.MLP(width=8, depth=1, n_labels=2), dc.VariancePreserving())
    dc.save(model, path, note="x")
    data, weights = path.read_bytes(), dc.load(path).state_dict()

    def right(found: dc.Denoiser) -> bool:
        same = all(torch.equal(v, weights[k]) for k, v in found.state_dict().items())
        return same and found.kind == "velocity" and repr(found.schedule) == repr(model.schedule)

    survives(path, lambda: dc.load(path), right, cuts(data, 200))
    survives(path, lambda: dc.load(path), right, flips(data, 150))
    survives(path, lambda: dc.load(path), right, flips(data, 150, 900))


def test_files_from_before_there_were_checksums_are_read() -> None:
    assert dc.load("digits").net.n_labels == 10


# ---- the state of a run ----------------------------------------------------------------------------------------------


def test_states_of_runs(tmp_path: Path) -> None:
    recipe = DenoiserRecipe(
        data="digits",
        net=UNetConfig(shape=(1, 8, 8), widths=(16,), attention=(), head=16, patch=1, n_labels=10),
    )
    path = tmp_path / "state.safetensors"
    from diffusion_course.options import as_dict

    write_tensors(
        path, {"model.a": torch.ones(8)}, dict(run=1, steps=3, seconds=1.0, config=as_dict(recipe))
    )
    data = path.read_bytes()
    for damaged in (cuts(data, 100), flips(data, 150)):
        survives(
            path, lambda: saved_config(recipe, tmp_path), lambda found: found == recipe, damaged
        )
    for version in flips(data, 20):  # it is never taken for a folder without a run
        path.write_bytes(version)
        with pytest.raises(ValueError, match=r"state\.safetensors"):
            can_resume(recipe, tmp_path, resume=True)


def test_tables_of_metrics(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    metrics = Metrics(path, COLUMNS, 0)
    for k in range(1, 30):
        metrics.add(
            images=128 * k, loss=0.5, grad_norm=1.0, lr=1e-3, images_per_second=9.0, seconds=k
        )
    data = path.read_bytes()
    for damaged in (cuts(data), flips(data, 200)):
        survives(path, metrics.rows, lambda rows: len(rows) <= 29, damaged)
    path.write_bytes(data.replace(b"0.5", b'"' + b"5" * 200_000 + b'"', 1))
    with pytest.raises(ValueError, match=r"metrics\.csv is damaged"):
        metrics.rows()


# ---- images ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "gif", "bmp", "tif"])
def test_image_files(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"picture.{kind}"
    pixels = (np.random.default_rng(0).random((24, 24, 3)) * 255).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    data, whole = path.read_bytes(), read_image(path, 24)

    def right(found: np.ndarray) -> bool:
        return found.shape == (3, 24, 24) and found.dtype == np.uint8

    def same(found: np.ndarray) -> bool:
        return np.array_equal(found, whole)

    checked = kind == "png"  # whose parts have checksums
    survives(path, lambda: read_image(path, 24), same if checked else right, cuts(data, 40))
    survives(path, lambda: read_image(path, 24), same if checked else right, flips(data, 60))
    survives(path, lambda: read_image(path, 24), right, flips(data, 60, 40))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two labels of 15 small images each, described by a table."""
    root = tmp_path / "own"
    rows = ["file,size,weight"]
    for label in ("a", "b"):
        (root / label).mkdir(parents=True)
        for k in range(15):
            Image.fromarray((np.random.default_rng(k).random((8, 8)) * 255).astype(np.uint8)).save(
                root / label / f"{k}.png"
            )
            rows.append(f"{label}/{k}.png,{k / 10},{'' if k % 5 else 1}")
    (root / ATTRIBUTES).write_text("\n".join(rows) + "\n", encoding="utf-8")
    return root


def test_what_was_read_of_a_folder_is_read_again_where_it_is_damaged(folder: Path) -> None:
    whole = read_folder(folder, 8, progress=False)
    x, y = whole.x.clone(), whole.y.clone()  # they lie in the file
    kept = next((folder / ".diffusion_course").glob("8x8*.safetensors"))
    data = kept.read_bytes()
    for version in [*flips(data, 30), *list(cuts(data))[::10]]:
        kept.write_bytes(version)
        again = read_folder(folder, 8, progress=False)
        assert torch.equal(again.x, x) and torch.equal(again.y, y) and again.names == whole.names


def test_tables_of_attributes(folder: Path) -> None:
    path = folder / ATTRIBUTES
    data = path.read_bytes()
    columns, whole = read_attributes(folder)

    def right(found: tuple) -> bool:
        return len(found[0]) >= 1 and all(len(row) == len(found[0]) for row in found[1].values())

    for damaged in (cuts(data, 40), flips(data, 300)):
        survives(path, lambda: read_attributes(folder), right, damaged)
    assert read_attributes(folder)[0] == columns and len(whole) == 30


@pytest.mark.parametrize(
    "text, says",
    [
        ("file,size\na/0.png,inf\n", "line 2: inf is infinite"),
        ("file,size\na/0.png\n", "line 2: a number is missing"),
        ('file,size\na/0.png,"' + "1" * 200_000 + '"\n', "field larger than field limit"),
        ("", "has columns : expected file"),
    ],
)
def test_attributes_that_are_no_numbers(text: str, says: str, folder: Path) -> None:
    (folder / ATTRIBUTES).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"attributes\.csv.*{says}"):
        read_attributes(folder)


# ---- CIFAR-10 --------------------------------------------------------------------------------------------------------


def test_binaries_of_cifar10(tmp_path: Path) -> None:
    path = tmp_path / "test_batch.bin"
    records = np.random.default_rng(0).integers(0, 256, (10_000, 3073), dtype=np.uint8)
    records[:, 0] %= 10
    data = records.tobytes()
    path.write_bytes(data)

    def read() -> images.Images:
        return images.cifar10("test", tmp_path)

    assert len(read()) == 10_000
    survives(
        path, read, lambda found: False, (data[: len(data) * k // 100] for k in range(0, 100, 7))
    )
    survives(path, read, lambda found: False, iter([data + b"x"]))
    damaged = bytearray(data)
    damaged[3073 * 5] = 10
    survives(path, read, lambda found: False, iter([bytes(damaged)]))


def test_an_archive_that_is_cut_off_leaves_no_folder_behind(tmp_path: Path) -> None:
    import tarfile

    inside = tmp_path / "cifar-10-batches-bin"
    inside.mkdir()
    for k in range(3):
        (inside / f"data_batch_{k}.bin").write_bytes(random.Random(k).randbytes(20_000))
    (inside / "test_batch.bin").write_bytes(b"9" * 20_000)
    archive = tmp_path / "archive" / "cifar-10-binary.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(inside, "cifar-10-batches-bin")
    shutil.rmtree(inside)
    data = archive.read_bytes()
    for version in [*list(cuts(data))[::9], *flips(data, 20)]:
        archive.write_bytes(version)
        try:
            images._unpack(str(archive))
        except ValueError as error:
            assert "cifar-10-binary.tar.gz" in str(error) and "expected" in str(error)
        shutil.rmtree(archive.parent / "cifar-10-batches-bin", ignore_errors=True)
        assert [p.name for p in archive.parent.iterdir()] == [archive.name]


# ---- tables that come with the package -------------------------------------------------------------------------------


def test_tables_of_numbers_are_whole() -> None:
    import json

    from diffusion_course.checkpoints import WEIGHTS

    for path in WEIGHTS.glob("*.json"):
        assert json.loads(path.read_text(encoding="utf-8")), path
