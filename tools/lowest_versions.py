"""Print the lowest version that settings.ini allows of each requirement, as constraints for pip.

    python tools/lowest_versions.py > constraints-lowest.txt
    python -m pip install -c constraints-lowest.txt -e ".[dev]"

What users install is pinned: the library's requirements and those of the extras `lab` and `hub`.
What only the tests need is left to pip.
"""
from __future__ import annotations

import re
from configparser import ConfigParser
from pathlib import Path

SETTINGS = Path(__file__).resolve().parents[1] / "settings.ini"
LISTS = ("requirements", "lab_requirements", "hub_requirements")


def lowest_versions(settings: Path = SETTINGS) -> list[str]:
    """`name==version` for each `name>=version` in settings.ini.

    Raises:
        ValueError: a requirement has no lower bound.
    """
    config = ConfigParser(delimiters=["="])
    config.read(settings, encoding="utf-8")
    pins = []
    for requirement in " ".join(config["DEFAULT"][name] for name in LISTS).split():
        bound = re.fullmatch(r"([\w.-]+)>=([\w.]+)", requirement)
        if bound is None: raise ValueError(f"{requirement} has no lower bound: expected name>=version")
        pins.append(f"{bound[1]}=={bound[2]}")
    return pins


if __name__ == "__main__": print("\n".join(lowest_versions()))
