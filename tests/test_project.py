"""The notebooks and the library are the same thing, and the library is one that can be installed."""
from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import LESSONS, NOTEBOOKS, PACKAGE, ROOT, TOOLBOX, code, imported, is_exported, module_of, name_of, read
from execute import machine_paths, texts

MODULES = sorted(
    ".".join(p.relative_to(ROOT).with_suffix("").parts) for p in PACKAGE.rglob("*.py") if p.name not in ("__init__.py", "_modidx.py")
)
HEAVY = ("jupyterlab", "matplotlib.pyplot", "sklearn")
NUMBERS = {module_of(p): int(p.name[:2]) for p in LESSONS if module_of(p)}  # lesson modules


def run(*command: object, cwd: Path, **env: str) -> str:
    """The output of a command that must succeed."""
    done = subprocess.run([str(c) for c in command], cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the library is made of."""
    copy = tmp_path_factory.mktemp("copy")
    for name in ("nbs", "diffusion_course"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    for name in ("settings.ini", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).exists(): shutil.copy(ROOT / name, copy)
    return copy


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of the notebooks and the package; line ends do not count, git may change those."""
    files = [p for name in ("nbs", "diffusion_course") for p in (folder / name).rglob("*") if p.is_file() and "__pycache__" not in p.parts and p.name != "_modidx.py"]
    return {p.relative_to(folder).as_posix(): p.read_bytes().replace(b"\r\n", b"\n") for p in files}


# ---- notebooks and modules -------------------------------------------------------------------------------------------

def test_export_and_clean_change_nothing(tree: Path) -> None:
    before = contents(tree)
    run(sys.executable, "-c", "from nbdev.doclinks import nbdev_export; nbdev_export()", cwd=tree, PYTHONUTF8="1")
    run(sys.executable, "-c", "from nbdev.clean import nbdev_clean; nbdev_clean()", cwd=tree, PYTHONUTF8="1")
    after = contents(tree)
    changed = sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))
    assert not changed, f"run `make export`: {changed} are not as their notebooks say"


def test_every_module_has_a_notebook_and_the_other_way_round() -> None:
    exported = [m for p in NOTEBOOKS if (m := module_of(p))]
    assert len(set(exported)) == len(exported), "two notebooks export the same module"
    assert sorted(exported) == MODULES


@pytest.fixture(scope="module")
def imports() -> Iterator[dict[str, Future]]:
    """Each module imported in an interpreter of its own, two or more at a time: what it pulled in, or how it failed."""
    script = "import importlib, json, sys; importlib.import_module(sys.argv[1]); print(json.dumps([m for m in sys.argv[2:] if m in sys.modules]))"
    with ThreadPoolExecutor(os.cpu_count() or 2) as pool:
        yield {m: pool.submit(run, sys.executable, "-I", "-c", script, m, *HEAVY, "torch", cwd=ROOT.parent) for m in MODULES}


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_alone_and_lightly(module: str, imports: dict[str, Future]) -> None:
    pulled = set(json.loads(imports[module].result()))
    assert not pulled & set(HEAVY), f"importing {module} imports {pulled & set(HEAVY)}"
    assert module != "diffusion_course.cli" or "torch" not in pulled, "the command line must answer without waiting for torch"


def lower(module: str) -> set[str]:
    """The modules that a module may import."""
    toolbox = {module_of(p) for p in TOOLBOX}
    name = module.replace(".checks.", ".")
    if name not in NUMBERS: return toolbox
    return toolbox | {m for m, n in NUMBERS.items() if n < NUMBERS[name] or (m == name and m != module)}


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_only_what_comes_before_it(module: str) -> None:
    source = (ROOT / Path(*module.split("."))).with_suffix(".py").read_text(encoding="utf-8")
    assert imported(source, module) <= lower(module), f"{module} imports {imported(source, module) - lower(module)}"


@pytest.mark.parametrize("path", LESSONS, ids=name_of)
def test_lesson_imports_only_what_comes_before_it(path: Path) -> None:
    known = {module_of(p) for p in TOOLBOX} | {m for m, n in NUMBERS.items() if n <= int(path.name[:2])}
    found = {m for source in code(path) for m in imported(source)}
    assert found <= known, f"{path.name} imports {found - known}"


