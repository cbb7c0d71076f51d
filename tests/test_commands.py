"""What the commands do where something is wrong: values, the disk, names, the terminal, or somebody's patience."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest
from PIL import Image

import diffusion_course.cli as cli

COMMAND = [
    sys.executable,
    "-c",
    "import sys; from diffusion_course.cli import main; sys.exit(main())",
]
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="signals and limits are POSIX's")
MEASURED = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere"
)
SAMPLE = ["sample", "digits", "--n", "2", "--steps", "2"]
LONG = ["sample", "digits", "--n", "64", "--steps", "100000"]


def call(
    *args: str, cwd: Path, env: dict[str, str] | None = None, **kwargs
) -> subprocess.CompletedProcess:
    """What a command says, as bytes in UTF-8."""
    return subprocess.run(
        [*COMMAND, *args],
        cwd=cwd,
        env=os.environ | (env or {}),
        capture_output=True,
        timeout=120,
        **kwargs,
    )


def refused(done: subprocess.CompletedProcess, *named: str) -> None:
    """One clear line and status 2."""
    said = done.stderr.decode(errors="replace")
    assert done.returncode == 2 and "Traceback" not in said, said
    for name in named:
        assert name in said.splitlines()[-1], said


# ---- values ----------------------------------------------------------------------------------------------------------


class Began(Exception):
    """Long work has begun."""


WRONG = {
    int: ("", "x", "1.5", "nan"),
    float: ("", "x", "nan", "inf"),
    bool: ("", "maybe", "2"),
    tuple: ("x", "1,x", "nan"),
}


def flags(command: str, *names: str) -> Iterator[tuple[str, argparse.Action]]:
    """The options of a command."""
    top = cli.parser(command)
    for name in (command, *names):
        sub = next(a for a in top._actions if isinstance(a, argparse._SubParsersAction))
        top = sub.choices[name]
    for action in top._actions:
        if action.option_strings and action.nargs != 0:
            yield action.option_strings[-1], action


@pytest.mark.parametrize(
    "command", [["sample", "digits"], ["evaluate", "digits"], ["train", "digits"], ["train", "vae"]]
)
def test_wrong_values_of_every_flag(
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    def began(*_, **__):
        raise Began

    from diffusion_course import evaluation, generation, training

    monkeypatch.chdir(tmp_path)
    for module, name in ((generation, "_previews"), (evaluation, "generate"), (training, "Run")):
        monkeypatch.setattr(module, name, began)
    monkeypatch.setattr(evaluation, "own_classifier", began)
    accepted = []
    names = command[1:] if command[0] == "train" else []
    numbers = {
        "images",
        "batch",
        "lr",
        "n",
        "steps",
        "seed",
        "guidance",
        "churn",
        "strength",
        "scale",
        "ema",
        "clip",
        "kl",
    }
    for flag, _ in flags(command[0], *names):
        name = flag.removeprefix("--")
        values = ("x", "nan", "1e400", "-inf") if name.rpartition(".")[2] in numbers else ("\n",)
        for value in values:
            try:
                status = cli.main([*command, f"{flag}={value}"])
            except SystemExit as end:
                status = end.code
            except Began:
                status = 0
            said = capsys.readouterr().err
            if status != 2 and values != ("\n",):
                accepted.append(f"{flag} {value!r}")
            assert "Traceback" not in said
            if status == 2:
                assert (
                    flag.lstrip("-") in said or name.replace("-", "_") in said or "expected" in said
                ), said
    assert not accepted
    assert not [p for p in tmp_path.rglob("*.png")], "something was drawn"


@pytest.mark.parametrize(
    "args, named",
    [
        (["sample", "digits", "--out", "."], "."),
        (["sample", "digits", "--out", "x.docx"], "docx"),
        ([*LONG, "--out", "folder.png"], "folder.png"),
        ([*LONG, "--gif", "folder.gif"], "folder.gif"),
        ([*LONG, "--out", "file/x.png"], "file/x.png"),
        pytest.param(
            [*LONG, "--out", "/proc/x.png"],
            "/proc/x.png",
            marks=pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc"),
        ),
        (["sample", "digits", "--start", "nowhere.png"], "nowhere.png"),
        (["sample", "nowhere.safetensors"], "nowhere.safetensors"),
        (["sample", "digits", "--steps", "0"], "steps"),
        (["sample", "digits", "--n", "-3"], "n"),
        (["sample", "digits", "--churn", "0.5", "--sampler", "heun"], "churn"),
        (["evaluate", "digits", "--bits", "-1"], "bits"),
        (["evaluate", "digits", "--data", "~nobody_of_that_name/images"], "images"),
        (["evaluate", "digits", "--data", "digits", "--out", "."], "."),
        (["evaluate", "digits", "--data", "digits", "--bits", "20000"], "bits is 20000: expected"),
        (["evaluate", "digits", "--data", "digits", "--n", "2000"], "n is 2000: expected 1 to"),
        (["train", "digits", "--steps", "0"], "steps"),
        (["train", "digits", "--device", "abacus"], "abacus"),
        (["train", "images", "--data", "~nobody_of_that_name/images"], "images"),
    ],
)
def test_everything_is_checked_before_long_work(
    args: list[str], named: str, tmp_path: Path
) -> None:
    there = {tmp_path / name for name in ("folder.png", "folder.gif", "file")}
    for path in there: path.touch() if path.name == "file" else path.mkdir()
    refused(call(*args, cwd=tmp_path), named)
    assert set(tmp_path.rglob("*")) == there, "nothing is left behind"


# ---- interruptions ---------------------------------------------------------------------------------------------------


@POSIX
@pytest.mark.parametrize("seconds", [0.3, 1.5, 4.0])
@pytest.mark.parametrize(
    "args",
    [
        ["sample", "cifar10", "--n", "64", "--steps", "500", "--out", "out.png"],
        [
            "evaluate",
            "digits",
            "--n",
            "700",
            "--steps",
            "500",
            "--data",
            "digits",
            "--out",
            "out.json",
        ],
    ],
    ids=["sample", "evaluate"],
)
def test_ctrl_c_leaves_what_was_there(args: list[str], seconds: float, tmp_path: Path) -> None:
    for name in ("out.png", "out.json"): (tmp_path / name).write_bytes(b"from before")
    # Whatever runs in the background of a shell ignores Ctrl-C, and so do those that it starts.
    heeding = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(
        [*COMMAND, *args],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=heeding,
    )
    try:
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        try: _, said = process.communicate(timeout=30)
        except subprocess.TimeoutExpired:  # Python drops an interrupt that meets a destructor: press again
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    if process.returncode == 130:
        assert b"Traceback" not in said
    else:  # Python was still starting, and says so itself: the command hadn't begun
        assert process.returncode in (1, -signal.SIGINT) and b", in main\n" not in said, said.decode()
        assert not said or said.rstrip().endswith(b"KeyboardInterrupt"), said.decode()
    for name in ("out.png", "out.json"): assert (tmp_path / name).read_bytes() == b"from before"
    assert not [p for p in tmp_path.rglob("*.part")]


@pytest.fixture
def heeds_ctrl_c() -> Iterator[None]:
    """As in a shell's foreground: what runs in the background ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@POSIX
