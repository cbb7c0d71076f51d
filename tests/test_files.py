"""Files appear whole or not at all; links, devices and modes stay what they are."""
from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diffusion_course.checkpoints import write_tensors
from diffusion_course.files import check_writable, whole_file

POSIX = pytest.mark.skipif(os.name != "posix", reason="devices and modes of POSIX systems")


def mode(path: Path) -> int:
    """Who may read and write a file."""
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def umask() -> Iterator[None]:
    """A umask that is known, for the length of a test."""
    before = os.umask(0o027)
    yield
    os.umask(before)


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "f.txt"
    with whole_file(path) as part:
        part.write_text("old", encoding="utf-8")
        assert not path.exists()
    with pytest.raises(ZeroDivisionError), whole_file(path) as part:
        part.write_text("ne", encoding="utf-8")
        raise ZeroDivisionError
    assert path.read_text(encoding="utf-8") == "old"
    with pytest.raises(FileNotFoundError), whole_file(path): pass  # nothing was written
    assert path.read_text(encoding="utf-8") == "old"
    assert [p.name for p in path.parent.iterdir()] == ["f.txt"]


def test_what_a_killed_run_left_does_not_stay(tmp_path: Path) -> None:
    (tmp_path / ".f.txt.part").write_text("half", encoding="utf-8")
    (tmp_path / ".f.txt.part").chmod(0o600)
    with whole_file(tmp_path / "f.txt") as part:
        assert not part.exists()
        part.write_text("whole", encoding="utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["f.txt"]


@POSIX
def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real" / "f.txt", tmp_path / "link.txt"
    link.symlink_to(Path("real") / "f.txt")
    for text in ("made", "replaced"):  # at first the link leads to nothing
        with whole_file(link) as part: part.write_text(text, encoding="utf-8")
        assert link.is_symlink() and not target.is_symlink()
        assert target.read_text(encoding="utf-8") == text
    with pytest.raises(ZeroDivisionError), whole_file(link): raise ZeroDivisionError
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["f.txt", "link.txt", "real"]


@pytest.fixture
def terminal() -> Iterator[tuple[int, Path]]:
    """A device of this test's own (/dev/null is everybody's): where to read what is written to it, and its path."""
    if not hasattr(os, "openpty"): pytest.skip("no pseudo-terminals on this system")
    master, slave = os.openpty()
    os.set_blocking(master, False)
    yield master, Path(os.ttyname(slave))
    os.close(slave)
    os.close(master)


def test_a_device_stays_a_device_and_gets_the_bytes(terminal: tuple[int, Path]) -> None:
    master, path = terminal
    before = path.stat()
    with whole_file(path) as part: save_file({"a": torch.zeros(3)}, part)
    after = path.stat()
    assert path.is_char_device()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert b'{"a":{"dtype":"F32","shape":[3]' in os.read(master, 1000)


def test_a_link_to_a_device_is_written_through(tmp_path: Path, terminal: tuple[int, Path]) -> None:
    master, path = terminal
    link = tmp_path / "link"
    link.symlink_to(path)
    with whole_file(link) as part: part.write_text("hello", encoding="utf-8")
    assert os.read(master, 1000) == b"hello"
    assert link.is_symlink() and link.is_char_device()


@POSIX
def test_a_pipe_gets_the_finished_bytes(tmp_path: Path) -> None:
    path, received = tmp_path / "pipe", []
    os.mkfifo(path)
    reader = threading.Thread(target=lambda: received.append(path.read_bytes()), daemon=True)
    reader.start()
    with whole_file(path) as part: part.write_bytes(b"hello")
    reader.join(20)
    assert received == [b"hello"] and path.is_fifo()
    assert [p.name for p in tmp_path.iterdir()] == ["pipe"]


@POSIX
@pytest.mark.parametrize("private", [False, True], ids=["text", "safetensors"])
def test_modes(tmp_path: Path, umask: None, private: bool) -> None:
    """A new file gets what the umask leaves, an old one keeps its mode, whatever the writer gives."""
    def write(part: Path) -> None:
        if private: save_file({"a": torch.zeros(3)}, part)  # for its owner alone
        else: part.write_text("text", encoding="utf-8")

    path = tmp_path / "f"
    with whole_file(path) as part: write(part)
    assert mode(path) == 0o640
    for chosen in (0o600, 0o444, 0o755):
        path.chmod(chosen)
        with whole_file(path) as part: write(part)
        assert mode(path) == chosen


def test_a_folder_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a folder: expected the path of a file"), whole_file(tmp_path):
        raise AssertionError("the block ran")
    assert not list(tmp_path.iterdir()) and not list(tmp_path.parent.glob(f".{tmp_path.name}*"))


@pytest.mark.parametrize("what", [3, 3.5, None, b"name"])
def test_a_number_is_no_path(what: object, tmp_path: Path) -> None:
    """`open(3)` would write into, and then close, whatever this process has open under that number."""
    with pytest.raises(ValueError, match="expected the path of a file"), whole_file(what): pass
    reading, writing = os.pipe()
    with pytest.raises(ValueError, match="expected"):
        write_tensors(writing, {"a": torch.zeros(3)}, {})
    os.write(writing, b"still open")
    assert os.read(reading, 20) == b"still open"
    for end in (reading, writing): os.close(end)


# ---- before long work ----------------------------------------------------------------------------

def test_looking_whether_a_file_can_be_written_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "f.txt"
    path.write_text("old", encoding="utf-8")
    before = path.stat()
    for name in ("f.txt", "new.txt", "new/deeper/f.txt", "a" * 250): check_writable(tmp_path / name)
    assert list(tmp_path.iterdir()) == [path] and path.read_text(encoding="utf-8") == "old"
    assert path.stat().st_ino == before.st_ino and path.stat().st_mtime_ns == before.st_mtime_ns


def test_what_can_not_be_written_is_known_before(tmp_path: Path) -> None:
    (tmp_path / "f.txt").touch()
    with pytest.raises(ValueError, match="is a folder: expected"): check_writable(tmp_path)
    with pytest.raises(ValueError, match="path=3: expected the path of a file"): check_writable(3)
    for path in (tmp_path / "f.txt" / "g.txt", tmp_path / ("a" * 300)):
        with pytest.raises(OSError): check_writable(path)
    if Path("/proc/self").exists():
        with pytest.raises(OSError, match="x.png can't be written"): check_writable("/proc/x.png")
        check_writable("/dev/null")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_known_before(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OSError, match="can't be written"): check_writable(tmp_path / "f.txt")
    finally: tmp_path.chmod(0o700)
