"""The notebooks and the library are the same thing, and the library can be installed."""
from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from configparser import ConfigParser
from pathlib import Path

import pytest
from code_table import BEGIN, END, ROWS, TYPES, Repo, Row, type_errors, written_before
from conftest import LESSONS, NOTEBOOKS, PACKAGE, ROOT, TOOLBOX
from conftest import code, imported, is_exported, module_of, name_of, read
from execute import machine_paths, texts
from lowest_versions import lowest_versions
from packaging.requirements import Requirement

SOURCES = [p for p in PACKAGE.rglob("*.py") if p.name not in ("__init__.py", "__main__.py", "_modidx.py")]
MODULES = sorted(".".join(p.relative_to(ROOT).with_suffix("").parts) for p in SOURCES)
HEAVY = ("jupyterlab", "matplotlib.pyplot", "sklearn")
NUMBERS = {module_of(p): int(p.name[:2]) for p in LESSONS if module_of(p)}  # lesson modules
BRIDGES = {"diffusion_course.hub": 22.5}  # of the toolbox, but above the lessons before lesson 23
PLACES = NUMBERS | BRIDGES


def run(*command: object, cwd: Path, **env: str) -> str:
    """The output of a command that must succeed."""
    done = call(*command, cwd=cwd, **env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def call(*command: object, cwd: Path, **env: str) -> subprocess.CompletedProcess:
    """What a command did."""
    environment = {**os.environ, **env}
    return subprocess.run(
        [str(c) for c in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )


def text_of(name: str) -> str:
    """A text file of the project."""
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the library is made of."""
    copy = tmp_path_factory.mktemp("copy")
    ignored = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for name in ("nbs", "diffusion_course"): shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    for name in ("settings.ini", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    return copy


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of the notebooks and the package; line ends do not count, git may change those."""
    files = [p for name in ("nbs", "diffusion_course") for p in (folder / name).rglob("*") if p.is_file()]
    files = [p for p in files if "__pycache__" not in p.parts and p.name != "_modidx.py"]
    return {p.relative_to(folder).as_posix(): p.read_bytes().replace(b"\r\n", b"\n") for p in files}


# ---- notebooks and modules -----------------------------------------------------------------------

def test_export_and_clean_change_nothing(tree: Path) -> None:
    before = contents(tree)
    for command in ("doclinks import nbdev_export", "clean import nbdev_clean"):
        script = f"from nbdev.{command}; {command.split()[-1]}()"
        run(sys.executable, "-c", script, cwd=tree, PYTHONUTF8="1")
    after = contents(tree)
    changed = sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))
    assert not changed, f"run `make export`: {changed} are not as their notebooks say"


def test_every_module_has_a_notebook_and_the_other_way_round() -> None:
    exported = [m for p in NOTEBOOKS if (m := module_of(p))]
    assert len(set(exported)) == len(exported), "two notebooks export the same module"
    assert sorted(exported) == MODULES


# Imports the module sys.argv[1] and prints which of the modules in sys.argv[2:] came with it.
IMPORT = """import importlib, json, sys
importlib.import_module(sys.argv[1])
print(json.dumps([m for m in sys.argv[2:] if m in sys.modules]))"""


@pytest.fixture(scope="module")
def imports() -> Iterator[dict[str, Future]]:
    """What each module pulls in, or how it fails, in an interpreter of its own; some at a time."""
    with ThreadPoolExecutor(os.cpu_count() or 2) as pool:
        pulled = lambda m: run(sys.executable, "-I", "-c", IMPORT, m, *HEAVY, "torch", cwd=ROOT.parent)
        yield {m: pool.submit(pulled, m) for m in MODULES}


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_alone_and_lightly(module: str, imports: dict[str, Future]) -> None:
    pulled = set(json.loads(imports[module].result()))
    assert not pulled & set(HEAVY), f"importing {module} imports {pulled & set(HEAVY)}"
    if module == "diffusion_course.cli":
        assert "torch" not in pulled, "the command line must answer without waiting for torch"