@pytest.mark.usefixtures("heeds_ctrl_c")
def test_what_an_interrupted_import_raises_is_no_mistake_of_the_user(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def run(args: argparse.Namespace) -> int:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        except KeyboardInterrupt:  # as C code that imports does
            raise ImportError("cannot load module more than once per process") from None
        return 0

    reader = argparse.ArgumentParser()
    reader.set_defaults(run=run)
    monkeypatch.setattr(cli, "parser", lambda name: reader)
    before = signal.getsignal(signal.SIGINT)
    assert cli.main([]) == 130
    assert signal.getsignal(signal.SIGINT) is before
    assert not capsys.readouterr().err


@POSIX
@pytest.mark.usefixtures("heeds_ctrl_c")
def test_ctrl_c_that_is_lost_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(args: argparse.Namespace) -> int:
        with contextlib.suppress(KeyboardInterrupt):  # as in a callback from C, where Python can't raise it
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        time.sleep(5)
        return 0

    reader = argparse.ArgumentParser()
    reader.set_defaults(run=run)
    monkeypatch.setattr(cli, "parser", lambda name: reader)
    monkeypatch.setattr(cli, "_AGAIN", 0.2)
    assert cli.main([]) == 130
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@POSIX
@pytest.mark.usefixtures("heeds_ctrl_c")
def test_an_import_that_swallows_ctrl_c_ends_the_command_all_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Sent in the midst of an import, as torch's is: code there that goes on after any exception.
    (tmp_path / "swallows_all.py").write_text(
        "import os, signal, time\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(0.2)\n"
        "except BaseException: pass\n"
        "whole = True\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    reached: list[str] = []

    def run(args: argparse.Namespace) -> int:
        import_module("swallows_all")
        reached.append("imported")
        time.sleep(5)
        reached.append("went on")
        return 0

    reader = argparse.ArgumentParser()
    reader.set_defaults(run=run)
    monkeypatch.setattr(cli, "parser", lambda name: reader)
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGALRM)
    try: assert cli.main([]) == 130
    finally: module = sys.modules.pop("swallows_all", None)
    assert "went on" not in reached and module is not None and module.whole
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGALRM)) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


# ---- the disk --------------------------------------------------------------------------------------------------------


def limit(size: int) -> Callable[[], None]:
    """For a process whose files may have so many bytes."""

    def set_limit() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return set_limit


