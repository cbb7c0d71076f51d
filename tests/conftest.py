"""What the tests share: the notebooks, and how to read them."""
from __future__ import annotations

import ast
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
# Tests that run side by side share the processor's cores, which torch would ask for in each of them.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    threads = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, threads)))
# The user's list of fonts may name fonts of an environment that is gone.
os.environ["MPLCONFIGDIR"] = tempfile.mkdtemp(prefix="matplotlib-")
ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT / "nbs"
PACKAGE = ROOT / "diffusion_course"
sys.path.insert(0, str(ROOT / "tools"))

from execute import notebooks  # noqa: E402

NOTEBOOKS = notebooks(NBS)
LESSONS = [p for p in NOTEBOOKS if p.parent == NBS and re.match(r"\d\d_", p.name)]
SOLUTIONS = [p for p in NOTEBOOKS if p.parent == NBS / "solutions"]
TOOLBOX = [p for p in NOTEBOOKS if p.parent == NBS / "toolbox"]


def name_of(path: Path) -> str:
    """A notebook's name in the test report."""
    return path.relative_to(NBS).with_suffix("").as_posix()


def read(path: Path) -> dict:
    """A notebook as plain dictionaries, each source as one string."""
    nb = json.loads(path.read_text(encoding="utf-8"))
    for cell in nb["cells"]: cell["source"] = "".join(cell["source"])
    return nb


def code(path: Path) -> list[str]:
    """The sources of a notebook's code cells, without lines that only IPython reads."""
    sources = [c["source"] for c in read(path)["cells"] if c["cell_type"] == "code"]
    return [re.sub(r"^\s*[%!].*$", "", source, flags=re.M) for source in sources]


def is_exported(source: str) -> bool:
    """Whether a cell goes into the library."""
    return re.match(r"#\|\s*(export\w*|default_exp)\b", source) is not None


def module_of(path: Path) -> str | None:
    """The module that a notebook exports, with its package."""
    for source in code(path):
        directive = re.match(r"#\|\s*default_exp\s+(\S+)", source)
        if directive: return f"diffusion_course.{directive[1]}"
    return None


def checks(source: str) -> Iterator[tuple[str, str]]:
    """The calls check("name", function) in a source: the name, and the function as it is written."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or getattr(node.func, "id", None) != "check": continue
        if len(node.args) == 2 and isinstance(node.args[0], ast.Constant):
            yield node.args[0].value, ast.unparse(node.args[1])


def imported(source: str, module: str = "") -> set[str]:
    """The modules of this package that a source imports, also inside its functions.

    `module` is where relative names start.
    """
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import): names |= {a.name for a in node.names}
        if not isinstance(node, ast.ImportFrom): continue
        base = node.module
        if node.level:
            above = module.split(".")[: -node.level]
            base = ".".join([*above, node.module] if node.module else above)
        names |= {f"{base}.{a.name}" for a in node.names} if base == "diffusion_course" else {base}
    own = {name for name in names if name.startswith("diffusion_course.")}
    return {name for name in own if not name.endswith(".__version__")}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How much memory the suite took, in the process of the tests and in the largest that it started."""
    if sys.platform == "win32": return  # which has no such module
    import resource

    unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, KiB elsewhere
    own, child = (resource.getrusage(who).ru_maxrss / unit for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    terminalreporter.write_line(f"peak memory: {own:.1f} GiB, largest process started: {child:.1f} GiB")
