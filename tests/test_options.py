"""Settings, and flags made of them."""
from __future__ import annotations

import argparse
from dataclasses import dataclass

import pytest

from diffusion_course.options import add_options, as_dict, option, with_options


@dataclass(frozen=True)
class Inner:
    widths: tuple[int, ...] = option((64, 128), "channels")
    name: str = option("a", "what it's called")


@dataclass(frozen=True)
class Outer:
    images: int = option(1000, "images to see, 100 % of them")
    lr: float = option(1e-3, "how fast")
    flip: bool = option(True, "mirrored")
    log_every: int = option(10, "rows")
    net: Inner = option(Inner(), "the network")

    def __post_init__(self):
        if self.images < 1: raise ValueError(f"images is {self.images}: expected 1 or more")


def parsed(*args: str) -> Outer:
    """The configuration that these flags make of the default one."""
    parser = argparse.ArgumentParser()
    add_options(parser, Outer())
    return with_options(Outer(), vars(parser.parse_args(args)))


def test_flags_become_settings() -> None:
    assert parsed() == Outer()
    config = parsed("--images", "2e6", "--lr", "0.5", "--flip", "no", "--log-every", "1_000",
                    "--net.widths", "(1, 2,3)", "--net.name", "b")
    assert config == Outer(2_000_000, 0.5, False, 1000, Inner((1, 2, 3), "b"))
    assert parsed("--log_every", "7").log_every == 7
    assert parsed("--net.widths", "5").net.widths == (5,)


def test_help_explains_every_flag(capsys: pytest.CaptureFixture) -> None:
    parser = argparse.ArgumentParser()
    add_options(parser, Outer())
    parser.print_help()
    printed = " ".join(capsys.readouterr().out.split())
    for words in ("--images N images to see, 100 % of them (default: 1000)",
                  "--net.widths N,N,... channels (default: 64,128)",
                  "--flip true|false mirrored"):
        assert words in printed


@pytest.mark.parametrize("args, message", [
    (["--images", "1.5"], "'1.5': expected a whole number"),
    (["--images", "many"], "'many': expected a whole number"),
    (["--images", "inf"], "'inf': expected a whole number"),
    (["--flip", "maybe"], "'maybe': expected true or false"),
    (["--net.widths", "a,b"], "'a,b': expected numbers with commas"),
    (["--depth", "3"], "--depth"),
])
def test_bad_flags_are_named(
    args: list[str], message: str, capsys: pytest.CaptureFixture,
) -> None:
    with pytest.raises(SystemExit): parsed(*args)
    assert message in capsys.readouterr().err


def test_settings_survive_json() -> None:
    config = Outer(net=Inner((1, 2)))
    assert as_dict(config)["net"] == {"widths": [1, 2], "name": "a"}
    assert with_options(Outer(), as_dict(config)) == config


def test_unknown_settings_are_refused_and_own_checks_are_made() -> None:
    known = "images, lr, flip, log_every, net"
    with pytest.raises(ValueError, match=f"no setting 'depth': expected one of {known}"):
        with_options(Outer(), dict(depth=3))
    with pytest.raises(ValueError, match="no setting 'depth'"):
        with_options(Outer(), {"net.depth": 3})
    with pytest.raises(ValueError, match="images is 0: expected 1 or more"):
        parsed("--images", "0")


def test_settings_that_fit_only_together_are_given_together() -> None:
    @dataclass(frozen=True)
    class Pair:
        low: int = option(1, "below high")
        high: int = option(2, "above low")

        def __post_init__(self):
            if self.low < self.high: return
            raise ValueError(f"low is {self.low}: expected less than high, {self.high}")

    @dataclass(frozen=True)
    class Holder:
        pair: Pair = option(Pair(), "two numbers")

    assert with_options(Holder(), {"pair.low": 5, "pair.high": 9}).pair == Pair(5, 9)
    assert with_options(Holder(), {"pair": dict(low=5, high=9)}).pair == Pair(5, 9)
    with pytest.raises(ValueError, match="low is 5"): with_options(Holder(), {"pair.low": 5})
