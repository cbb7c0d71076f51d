"""Images as bytes and numbers; CIFAR-10 read, fetched, cut off and resumed; spectra; the smallest network; the
classifier of digits; bad input."""
from __future__ import annotations

import errno
import hashlib
import os
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import requests
import torch
from helpers import normal, rng
from torch import Tensor

from diffusion_course import images
from diffusion_course.checkpoints import load
from diffusion_course.classifier import Classifier, ClassifierConfig
from diffusion_course.generation import as_samples, generate
from diffusion_course.images import (
    CIFAR10_NAMES,
    DenoiseNet,
    Images,
    cifar10,
    cifar10_at_hand,
    digit_classifier,
    digits,
    radial_spectrum,
    sinusoidal,
    to_bytes,
    to_float,
)
from diffusion_course.matching import fit
from diffusion_course.predictions import Denoiser
from diffusion_course.schedules import Linear

COUNT = 20  # records in a file of the small archive that stands for CIFAR-10
FILES = [*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


# ---- bytes and numbers -------------------------------------------------------------------------------

def test_bytes_survive_the_round_trip() -> None:
    every_byte = torch.arange(256).byte().reshape(1, 1, 16, 16)
    x = to_float(every_byte)
    assert x.dtype == torch.float32 and x.min() == -1 and x.max() == 1
    for y in (x, x.double(), x.half()): assert torch.equal(to_bytes(y), every_byte)
    rounding = (torch.rand(x.shape, generator=rng(0)) - 0.5) * 0.99 / 127.5  # less than half a step
    assert torch.equal(to_bytes(x + rounding), every_byte)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_numbers_of_any_precision_become_bytes(dtype: torch.dtype) -> None:
    x = torch.linspace(-1, 1, 999).to(dtype)
    expected = (127.5 * (x.double() + 1)).round().byte()
    assert (to_bytes(x).int() - expected.int()).abs().max() <= 1


def test_the_default_dtype_does_not_matter() -> None:
    torch.set_default_dtype(torch.float64)
    try: assert to_float(torch.zeros(2).byte()).dtype == torch.float32
    finally: torch.set_default_dtype(torch.float32)


def test_bytes_are_cut_off_not_wrapped() -> None:
    x = torch.tensor([-torch.inf, -9.0, -1.01, 1.01, 9.0, torch.inf])
    assert to_bytes(x).tolist() == [0, 0, 0, 255, 255, 255]
    assert not to_bytes(torch.zeros(2, requires_grad=True)).requires_grad


def test_numbers_from_0_to_255_are_no_images() -> None:
    x = 255 * torch.rand(2, 1, 8, 8, generator=rng())
    model = load("digits")
    for call in (
        lambda: to_bytes(x),
        lambda: radial_spectrum(x),
        lambda: generate(model, 2, 2, y=1, start=x),
        lambda: as_samples(model, x),
        lambda: digit_classifier()(x),
        lambda: Classifier(ClassifierConfig((1, 8, 8), stem=8, widths=(8,), blocks=(0,)))(x),
    ):
        with pytest.raises(ValueError, match="runs from .* to 2.*: expected -1 to 1"): call()
    assert torch.equal(to_bytes(torch.tensor([300.0])), torch.tensor([255], dtype=torch.uint8))


def test_bytes_bad_input() -> None:
    with pytest.raises(ValueError, match="torch.float32: expected torch.uint8"):
        to_float(torch.zeros(2))
    with pytest.raises(ValueError, match="list: expected torch.uint8"): to_float([1, 2])
    with pytest.raises(ValueError, match="torch.uint8: expected floating-point"):
        to_bytes(torch.zeros(2).byte())
    said = "x holds 2 values that are NaN: expected numbers from -1 to 1"
    for dtype in DTYPES:
        with pytest.raises(ValueError, match=said):
            to_bytes(torch.tensor([0, torch.nan, 1, torch.nan], dtype=dtype))


# ---- labelled images ---------------------------------------------------------------------------------

def six() -> Images:
    """Six small images of three classes."""
    x = torch.randint(0, 256, (6, 3, 4, 5), generator=rng(1)).byte()
    return Images(x, torch.arange(6) % 3, ("a", "b", "c"))


def test_batch_mirrors_those_asked_for() -> None:
    data = six()
    flip = torch.tensor([True, False, True])
    x, y = data.batch([4, 0, 2], flip)
    assert y.tolist() == [1, 0, 2] and x.shape == (3, 3, 4, 5) and x.dtype == torch.float32
    plain, _ = data.batch(torch.tensor([4, 0, 2]))
    assert torch.equal(x, torch.stack([plain[0].flip(2), plain[1], plain[2].flip(2)]))
    assert torch.equal(to_bytes(plain), data.x[[4, 0, 2]])
    assert torch.equal(data.batch(slice(2, 4))[0], to_float(data.x[2:4]))
    assert len(data.to("cpu")) == len(data) == 6


ORDER = np.array([2, 0, 4])


@pytest.mark.parametrize(
    "i",
    [
        [4, 0, 2],
        (4, 0, 2),
        range(4, -1, -2),
        ORDER[::-1],
        ORDER[::-1].astype(np.uint8),
        ORDER[::-1].astype(np.int32),
        torch.tensor([4, 0, 2], dtype=torch.uint8),
        torch.tensor([4, 0, 2], dtype=torch.int16),
        [torch.tensor(4), 0, -4],
        np.array([4.0, 0.0, 2.0]),
    ],
    ids=lambda i: f"{type(i).__name__} {getattr(i, 'dtype', '')}",
)
def test_batch_takes_indices_of_any_kind(i: object) -> None:
    data = six()
    expected = [4, 2, 0] if isinstance(i, range) else [4, 0, 2]
    x, y = data.batch(i, np.array([True, False, False]))
    assert torch.equal(x[1:], to_float(data.x[expected[1:]])) and torch.equal(
        x[0], to_float(data.x[4].flip(2))
    )
    assert torch.equal(y, data.y[expected])


def test_batch_takes_masks_and_no_index_at_all() -> None:
    data = six()
    mask = [True, False, False, False, True, False]
    for i in (mask, np.array(mask), torch.tensor(mask)):
        assert torch.equal(data.batch(i)[0], to_float(data.x[[0, 4]]))
    for i in ([], np.zeros(0, int), slice(0)):
        x, y = data.batch(i)
        assert x.shape == (0, 3, 4, 5) and y.shape == (0,)


@pytest.mark.parametrize("i", [[0.5], "abc", None, [None], torch.tensor([0.0, 1.5]), {1: 2}], ids=repr)
def test_batch_refuses_what_is_no_index(i: object) -> None:
    with pytest.raises(ValueError, match="i is .*: expected whole numbers"): six().batch(i)


def test_batch_refuses_images_that_are_not_there() -> None:
    with pytest.raises(IndexError): six().batch([6])


@pytest.mark.parametrize(
    "flip",
    [
        torch.tensor([True]),
        torch.tensor([1, 0]),
        torch.tensor([True, False, True]),
        [1, 0],
        np.array([0.0, 1.0]),
        "ab",
    ],
    ids=str,
)
def test_batch_refuses_flips_that_do_not_fit(flip: object) -> None:
    with pytest.raises(ValueError, match=r"flip is .*: expected torch.bool \(2,\)"):
        six().batch([0, 1], flip)


def test_batch_takes_flips_as_a_list() -> None:
    data = six()
    assert torch.equal(
        data.batch([0, 1], [True, False])[0], data.batch([0, 1], torch.tensor([True, False]))[0]
    )


@pytest.mark.parametrize("y", [
    [0, 1, 2, 0, 1, 2], np.array([2, 1, 0, 2, 1, 0])[::-1], np.arange(6, dtype=np.uint16) % 3,
    *(torch.arange(6).to(dtype) % 3 for dtype in (torch.uint8, torch.int8, torch.int32, torch.float32)),
], ids=lambda y: f"{type(y).__name__} {getattr(y, 'dtype', '')}")
def test_labels_of_any_kind_become_whole_numbers(y: object) -> None:
    data = Images(six().x, y, ["a", "b", "c"])
    assert data.y.dtype == torch.int64 and data.y.tolist() == [0, 1, 2, 0, 1, 2]
    assert data.names == ("a", "b", "c")
    assert data.batch([1])[1].dtype == torch.int64


def test_labels_are_not_the_callers_memory() -> None:
    y = np.zeros(6, dtype=np.int64)
    data = Images(six().x, y, ("a", "b", "c"))
    y[:] = 9
    assert data.y.tolist() == [0] * 6


def test_images_may_come_from_numpy() -> None:
    assert torch.equal(Images(six().x.numpy()[::-1], six().y, six().names).x, six().x.flip(0))


@pytest.mark.parametrize(("change", "said"), [
    (lambda x, y: (x.float(), y), "x is torch.float32 of shape .*: expected torch.uint8"),
    (lambda x, y: (x[0], y), r"expected torch.uint8 \(n, C, H, W\)"),
    (lambda x, y: (x.numpy().astype(int), y), r"expected torch.uint8 \(n, C, H, W\)"),
    (lambda x, y: (x.tolist(), y), r"x is list: expected torch.uint8 \(n, C, H, W\)"),
    (lambda x, y: (x, y[:3]), r"y has shape \(3,\): expected \(6,\)"),
    (lambda x, y: (x, y[:, None]), r"y has shape \(6, 1\): expected \(6,\)"),
    (lambda x, y: (x, y + 1), "labels 1 to 3: expected 0 to 2"),
    (lambda x, y: (x, y - 1), "labels -1 to 1: expected 0 to 2"),
    (lambda x, y: (x, y + 0.5), r"y is \[0.5, .*: expected whole numbers"),
    (lambda x, y: (x, list("abcabc")), r"y is \['a', .*: expected whole numbers"),
    (lambda x, y: (x, None), "y is None: expected whole numbers"),
])
def test_images_bad_input(change: Callable, said: str) -> None:
    with pytest.raises(ValueError, match=said): Images(*change(six().x, six().y), six().names)


def test_digits() -> None:
    train, test = digits(), digits("test")
    assert (len(train), len(test)) == (1500, 297) and train.x.shape[1:] == (1, 8, 8)
    assert train.x.min() == 0 and train.x.max() == 255 and train.names[7] == "7"
    assert set(train.y.tolist()) == set(test.y.tolist()) == set(range(10))
    with pytest.raises(ValueError, match="split is 'valid': expected 'train' or 'test'"):
        digits("valid")


# ---- CIFAR-10 from files -----------------------------------------------------------------------------

@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the layout of CIFAR-10, with 20 images a file, that nothing points to; the cache is empty."""
    monkeypatch.setattr(images, "_RECORDS", COUNT)
    monkeypatch.setattr(images.pooch, "os_cache", lambda name: tmp_path / "cache" / name)
    monkeypatch.delenv("DIFFUSION_COURSE_DATA", raising=False)
    folder = tmp_path / "elsewhere" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in FILES:
        records = random.integers(0, 256, (COUNT, 3073), dtype=np.uint8)
        records[:, 0] %= 10
        (folder / name).write_bytes(records.tobytes())
    return folder


def test_cifar10_reads_records(small: Path) -> None:
    train, test = cifar10(folder=small), cifar10("test", folder=str(small))
    assert (len(train), len(test)) == (5 * COUNT, COUNT) and train.names == CIFAR10_NAMES
    record = (small / "data_batch_2.bin").read_bytes()[3073 * 4: 3073 * 5]
    assert train.y[COUNT + 4] == record[0]
    for c in range(3):
        for i, j in ((0, 0), (3, 17), (31, 31)):
            assert train.x[COUNT + 4, c, i, j] == record[1 + 1024 * c + 32 * i + j]


def test_cifar10_is_looked_for_in_order(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(cifar10("test", folder=small.parent)) == COUNT  # the folder around it will do
    monkeypatch.setenv("DIFFUSION_COURSE_DATA", str(small))
    assert len(cifar10("test")) == COUNT
    with pytest.raises(
        FileNotFoundError, match="no CIFAR-10 in .*nowhere: expected a folder with data_batch_1.bin"
    ):
        cifar10("test", folder=small / "nowhere")
    monkeypatch.setenv("DIFFUSION_COURSE_DATA", str(small / "nowhere"))
    with pytest.raises(FileNotFoundError, match="no CIFAR-10 in .*nowhere"): cifar10("test")
    assert len(cifar10("test", folder=small)) == COUNT, "an argument counts before the environment"
    monkeypatch.delenv("DIFFUSION_COURSE_DATA")
    with pytest.raises(FileNotFoundError, match="DIFFUSION_COURSE_DATA"):
        cifar10("test", download=False)
    cache = images.pooch.os_cache("diffusion_course")
    cache.mkdir(parents=True)
    os.rename(small, cache / small.name)
    assert len(cifar10("test", download=False)) == COUNT


def test_cifar10_damaged_files(small: Path) -> None:
    file = small / "data_batch_3.bin"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"data_batch_3.bin has 61,459 bytes: expected 61,460"):
        cifar10(folder=small)
    file.write_bytes(whole[: 3073 * 7] + b"\x0b" + whole[3073 * 7 + 1:])
    with pytest.raises(ValueError, match="data_batch_3.bin holds a label 11: expected 0 to 9"):
        cifar10(folder=small)
    file.unlink()
    with pytest.raises(FileNotFoundError, match="no data_batch_3.bin in .*: expected all six files"):
        cifar10(folder=small)
    assert len(cifar10("test", folder=small)) == COUNT
    with pytest.raises(ValueError, match="split is 'both'"): cifar10("both", folder=small)


def test_at_hand_never_downloads(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(requests, "get", lambda *_, **__: pytest.fail("it asked the network"))
    assert cifar10_at_hand() is None
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "cifar10()" in said and "170 MB" in said
    monkeypatch.setenv("DIFFUSION_COURSE_DATA", str(small))
    assert len(cifar10_at_hand()) == 5 * COUNT and len(cifar10_at_hand("test")) == COUNT
    assert not capsys.readouterr().out


def test_the_real_cifar10() -> None:
    try: data = cifar10(download=False)
    except FileNotFoundError:
        pytest.skip("CIFAR-10 isn't on this machine: set DIFFUSION_COURSE_DATA or run cifar10() once")
    assert data.x.shape == (50_000, 3, 32, 32) and data.y.bincount().tolist() == [5000] * 10
    means = [data.x[:, c].sum().item() / (50_000 * 1024 * 255) for c in range(3)]
    assert means == pytest.approx([0.4914, 0.4822, 0.4465], abs=1e-4)


# ---- CIFAR-10 from the network -----------------------------------------------------------------------

class Server:
    """Serves one file over HTTP.

    Attributes:
        cut: ends the next answer after that many bytes.
        ranges: whether the header Range is understood.
        requests: that header of each request.
    """

    def __init__(self, payload: bytes):
        self.payload = payload
        self.cut: int | None = None
        self.ranges = True
        self.requests: list[str | None] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None: outer.answer(self)
            def log_message(self, *_) -> None: pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        header = request.headers.get("Range")
        self.requests.append(header)
        partial = bool(header) and self.ranges
        start = int(header.removeprefix("bytes=").removesuffix("-")) if partial else 0
        if start >= len(self.payload): return request.send_error(416)
        request.send_response(206 if partial else 200)
        request.send_header("Content-Length", str(len(self.payload) - start))
        request.end_headers()
        end, self.cut = self.cut, None
        request.wfile.write(self.payload[start:end])
        request.close_connection = True

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@pytest.fixture
def server(small: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    archive = small.parent / "archive.tar.gz"
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar: tar.add(small, small.name)
    payload = archive.read_bytes()
    server = Server(payload)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(images, "CIFAR10_URL", f"http://127.0.0.1:{server.http.server_port}/archive.tar.gz")
    monkeypatch.setattr(images, "CIFAR10_MD5", hashlib.md5(payload).hexdigest())
    yield server
    server.close()


def part() -> Path:
    """What was downloaded so far."""
    return images.pooch.os_cache("diffusion_course") / "cifar-10-binary.tar.gz.part"


def test_download_once(server: Server, small: Path) -> None:
    assert torch.equal(cifar10("test").x, cifar10("test", folder=small).x)
    assert len(cifar10()) == 5 * COUNT
    assert server.requests == [None], "the second call finds what the first one fetched"
    left = sorted(p.name for p in part().parent.iterdir())
    assert left == ["cifar-10-batches-bin", "cifar-10-binary.tar.gz"]


def test_download_goes_on_where_it_was_cut_off(server: Server, small: Path) -> None:
    half = len(server.payload) // 2
    server.cut = half
    with pytest.raises(FileNotFoundError, match="goes on where it stopped"): cifar10()
    size = part().stat().st_size
    assert 0 < size <= half
    assert torch.equal(cifar10().x, cifar10(folder=small).x)
    assert server.requests == [None, f"bytes={size}-"]


def test_download_from_a_server_that_begins_anew(server: Server) -> None:
    server.cut = len(server.payload) // 2
    server.ranges = False
    with pytest.raises(FileNotFoundError): cifar10()
    assert len(cifar10()) == 5 * COUNT


def test_download_that_was_complete(server: Server) -> None:
    part().parent.mkdir(parents=True)
    part().write_bytes(server.payload)
    assert len(cifar10()) == 5 * COUNT
    assert server.requests == [f"bytes={len(server.payload)}-"]


def test_download_with_wrong_bytes_is_thrown_away(server: Server) -> None:
    part().parent.mkdir(parents=True)
    part().write_bytes(b"x" * 1000)
    with pytest.raises(ValueError, match="hash"): cifar10()
    assert not part().exists()
    assert len(cifar10()) == 5 * COUNT and server.requests[-1] is None


def test_killed_while_unpacking(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    copyfileobj = images.shutil.copyfileobj

    def killed(source: object, target: object) -> None:
        target.write(source.read(1000))
        raise KeyboardInterrupt

    monkeypatch.setattr(images.shutil, "copyfileobj", killed)
    with pytest.raises(KeyboardInterrupt): cifar10()
    with pytest.raises(FileNotFoundError): cifar10(download=False)
    monkeypatch.setattr(images.shutil, "copyfileobj", copyfileobj)
    folder = part().parent / "cifar-10-batches-bin"
    folder.mkdir()  # and somebody left half a folder there
    (folder / "data_batch_1.bin").write_bytes(b"half")
    assert len(cifar10()) == 5 * COUNT
    assert server.requests == [None], "the archive was there: nothing is fetched again"


@pytest.mark.parametrize("error", [
    requests.ConnectionError("no network"), requests.Timeout("too slow"), ConnectionResetError("reset"),
    TimeoutError("timed out"),
], ids=repr)
def test_offline(small: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def unreachable(*_, **__): raise error
    monkeypatch.setattr(requests, "get", unreachable)
    said = rf"could not be fetched from https.*\({type(error).__name__}\).* connected: .*DIFFUSION_COURSE_DATA"
    with pytest.raises(FileNotFoundError, match=said): cifar10()


def check_disk_is_named(error: pytest.ExceptionInfo, reason: str) -> None:
    """The error names the folder, the reason and the way out, and not the network."""
    said = str(error.value)
    cache = images.pooch.os_cache("diffusion_course")
    assert said.startswith(f"CIFAR-10 could not be written to {cache} ({reason}")
    assert "DIFFUSION_COURSE_DATA" in said and "connected" not in said
    assert not isinstance(error.value, FileNotFoundError)


@pytest.mark.parametrize("place", ["download", "unpack"])
def test_a_full_disk_is_not_taken_for_a_lost_connection(
    server: Server, monkeypatch: pytest.MonkeyPatch, place: str,
) -> None:
    def full(*_) -> None: raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    owner, name = {"download": (images.os, "replace"), "unpack": (images.shutil, "copyfileobj")}[place]
    with monkeypatch.context() as patch, pytest.raises(OSError) as error:
        patch.setattr(owner, name, full)
        cifar10()
    check_disk_is_named(error, os.strerror(errno.ENOSPC))
    assert len(cifar10()) == 5 * COUNT, "with room again it goes on"


def test_a_cache_that_cannot_be_written_is_named(server: Server) -> None:
    cache = images.pooch.os_cache("diffusion_course")
    cache.parent.write_text("a file where the folder should be", encoding="utf-8")
    with pytest.raises(OSError) as error: cifar10()
    check_disk_is_named(error, "")
    assert server.requests == []


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_without_permission_is_named(server: Server) -> None:
    cache = images.pooch.os_cache("diffusion_course")
    cache.mkdir(parents=True)
    cache.chmod(0o500)
    with pytest.raises(OSError) as error: cifar10()
    check_disk_is_named(error, "")


# ---- spectra -----------------------------------------------------------------------------------------

def test_white_noise_has_power_one() -> None:
    k, power = radial_spectrum(normal(400, 2, 16, 12, seed=2))
    assert k.tolist() == [1, 2, 3, 4, 5, 6]
    torch.testing.assert_close(power, torch.ones(6).double(), rtol=0.05, atol=0)


@pytest.mark.parametrize(("fy", "fx"), [(1, 0), (0, 3), (3, 4), (5, 5)])
def test_a_wave_has_its_power_at_its_frequency(fy: int, fx: int) -> None:
    n = 16
    side = torch.arange(n, dtype=torch.float64)
    wave = torch.cos(2 * torch.pi * (fy * side[:, None] + fx * side) / n)[None, None]
    _, power = radial_spectrum(wave)
    k = round((fy**2 + fx**2) ** 0.5)
    turns = torch.fft.fftfreq(n, 1 / n)
    count = (torch.hypot(turns[:, None], turns).round() == k).sum()
    assert power[k - 1] == pytest.approx(wave.square().sum().item() / count.item())  # Parseval
    assert power.sum() == pytest.approx(power[k - 1].item())
    assert radial_spectrum(wave + 7)[1].sum() == pytest.approx(
        power.sum().item()
    ), "the mean is not among them"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_spectrum_of_sixteen_bits(dtype: torch.dtype) -> None:
    x = normal(3, 1, 8, 8, seed=3).to(dtype)
    torch.testing.assert_close(radial_spectrum(x)[1], radial_spectrum(x.float())[1])


@pytest.mark.parametrize("x", [
    torch.zeros(8, 8), torch.zeros(2, 1, 8, 1), torch.zeros(0, 1, 8, 8), torch.zeros(2, 1, 8, 8).byte(),
], ids=lambda x: str((x.shape, x.dtype)))
def test_spectrum_bad_input(x: Tensor) -> None:
    with pytest.raises(ValueError, match=r"x is .* of shape .*: expected numbers \(n, C, H, W\)"):
        radial_spectrum(x)


# ---- the smallest network ----------------------------------------------------------------------------

def test_sinusoidal() -> None:
    t = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    waves = sinusoidal(t, 8)
    assert waves.shape == (3, 8) and torch.equal(waves[0], torch.tensor([0.0] * 4 + [1.0] * 4).double())
    rate = 1000 * 10_000 ** (-np.arange(4) / 4)  # Vaswani et al. 2017, section 3.5
    angle = t.numpy()[:, None] * rate
    np.testing.assert_allclose(waves, np.concatenate([np.sin(angle), np.cos(angle)], 1), atol=1e-5)
    with pytest.raises(ValueError, match="width is 7: expected an even number"): sinusoidal(t, 7)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_waves_are_those_of_the_times_as_they_came(dtype: torch.dtype) -> None:
    t = torch.linspace(0, 1, 40).to(dtype)
    waves = sinusoidal(t, 32)
    assert waves.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(waves.double(), sinusoidal(t.double(), 32), rtol=0, atol=2e-4)


def with_random_end(**options) -> DenoiseNet:
    """A network whose last layer is not zero."""
    net = DenoiseNet(**options)
    torch.nn.init.normal_(net.last.weight, generator=rng(3))
    return net


def test_network_begins_as_zero_and_depends_on_its_seed_alone() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    a, b, c = DenoiseNet(), DenoiseNet(), DenoiseNet(seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(a.first.weight, b.first.weight) and not torch.equal(a.first.weight, c.first.weight)
    x = torch.randn(4, 1, 8, 8, generator=rng(4))
    assert (a(x, torch.rand(4, generator=rng(5))) == 0).all()


def test_network_sees_five_pixels_and_time_and_labels_where_told() -> None:
    x = torch.randn(2, 3, 12, 10, generator=rng(6)).requires_grad_()
    t = torch.tensor([0.2, 0.7])
    net = with_random_end(shape=(3, 12, 10), width=16, n_labels=4)
    net(x, t)[0, 1, 6, 5].backward()
    seen = (x.grad[0] != 0).any(0)
    assert seen[4:9, 3:8].all() and seen.sum() == 25 and not x.grad[1].any()
    x = x.detach()
    assert not torch.equal(net(x, t), net(x, t.flip(0))) and not torch.equal(net(x, t, 1), net(x, t, 2))
    assert torch.equal(net(x, t), net(x, t, 4)), "no label is the null label"
    blind = with_random_end(shape=(3, 12, 10), width=16, time=False)
    assert torch.equal(blind(x, t), blind(x, t.flip(0)))
    assert DenoiseNet(**net.config).config == net.config


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", [dict(n_labels=4), dict(time=False)], ids=str)
def test_network_in_every_precision(dtype: torch.dtype, options: dict) -> None:
    x = normal(3, 1, 8, 8, seed=8)
    t = torch.tensor([0.1, 0.5, 0.9985])
    y = 2 if "n_labels" in options else None
    expected = with_random_end(**options).double()(x, t.double(), y)
    net = with_random_end(**options).to(dtype)
    for times in (t, t.double()):
        found = net(x.to(dtype), times, y)
        assert found.dtype == dtype
        assert (found - expected).abs().max() < 10 * torch.finfo(dtype).eps * expected.abs().max() + 1e-3


def test_network_refuses_another_precision() -> None:
    x, t = torch.zeros(2, 1, 8, 8), torch.zeros(2)
    said = "x is torch.float64 and the weights torch.float32: expected the same dtype"
    with pytest.raises(ValueError, match=said): DenoiseNet()(x.double(), t)
    with pytest.raises(ValueError, match="x is torch.float32 and the weights torch.bfloat16"):
        DenoiseNet().bfloat16()(x, t)
    with pytest.raises(ValueError, match="x is torch.uint8 and the weights torch.float32"):
        DenoiseNet()(x.byte(), t)
    with torch.autocast("cpu", torch.bfloat16):
        assert DenoiseNet()(x.bfloat16(), t).shape == x.shape  # autocast casts it
        with pytest.raises(ValueError, match=said): DenoiseNet()(x.double(), t)


def test_network_bad_input() -> None:
    x, t = torch.zeros(2, 1, 8, 8), torch.zeros(2)
    net = DenoiseNet()
    with pytest.raises(ValueError, match=r"x has shape \(2, 3, 8, 8\): expected \(B, 1, 8, 8\)"):
        net(torch.zeros(2, 3, 8, 8), t)
    with pytest.raises(ValueError, match=r"t has shape \(\): expected \(2,\), one for each image"):
        net(x, t[0])
    with pytest.raises(ValueError, match="y is 3: expected None"): net(x, t, 3)
    with pytest.raises(ValueError, match="labels"): DenoiseNet(n_labels=3)(x, t, 4)
    with pytest.raises(ValueError, match="n_labels is -1: expected a whole number, 0 or more"):
        DenoiseNet(n_labels=-1)
    with pytest.raises(
        ValueError, match=r"shape is \(8, 8\): expected \(channels, height, width\)"
    ):
        DenoiseNet((8, 8))
    with pytest.raises(ValueError, match="width is 5: expected an even number"): DenoiseNet(width=5)


def test_network_learns_and_time_helps() -> None:
    x, y = digits().batch(slice(None))

    def loss(time: bool) -> Tensor:
        model = Denoiser(DenoiseNet(width=32, time=time, n_labels=10), Linear())
        return fit(model, x, 300, labels=y, batch_size=64, progress=False).loss

    without, told = loss(False), loss(True)
    for curve in (without, told): assert curve[-50:].mean() < 0.75 * curve[0]
    assert told[-50:].mean() < 0.95 * without[-50:].mean()


# ---- the classifier of digits ------------------------------------------------------------------------

def test_digit_classifier() -> None:
    classify = digit_classifier()
    x, y = digits("test").batch(slice(None))
    found = classify(x)
    assert found.shape == (297,) and found.dtype == torch.int64 and (found == y).float().mean() > 0.94
    noise = torch.rand(200, 1, 8, 8, generator=rng(7)) * 2 - 1
    assert (classify(noise) == torch.arange(200) % 10).float().mean() < 0.3
    assert torch.equal(digit_classifier()(x), found)
    assert (classify(x.bfloat16()) == found).float().mean() > 0.95
    with pytest.raises(ValueError, match=r"x has shape \(2, 64\): expected \(n, 1, 8, 8\)"):
        classify(torch.zeros(2, 64))