def lower(module: str) -> set[str]:
    """The modules that a module may import."""
    toolbox = {module_of(p) for p in TOOLBOX} - set(BRIDGES)
    name = module.replace(".checks.", ".")
    if name not in PLACES: return toolbox
    before = {m for m, n in PLACES.items() if n < PLACES[name] or (m == name and m != module)}
    return toolbox | before


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_only_what_comes_before_it(module: str) -> None:
    found = imported(text_of(f"{module.replace('.', '/')}.py"), module)
    assert found <= lower(module), f"{module} imports {found - lower(module)}"


@pytest.mark.parametrize("path", LESSONS, ids=name_of)
def test_lesson_imports_only_what_comes_before_it(path: Path) -> None:
    known = {module_of(p) for p in TOOLBOX} - set(BRIDGES)
    known |= {m for m, n in PLACES.items() if n <= int(path.name[:2])}
    found = {m for source in code(path) for m in imported(source)}
    assert found <= known, f"{path.name} imports {found - known}"


def test_the_common_names_are_the_same_to_python_and_to_type_checkers() -> None:
    import diffusion_course as dc

    found: dict[str, set[str]] = {}
    for node in ast.walk(ast.parse(text_of("diffusion_course/__init__.py"))):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for line in node.body: found.setdefault(line.module, set()).update(a.name for a in line.names)
    assert found == {module: set(names) for module, names in dc._NAMES.items()}
    assert dc.__all__ == sorted(name for names in found.values() for name in names)
    assert all(getattr(dc, name) is not None for name in dc.__all__)
    modules = {m.split(".")[1] for m in MODULES if ".checks." not in m}
    assert set(dc._MODULES) == modules


# ---- what is needed ------------------------------------------------------------------------------

def requirements(*lists: str) -> list[Requirement]:
    """What settings.ini requires, by the names of its lists."""
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return [Requirement(r) for name in lists for r in config["DEFAULT"][name].split()]


CORE, LAB, HUB = "requirements", "lab_requirements", "hub_requirements"
FID, SITE, DEV = "fid_requirements", "site_requirements", "dev_requirements"
EXTRA_MODULES = {r.name.replace("-", "_") for r in requirements(LAB, HUB, FID, SITE, DEV)} | {"IPython", "traitlets"}
# Imports the modules in sys.argv[2:] as where those of sys.argv[1] are not installed.
IMPORT_WITHOUT = """import importlib, sys
sys.modules.update(dict.fromkeys(sys.argv[1].split()))
for module in sys.argv[2:]: importlib.import_module(module)"""


def test_the_library_needs_none_of_the_extras() -> None:
    core = [m for m in MODULES if m.split(".")[-1] not in ("player", "widgets")]
    run(sys.executable, "-c", IMPORT_WITHOUT, " ".join(sorted(EXTRA_MODULES)), *core, cwd=ROOT)


@pytest.mark.parametrize("module, package", [
    ("player", "anywidget"), ("widgets", "anywidget"), ("widgets", "ipywidgets"),
])
def test_panels_and_player_name_their_extra(module: str, package: str) -> None:
    done = call(sys.executable, "-c", IMPORT_WITHOUT, package, f"diffusion_course.{module}", cwd=ROOT)
    said = rf'ImportError: .*{package}.*: pip install "diffusion-course\[lab\]"'
    assert done.returncode == 1 and re.fullmatch(said, done.stderr.splitlines()[-1]), done.stderr


@pytest.mark.parametrize("package", ["jupyterlab", "ipywidgets", "anywidget"])
def test_the_command_lab_names_its_extra(package: str) -> None:
    script = f"{IMPORT_WITHOUT}\nsys.exit(importlib.import_module('diffusion_course.cli').main(['lab']))"
    done = call(sys.executable, "-c", script, package, cwd=ROOT)
    said = f'diffusion-course: the lessons need {package}: pip install "diffusion-course[lab]"\n'
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said)


def test_every_requirement_has_a_lowest_version_and_one_that_was_tried() -> None:
    assert len(lowest_versions()) == len(requirements(CORE, LAB, HUB))
    pins = [line.split("==") for line in text_of("constraints.txt").split()]
    tried = {name.lower().replace("_", "-"): version for name, version in pins}
    for r in requirements(CORE, LAB, HUB, SITE, DEV):
        version = tried.get(r.name.lower())
        assert version and version in r.specifier, f"{r}: constraints.txt has {version}"