# ---- the wheel -------------------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_wheel_works_in_another_place(tree: Path, tmp_path: Path) -> None:
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q")
    run(*pip, "wheel", tree, "--no-deps", "--no-build-isolation", "-w", tmp_path / "dist", cwd=tmp_path)
    run(*pip, "install", "--no-deps", "--no-index", "--target", site, *(tmp_path / "dist").glob("*.whl"), cwd=tmp_path)
    script = "import importlib, sys; print(*(importlib.import_module(m).__file__ for m in sys.argv[1:]), sep='\\n')"
    files = run(sys.executable, "-P", "-c", script, *MODULES, cwd=elsewhere, PYTHONPATH=str(site)).split("\n")[:-1]
    assert len(files) == len(MODULES)
    assert all(Path(f).is_relative_to(site) for f in files), files
    assert (site / "diffusion_course" / "player.js").read_bytes() == (PACKAGE / "player.js").read_bytes()
    missing = [p for p in contents(tree) if p.startswith("diffusion_course/") and not (site / p).exists()]
    assert not missing, f"not in the wheel: {missing}"
    script = shutil.which("diffusion-course", path=str(site / "bin"))
    assert script, "the wheel has no console script"
    assert run(script, "--version", cwd=elsewhere, PYTHONPATH=str(site)).strip() == __import__("diffusion_course").__version__


# ---- the shape of a notebook -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_notebook_is_short(path: Path) -> None:
    cells = read(path)["cells"]
    own = [c["source"] for c in cells if c["cell_type"] == "code" and not is_exported(c["source"])]
    words = sum(len(c["source"].split()) for c in cells if c["cell_type"] == "markdown")
    lines = [[line for line in source.splitlines() if line.strip()] for source in own]
    assert len(cells) <= 60
    assert words <= 2500
    assert sum(map(len, lines)) <= 250
    longest = max(own, key=lambda s: len(s.splitlines()), default="")
    assert len(longest.splitlines()) <= 25, f"this cell is too long:\n{longest[:300]}"
    assert path.stat().st_size < 2_000_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_notebook_is_clean(path: Path) -> None:
    cells = read(path)["cells"]
    assert all(re.fullmatch(r"[\w-]{1,64}", c.get("id", "")) for c in cells), "a cell without an id"
    assert len({c["id"] for c in cells}) == len(cells), "two cells with the same id"
    for cell in cells:
        for output in cell.get("outputs", []):
            where = f"{path.name}, cell {cell['id']}"
            assert output["output_type"] != "error", f"{where}: {output.get('ename')}"
            assert output.get("name") != "stderr", f"{where}: {output['text']}"
            for text in texts(output):
                assert not machine_paths(text), f"{where}: {machine_paths(text)}"
            page = "".join(output.get("data", {}).get("text/html", ""))
            assert not re.search(REMOTE, page), f"{where} loads {re.search(REMOTE, page)[0]!r} from the network"


# What a page would load by itself; a link to click on is none of that.
REMOTE = r"""(?i)(<(script|link|img|iframe|source|audio|video|object|embed)\b[^>]*?(src|href|data)\s*=\s*["']?(https?:)?//|@import\s+[^;]*//|url\(\s*["']?(https?:)?//|(import|fetch)\s*\(\s*["'](https?:)?//)[^\s"'>]*"""


@pytest.mark.parametrize("path", LESSONS, ids=name_of)
def test_lesson_reads_well_without_a_kernel(path: Path) -> None:
    outputs = [o for c in read(path)["cells"] for o in c.get("outputs", [])]
    assert outputs, "run `make lessons`: nothing is stored"
    pictures = [o for o in outputs if "image/png" in o.get("data", {}) or 'src="data:image' in "".join(o.get("data", {}).get("text/html", ""))]
    assert pictures, "no still picture is stored"
    dead = [o for o in outputs if "application/vnd.jupyter.widget-view+json" in o.get("data", {})]
    assert not dead, "an output links to a widget that ended with its kernel: run `make lessons`"


def test_ruff_has_nothing_to_say() -> None:
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "."], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_examples_of_the_readme_run() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    points, pictures = re.findall(r"```python\n(.*?)```", readme, re.S)
    space: dict = {}
    exec(points, space)
    samples = space["samples"]
    assert samples.shape == (500, 2) and 0.2 < samples.std() < 1.4
    assert (space["running_mixture"]().label_probs(samples).argmax(1) == 1).float().mean() > 0.95, "guided towards label 1"
    exec(pictures, space)
    assert space["pictures"].shape == (16, 3, 32, 32) and 0.2 < space["pictures"].std() < 1.0


def test_readme_and_index_show_the_same_map() -> None:
    rows = lambda text: [line.replace("(nbs/", "(") for line in text.splitlines() if re.match(r"\| \[\d\d ", line)]
    index = "\n".join(c["source"] for c in read(ROOT / "nbs" / "index.ipynb")["cells"])
    assert rows((ROOT / "README.md").read_text(encoding="utf-8")) == rows(index) and len(rows(index)) == len(LESSONS)