@POSIX
@pytest.mark.parametrize(
    "args, name",
    [
        ([*SAMPLE, "--out", "out.png"], "out.png"),
        ([*SAMPLE, "--out", "other.png", "--gif", "out.gif"], "out.gif"),
        (["train", "digits", "--steps", "2", "--folder", "run"], "run"),
    ],
)
def test_a_full_disk(args: list[str], name: str, tmp_path: Path) -> None:
    done = call(*args, cwd=tmp_path, preexec_fn=limit(100))
    refused(done)
    assert not [
        p
        for p in tmp_path.rglob("*")
        if p.is_file() and p.suffix in (".png", ".gif", ".safetensors")
    ]
    assert not [p for p in tmp_path.rglob("*.part")]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_device(tmp_path: Path) -> None:
    refused(call(*SAMPLE, "--out", "/dev/full", cwd=tmp_path), "No space left")
    assert Path("/dev/full").is_char_device()
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*COMMAND, *SAMPLE], cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, timeout=120
        )
    assert (
        done.returncode == 2 and b"No space left" in done.stderr and b"Traceback" not in done.stderr
    )
    assert Image.open(tmp_path / "samples.png").size, "the images are there all the same"


@MEASURED
def test_a_folder_that_is_read_only(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        refused(call(*SAMPLE, cwd=tmp_path), "samples.png")
    finally:
        tmp_path.chmod(0o700)


@POSIX
@pytest.mark.parametrize(
    "name",
    [
        "with spaces.png",
        "ünïcödé 日本.png",
        "new\nline.png",
        "-dash.png",
        "a" * 251 + ".png",
        "é" * 120 + ".png",
        "#'\"$(x).png",
    ],
)
def test_odd_names(name: str, tmp_path: Path) -> None:
    done = call(*SAMPLE, f"--out={name}", cwd=tmp_path)
    assert not done.returncode, done.stderr.decode()
    assert [p.name for p in tmp_path.iterdir()] == [name] and Image.open(tmp_path / name).size


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    refused(call(*SAMPLE, f"--out={'a' * 300}.png", cwd=tmp_path), "aaa")


def test_two_at_once(tmp_path: Path) -> None:
    both = [
        subprocess.Popen(
            [*COMMAND, *SAMPLE, "--seed", str(k)], cwd=tmp_path, stderr=subprocess.PIPE
        )
        for k in range(2)
    ]
    for process in both:
        said = process.communicate(timeout=120)[1]
        assert not process.returncode, said.decode()
    assert [p.name for p in tmp_path.iterdir()] == ["samples.png"] and Image.open(
        tmp_path / "samples.png"
    ).size


# ---- surroundings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", cli.presets())
def test_the_help_of_every_preset(name: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end: cli.main(["train", name, "--help"])
    said = capsys.readouterr().out
    assert not end.value.code and f"train {name}" in said and "--lr" in said and "%%" not in said
    said.encode("cp1252", errors="replace")


def test_the_package_is_a_command_too(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "diffusion_course", "sample", "nobody"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1])},
        capture_output=True,
        timeout=120,
    )
    refused(done, "nobody")


@pytest.mark.parametrize(
    "env",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "cp1252"},
        {"PYTHONIOENCODING": "cp932"},
        {"PYTHONIOENCODING": "ascii:strict"},
    ],
    ids=["C", "cp1252", "cp932", "ascii"],
)
@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["train", "--help"],
        ["train", "digits", "--help"],
        ["train", "cifar10-small", "--help"],
        ["sample", "--help"],
        ["evaluate", "--help"],
        [*SAMPLE, "--out", "é 日本.png"],
        ["sample", "é日本"],
    ],
    ids=lambda args: " ".join(args)[:24].encode("ascii", "replace").decode(),
)
def test_text_in_every_locale(args: list[str], env: dict[str, str], tmp_path: Path) -> None:
    done = call(*args, cwd=tmp_path, env=env)
    assert (
        done.returncode == (2 if args[-1] == "é日本" else 0) and b"Traceback" not in done.stderr
    ), done.stderr
    assert b"%%" not in done.stdout  # as argparse wants them in what it formats


def test_no_home_and_no_network(tmp_path: Path) -> None:
    env = {
        k: v
        for k, v in os.environ.items()
        if k not in ("HOME", "XDG_CACHE_HOME", "DIFFUSION_COURSE_DATA")
    }
    env |= {
        "https_proxy": "http://127.0.0.1:9",
        "http_proxy": "http://127.0.0.1:9",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    run = lambda *args: subprocess.run(
        [*COMMAND, *args], cwd=tmp_path, env=env, capture_output=True, timeout=120
    )
    done = run(*SAMPLE)
    assert not done.returncode, done.stderr.decode()
    refused(run("evaluate", "cifar10", "--n", "20"), "CIFAR-10")
    refused(run("train", "cifar10-small"), "CIFAR-10")