def test_the_version_is_the_same_everywhere() -> None:
    version = re.search(r"(?m)^version = (\S+)$", text_of("settings.ini"))[1]
    assert re.search(r'(?m)^__version__ = "(\S+)"$', text_of("diffusion_course/__init__.py"))[1] == version
    assert re.search(r"(?m)^version: (\S+)$", text_of("CITATION.cff"))[1] == version
    changes = re.findall(r"(?m)^## \[(\S+)\]", text_of("CHANGELOG.md"))
    assert changes[0] == "Unreleased"
    assert changes[1:2] in ([], [version]), "the changelog ends with another release"


# ---- wheel and source distribution ---------------------------------------------------------------

PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q")


@pytest.mark.slow
def test_wheel_works_in_another_place(tree: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    wheel, _ = built(tree, tmp_path / "dist")
    run(*PIP, "install", "--no-deps", "--no-index", "--target", site, wheel, cwd=tmp_path)
    importing = "import importlib, sys\nfor m in sys.argv[1:]: print(importlib.import_module(m).__file__)"
    files = run(sys.executable, "-P", "-c", importing, *MODULES, cwd=elsewhere, PYTHONPATH=str(site)).splitlines()
    assert len(files) == len(MODULES)
    assert all(Path(f).is_relative_to(site) for f in files), files
    for script in ("diffusion_course/player.js", "diffusion_course/panel.js"):
        assert (site / script).read_bytes() == (ROOT / script).read_bytes()
    names = [name for name in contents(tree) if name.startswith("diffusion_course/")]
    missing = [name for name in names if not (site / name).exists()]
    assert not missing, f"not in the wheel: {missing}"
    command = shutil.which("diffusion-course", path=str(site / "bin"))
    assert command, "the wheel has no console script"
    version = run(command, "--version", cwd=elsewhere, PYTHONPATH=str(site)).strip()
    assert version == __import__("diffusion_course").__version__


@pytest.mark.slow
def test_the_source_distribution_makes_the_same_wheel(tree: Path, tmp_path: Path) -> None:
    index = tree / "diffusion_course" / "_modidx.py"
    index.write_text("d = {}\n", encoding="utf-8")  # as an export leaves it
    wheel, sdist = built(tree, tmp_path / "dist")
    options = ("--no-deps", "--no-build-isolation", "-w", tmp_path / "again")
    run(*PIP, "wheel", sdist, *options, cwd=tmp_path)
    [again] = (tmp_path / "again").glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "diffusion_course/py.typed" in names
    assert names == set(zipfile.ZipFile(again).namelist())
    with tarfile.open(sdist) as archive: names |= set(archive.getnames())
    assert not [name for name in names if name.endswith(index.name)]


def built(tree: Path, folder: Path) -> tuple[Path, Path]:
    """The wheel and the source distribution of a tree."""
    options = ("--no-isolation", "--wheel", "--sdist", "-o", folder)
    run(sys.executable, "-m", "build", *options, tree, cwd=tree.parent)
    [wheel] = folder.glob("*.whl")
    [sdist] = folder.glob("*.tar.gz")
    return wheel, sdist


# ---- the shape of a notebook ---------------------------------------------------------------------

@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_notebook_is_short(path: Path) -> None:
    cells = read(path)["cells"]
    own = [c["source"] for c in cells if c["cell_type"] == "code" and not is_exported(c["source"])]
    words = sum(len(c["source"].split()) for c in cells if c["cell_type"] == "markdown")
    own = ["\n".join(line for line in s.splitlines() if not line.startswith("#|")) for s in own]
    lines = [[line for line in source.splitlines() if line.strip()] for source in own]
    assert len(cells) <= 80
    assert words <= 5000
    assert sum(map(len, lines)) <= 380
    longest = max(own, key=lambda s: len(s.splitlines()), default="")
    assert len(longest.splitlines()) <= 25, f"this cell is too long:\n{longest[:300]}"
    assert path.stat().st_size < 2_000_000


# What a page would load by itself; a link to click on is none of that.
REMOTE = re.compile(r"""(?ix)
    ( <(script|link|img|iframe|source|audio|video|object|embed)\b[^>]*?(src|href|data)\s*=\s*["']?(https?:)?//
    | @import\s+[^;]*//
    | url\(\s*["']?(https?:)?//
    | (import|fetch)\s*\(\s*["'](https?:)?//
    )[^\s"'>]*""")


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
            html = "".join(output.get("data", {}).get("text/html", ""))
            assert 'role="alert"' not in html, f"{where}: a panel shows an error"
            remote = REMOTE.search("".join(output.get("data", {}).get("text/html", "")))
            assert not remote, f"{where} loads {remote[0]!r} from the network"


@pytest.mark.parametrize("path", LESSONS, ids=name_of)
def test_lesson_reads_well_without_a_kernel(path: Path) -> None:
    outputs = [o for c in read(path)["cells"] for o in c.get("outputs", [])]
    assert outputs, "run `make lessons`: nothing is stored"
    data = [o.get("data", {}) for o in outputs]
    pages = ["".join(d.get("text/html", "")) for d in data]
    assert any("image/png" in d for d in data) or any('src="data:image' in page for page in pages), "no image is stored"
    dead = [d for d in data if "application/vnd.jupyter.widget-view+json" in d]
    assert not dead, "an output links to a widget that ended with its kernel: run `make lessons`"


# ---- how the code reads --------------------------------------------------------------------------

@pytest.mark.parametrize("row", [row for row in ROWS if row != TYPES], ids=lambda row: row.name)
def test_the_code_is_within_its_limits(row: Row) -> None:
    value = row.value(Repo(ROOT))
    said = f"{row.shown(value)}, at most {row.limit:g}{row.unit}"
    assert value <= row.limit, f"{said}: {', '.join(row.find(Repo(ROOT))[:20])} ..."


@pytest.mark.slow
def test_types_are_right_in_the_library_and_in_the_examples_of_the_readme(tmp_path: Path) -> None:
    files = []
    for k, example in enumerate(re.findall(r"```python\n(.*?)```", text_of("README.md"), re.S)):
        files.append(tmp_path / f"readme_{k}.py")
        files[-1].write_text(example, encoding="utf-8")
    files.append(tmp_path / "names.py")
    names = "\n".join(f"dc.{name}" for name in __import__("diffusion_course").__all__)
    files[-1].write_text(f"import diffusion_course as dc\n{names}\n", encoding="utf-8")
    errors = type_errors(Repo(ROOT), *files)
    assert not errors, "\n".join(errors)


def test_the_code_table_is_in_contributing() -> None:
    page = text_of("CONTRIBUTING.md").split(BEGIN)[1].split(END)[0]
    rows = [name for name in written_before(page) if name]
    assert rows == [row.name for row in ROWS], "run `python tools/code_table.py --write`"


def test_ruff_has_nothing_to_say() -> None:
    done = call(sys.executable, "-m", "ruff", "check", ".", cwd=ROOT)
    assert done.returncode == 0, done.stdout


# ---- the readme ----------------------------------------------------------------------------------

def test_the_examples_of_the_readme_run() -> None:
    points, images = re.findall(r"```python\n(.*?)```", text_of("README.md"), re.S)
    space: dict = {}
    exec(points, space)
    samples = space["samples"]
    assert samples.shape == (500, 2) and 0.2 < samples.std() < 1.4
    labels = space["dc"].running_mixture().label_probs(samples).argmax(1)
    assert (labels == 1).float().mean() > 0.95, "guided towards label 1"
    exec(images, space)
    assert space["images"].shape == (16, 3, 32, 32) and 0.2 < space["images"].std() < 1.0


def test_readme_and_index_show_the_same_map() -> None:
    def rows(text: str) -> list[str]:
        return [line.replace("(nbs/", "(") for line in text.splitlines() if re.match(r"\| \[\d\d ", line)]

    index = "\n".join(c["source"] for c in read(ROOT / "nbs" / "index.ipynb")["cells"])
    assert rows(text_of("README.md")) == rows(index) and len(rows(index)) == len(LESSONS)
