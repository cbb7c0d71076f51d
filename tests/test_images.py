"""Images: bytes and numbers, CIFAR-10 read, fetched, cut off and resumed, spectra, the smallest network, the judge;
bad input."""
from __future__ import annotations

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
from helpers import rng
import torch

from diffusion_course import images
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


# ---- bytes and numbers -----------------------------------------------------------------------------------------------

def test_bytes_survive_the_round_trip() -> None:
    every = torch.arange(256).byte().reshape(1, 1, 16, 16)
    x = to_float(every)
    assert x.dtype == torch.float32 and x.min() == -1 and x.max() == 1
    assert (
        torch.equal(to_bytes(x), every)
        and torch.equal(to_bytes(x.double()), every)
        and torch.equal(to_bytes(x.half()), every)
    )
    noisy = x + (torch.rand(x.shape, generator=rng(0)) - 0.5) * 0.99 / 127.5  # less than half a step
    assert torch.equal(to_bytes(noisy), every)


def test_bytes_are_cut_off_not_wrapped() -> None:
    assert to_bytes(torch.tensor([-9.0, -1.01, 1.01, 9.0])).tolist() == [0, 0, 255, 255]
    assert not to_bytes(torch.zeros(2, requires_grad=True)).requires_grad


def test_bytes_bad_input() -> None:
    with pytest.raises(ValueError, match="torch.float32: expected torch.uint8"): to_float(torch.zeros(2))
    with pytest.raises(ValueError, match="torch.uint8: expected floating-point"): to_bytes(torch.zeros(2).byte())


def some(n: int = 6) -> Images:
    x = torch.randint(0, 256, (n, 3, 4, 5), generator=rng(1)).byte()
    return Images(x, torch.arange(n) % 3, ("a", "b", "c"))


def test_batch_mirrors_those_asked_for() -> None:
    pictures = some()
    flip = torch.tensor([True, False, True])
    x, y = pictures.batch([4, 0, 2], flip)
    assert y.tolist() == [1, 0, 2] and x.shape == (3, 3, 4, 5) and x.dtype == torch.float32
    plain, _ = pictures.batch(torch.tensor([4, 0, 2]))
    assert torch.equal(x, torch.stack([plain[0].flip(2), plain[1], plain[2].flip(2)]))
    assert torch.equal(to_bytes(plain), pictures.x[[4, 0, 2]])
    assert torch.equal(pictures.batch(slice(2, 4))[0], to_float(pictures.x[2:4]))
    assert len(pictures.to("cpu")) == len(pictures) == 6


@pytest.mark.parametrize(
    "flip", [torch.tensor([True]), torch.tensor([1, 0]), torch.tensor([True, False, True])], ids=str
)
def test_batch_refuses_flips_that_do_not_fit(flip: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"flip is .*: expected torch.bool \(2,\)"): some().batch([0, 1], flip)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x, y: (x.float(), y), "expected torch.uint8"),
        (lambda x, y: (x[0], y), r"expected torch.uint8 \(n, C, H, W\)"),
        (lambda x, y: (x, y[:3]), r"y has shape \(3,\): expected \(6,\)"),
        (lambda x, y: (x, y + 1), "labels 1 to 3: expected 0 to 2"),
        (lambda x, y: (x, y - 1), "labels -1 to 1: expected 0 to 2"),
    ],
)
def test_pictures_bad_input(change: Callable, said: str) -> None:
    with pytest.raises(ValueError, match=said): Images(*change(some().x, some().y), some().names)


def test_digits() -> None:
    train, test = digits(), digits("test")
    assert (len(train), len(test)) == (1500, 297) and train.x.shape[1:] == (1, 8, 8)
    assert train.x.min() == 0 and train.x.max() == 255 and train.names[7] == "7"
    assert set(train.y.tolist()) == set(test.y.tolist()) == set(range(10))
    with pytest.raises(ValueError, match="split is 'valid': expected 'train' or 'test'"): digits("valid")


# ---- CIFAR-10 from files ---------------------------------------------------------------------------------------------

@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the layout of CIFAR-10, with 20 pictures a file, that nothing points to; the cache is empty."""
    monkeypatch.setattr(images, "_RECORDS", COUNT)
    monkeypatch.setattr(images.pooch, "os_cache", lambda name: tmp_path / "cache" / name)
    monkeypatch.delenv("DIFFUSION_COURSE_DATA", raising=False)
    folder, random = tmp_path / "elsewhere" / "cifar-10-batches-bin", np.random.default_rng(0)
    folder.mkdir(parents=True)
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
        for i, j in ((0, 0), (3, 17), (31, 31)): assert train.x[COUNT + 4, c, i, j] == record[1 + 1024 * c + 32 * i + j]


def test_cifar10_is_looked_for_in_order(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(cifar10("test", folder=small.parent)) == COUNT  # the folder around it will do
    monkeypatch.setenv("DIFFUSION_COURSE_DATA", str(small))
    assert len(cifar10("test")) == COUNT
    with pytest.raises(FileNotFoundError, match="no CIFAR-10 in .*nowhere: expected a folder with data_batch_1.bin"):
        cifar10("test", folder=small / "nowhere")
    monkeypatch.setenv("DIFFUSION_COURSE_DATA", str(small / "nowhere"))
    with pytest.raises(FileNotFoundError, match="no CIFAR-10 in .*nowhere"): cifar10("test")
    assert len(cifar10("test", folder=small)) == COUNT, "an argument counts before the environment"
    monkeypatch.delenv("DIFFUSION_COURSE_DATA")
    with pytest.raises(FileNotFoundError, match="DIFFUSION_COURSE_DATA"): cifar10("test", download=False)
    cache = images.pooch.os_cache("diffusion_course")
    cache.mkdir(parents=True)
    os.rename(small, cache / small.name)
    assert len(cifar10("test", download=False)) == COUNT


def test_cifar10_damaged_files(small: Path) -> None:
    file = small / "data_batch_3.bin"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"data_batch_3.bin has 61,459 bytes: expected 61,460"): cifar10(folder=small)
    file.write_bytes(whole[: 3073 * 7] + b"\x0b" + whole[3073 * 7 + 1:])
    with pytest.raises(ValueError, match="data_batch_3.bin holds a label 11: expected 0 to 9"): cifar10(folder=small)
    file.unlink()
    with pytest.raises(
        FileNotFoundError, match="no data_batch_3.bin in .*: expected all six files"
    ):
        cifar10(folder=small)
    assert len(cifar10("test", folder=small)) == COUNT
    with pytest.raises(ValueError, match="split is 'both'"): cifar10("both", folder=small)


def test_at_hand_never_downloads(small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(requests, "get", lambda *_, **__: pytest.fail("it asked the network"))
    assert cifar10_at_hand() is None
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "cifar10()" in said and "162 MB" in said
    monkeypatch.setenv("DIFFUSION_COURSE_DATA", str(small))
    assert len(cifar10_at_hand()) == 5 * COUNT and len(cifar10_at_hand("test")) == COUNT
    assert not capsys.readouterr().out


def test_the_real_cifar10() -> None:
    try:
        pictures = cifar10(download=False)
    except FileNotFoundError:
        pytest.skip(
            "CIFAR-10 isn't on this machine: set DIFFUSION_COURSE_DATA or run cifar10() once"
        )
    assert pictures.x.shape == (50_000, 3, 32, 32) and pictures.y.bincount().tolist() == [5000] * 10
    means = [pictures.x[:, c].sum().item() / (50_000 * 1024 * 255) for c in range(3)]
    assert means == pytest.approx([0.4914, 0.4822, 0.4465], abs=1e-4)


# ---- CIFAR-10 from the network ---------------------------------------------------------------------------------------

class Server:
    """Serves one file over HTTP; `cut` ends the next answer after that many bytes, `ranges` says whether Range is
    understood."""

    def __init__(self, payload: bytes):
        self.payload, self.cut, self.ranges, self.asked = payload, None, True, []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None: outer.answer(self)
            def log_message(self, *_) -> None: pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        wanted = request.headers.get("Range")
        self.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.ranges else 0
        if start >= len(self.payload): return request.send_error(416)
        request.send_response(206 if wanted and self.ranges else 200)
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
    with tarfile.open(small.parent / "archive.tar.gz", "w:gz", compresslevel=1) as tar: tar.add(small, small.name)
    payload = (small.parent / "archive.tar.gz").read_bytes()
    server = Server(payload)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"): monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(images, "CIFAR10_URL", f"http://127.0.0.1:{server.http.server_port}/archive.tar.gz")
    monkeypatch.setattr(images, "CIFAR10_MD5", hashlib.md5(payload).hexdigest())
    yield server
    server.close()


def part() -> Path: return images.pooch.os_cache("diffusion_course") / "cifar-10-binary.tar.gz.part"


def test_download_once(server: Server, small: Path) -> None:
    assert torch.equal(cifar10("test").x, cifar10("test", folder=small).x)
    assert len(cifar10()) == 5 * COUNT and server.asked == [None], "the second call finds what the first one fetched"
    left = sorted(p.name for p in part().parent.iterdir())
    assert left == ["cifar-10-batches-bin", "cifar-10-binary.tar.gz"]


def test_download_goes_on_where_it_was_cut_off(server: Server, small: Path) -> None:
    half = len(server.payload) // 2
    server.cut = half
    with pytest.raises(FileNotFoundError, match="goes on where it stopped"): cifar10()
    assert 0 < part().stat().st_size <= half
    have = part().stat().st_size
    assert torch.equal(cifar10().x, cifar10(folder=small).x)
    assert server.asked == [None, f"bytes={have}-"]


def test_download_from_a_server_that_begins_anew(server: Server) -> None:
    server.cut, server.ranges = len(server.payload) // 2, False
    with pytest.raises(FileNotFoundError): cifar10()
    assert len(cifar10()) == 5 * COUNT


def test_download_that_was_complete(server: Server) -> None:
    part().parent.mkdir(parents=True)
    part().write_bytes(server.payload)
    assert len(cifar10()) == 5 * COUNT and server.asked == [f"bytes={len(server.payload)}-"]


def test_download_with_wrong_bytes_is_thrown_away(server: Server) -> None:
    part().parent.mkdir(parents=True)
    part().write_bytes(b"x" * 1000)
    with pytest.raises(ValueError, match="hash"): cifar10()
    assert not part().exists()
    assert len(cifar10()) == 5 * COUNT and server.asked[-1] is None


def test_killed_while_unpacking(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = images.shutil.copyfileobj

    def killed(source: object, target: object) -> None:
        target.write(source.read(1000))
        raise KeyboardInterrupt

    monkeypatch.setattr(images.shutil, "copyfileobj", killed)
    with pytest.raises(KeyboardInterrupt): cifar10()
    with pytest.raises(FileNotFoundError): cifar10(download=False)
    monkeypatch.setattr(images.shutil, "copyfileobj", whole)
    folder = part().parent / "cifar-10-batches-bin"
    folder.mkdir()  # and somebody left half a folder there
    (folder / "data_batch_1.bin").write_bytes(b"half")
    assert len(cifar10()) == 5 * COUNT and server.asked == [None], "the archive was there: nothing is fetched again"


def test_offline(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_, **__): raise requests.ConnectionError("no network")
    monkeypatch.setattr(requests, "get", unreachable)
    with pytest.raises(
        FileNotFoundError,
        match=r"could not be fetched from https.*ConnectionError.*DIFFUSION_COURSE_DATA",
    ):
        cifar10()


# ---- spectra ---------------------------------------------------------------------------------------------------------

def test_white_noise_has_power_one() -> None:
    k, power = radial_spectrum(torch.randn(400, 2, 16, 12, generator=rng(2), dtype=torch.float64))
    assert k.tolist() == [1, 2, 3, 4, 5, 6]
    torch.testing.assert_close(power, torch.ones(6).double(), rtol=0.05, atol=0)


@pytest.mark.parametrize(("fy", "fx"), [(1, 0), (0, 3), (3, 4), (5, 5)])
def test_a_wave_has_its_power_at_its_frequency(fy: int, fx: int) -> None:
    n, side = 16, torch.arange(16, dtype=torch.float64)
    wave = torch.cos(2 * torch.pi * (fy * side[:, None] + fx * side) / n)[None, None]
    _, power = radial_spectrum(wave)
    at = round((fy**2 + fx**2) ** 0.5)
    turns = torch.fft.fftfreq(n, 1 / n)
    members = (torch.hypot(turns[:, None], turns).round() == at).sum()
    assert power[at - 1] == pytest.approx(wave.square().sum().item() / members.item())  # Parseval
    assert power.sum() == pytest.approx(power[at - 1].item())
    assert radial_spectrum(wave + 7)[1].sum() == pytest.approx(power.sum().item()), "the mean is not among them"


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(8, 8),
        torch.zeros(2, 1, 8, 1),
        torch.zeros(0, 1, 8, 8),
        torch.zeros(2, 1, 8, 8).byte(),
    ],
    ids=lambda x: str((x.shape, x.dtype)),
)
def test_spectrum_bad_input(x: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"x is .* of shape .*: expected numbers \(n, C, H, W\)"): radial_spectrum(x)


# ---- the smallest network --------------------------------------------------------------------------------------------

def test_sinusoidal() -> None:
    t = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    waves = sinusoidal(t, 8)
    assert waves.shape == (3, 8) and torch.equal(waves[0], torch.tensor([0.0] * 4 + [1.0] * 4).double())
    rate = 1000 * 10_000 ** (-np.arange(4) / 4)  # Vaswani et al. 2017, section 3.5
    np.testing.assert_allclose(
        waves,
        np.concatenate([np.sin(t.numpy()[:, None] * rate), np.cos(t.numpy()[:, None] * rate)], 1),
        atol=1e-5,
    )
    with pytest.raises(ValueError, match="width is 7: expected an even number"): sinusoidal(t, 7)


def awake(**options) -> DenoiseNet:
    "A network whose last layer is not zero."
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
    net = awake(shape=(3, 12, 10), width=16, n_labels=4)
    net(x, t)[0, 1, 6, 5].backward()
    seen = (x.grad[0] != 0).any(0)
    assert seen[4:9, 3:8].all() and seen.sum() == 25 and not x.grad[1].any()
    x = x.detach()
    assert not torch.equal(net(x, t), net(x, t.flip(0))) and not torch.equal(net(x, t, 1), net(x, t, 2))
    assert torch.equal(net(x, t), net(x, t, 4)), "no label is the null label"
    blind = awake(shape=(3, 12, 10), width=16, time=False)
    assert torch.equal(blind(x, t), blind(x, t.flip(0)))
    assert DenoiseNet(**net.config).config == net.config


def test_network_bad_input() -> None:
    net, t = DenoiseNet(), torch.zeros(2)
    with pytest.raises(ValueError, match=r"x has shape \(2, 3, 8, 8\): expected \(B, 1, 8, 8\)"):
        net(torch.zeros(2, 3, 8, 8), t)
    with pytest.raises(ValueError, match="y is 3: expected None"): net(torch.zeros(2, 1, 8, 8), t, 3)
    with pytest.raises(ValueError, match="labels"): DenoiseNet(n_labels=3)(torch.zeros(2, 1, 8, 8), t, 4)
    with pytest.raises(ValueError, match=r"shape is \(8, 8\): expected \(channels, height, width\)"): DenoiseNet((8, 8))
    with pytest.raises(ValueError, match="width is 5: expected an even number"): DenoiseNet(width=5)


def test_network_learns_and_time_helps() -> None:
    x, y = digits().batch(slice(None))
    losses = [
        fit(
            Denoiser(DenoiseNet(width=32, time=time, n_labels=10), Linear()),
            x,
            300,
            labels=y,
            batch_size=64,
            progress=False,
        ).loss
        for time in (False, True)
    ]
    assert all(loss[-50:].mean() < 0.75 * loss[0] for loss in losses)
    assert losses[1][-50:].mean() < 0.95 * losses[0][-50:].mean()


# ---- the judge -------------------------------------------------------------------------------------------------------

def test_judge() -> None:
    judge, (x, y) = digit_classifier(), digits("test").batch(slice(None))
    found = judge(x)
    assert found.shape == (297,) and found.dtype == torch.int64 and (found == y).float().mean() > 0.94
    assert (judge(torch.rand(200, 1, 8, 8, generator=rng(7)) * 2 - 1) == torch.arange(200) % 10).float().mean() < 0.3
    assert torch.equal(digit_classifier()(x), found)
    with pytest.raises(ValueError, match=r"x has shape \(2, 64\): expected \(n, 1, 8, 8\)"): judge(torch.zeros(2, 64))
