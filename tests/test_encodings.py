"""Text is read and written in UTF-8, whatever a machine's own encoding is."""
from __future__ import annotations

import ast
import json
from collections.abc import Iterator

import pytest
from conftest import NOTEBOOKS, ROOT

FOLDERS = ("benchmarks", "site", "tests", "tools")
SCRIPTS = [ROOT / "setup.py"]
for name in FOLDERS:  # without environments, of which `make bench` makes one
    SCRIPTS += [p for p in sorted((ROOT / name).rglob("*.py")) if "/." not in p.relative_to(ROOT).as_posix()]
OTHERS = ("Image", "os", "tarfile", "webbrowser")  # whose `open` is another one
STARTS = ("run", "Popen", "check_output", "check_call", "call")


def sources() -> Iterator[tuple[str, str]]:
    """Name and text of every script, and of every cell of the notebooks."""
    for path in SCRIPTS: yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
    for path in NOTEBOOKS:
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            lines = [line for line in cell["source"] if not line.lstrip().startswith(("%", "!"))]
            if cell["cell_type"] == "code": yield f"{path.name}, {cell['id']}", "".join(lines)


def left_to_the_machine(source: str) -> list[str]:
    """The calls in a program that read or write text in the encoding of the machine."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [ast.unparse(call) for call in calls if _lacks(call)]


def _lacks(call: ast.Call) -> bool:
    said = {k.arg: k.value for k in call.keywords}
    if "encoding" in said: return False
    of = call.func.value if isinstance(call.func, ast.Attribute) else None
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name == "read_text": return not call.args
    if name == "write_text": return len(call.args) < 2
    if name in STARTS:
        flags = [said.get(k) for k in ("text", "universal_newlines")]
        return any(isinstance(flag, ast.Constant) and flag.value is True for flag in flags)
    if name != "open" or (isinstance(of, ast.Name) and of.id in OTHERS): return False
    arguments = [None, *call.args] if of else call.args  # of a path, or of its own
    return _is_text(said.get("mode", arguments[1] if len(arguments) > 1 else None))


def _is_text(mode: ast.expr | None) -> bool:
    "Whether a file is opened so; a mode that is no constant counts as binary."
    if mode is None: return True
    return isinstance(mode, ast.Constant) and isinstance(mode.value, str) and "b" not in mode.value


def test_text_has_an_encoding() -> None:
    found = {name: calls for name, source in sources() if (calls := left_to_the_machine(source))}
    assert not found, found


@pytest.mark.parametrize("source", [
    "p.read_text()", "(a / 'b').read_text()", "p.write_text(s)",
    "open(p)", "open(p, 'w')", "open(p, mode='a')", "p.open()", "(a / 'b').open('r')",
    "subprocess.run(c, text=True)", "run(c, universal_newlines=True)",
])
def test_what_is_left_to_the_machine_is_found(source: str) -> None:
    assert left_to_the_machine(source) == [ast.unparse(ast.parse(source).body[0])]


@pytest.mark.parametrize("source", [
    "p.read_text('utf-8')", "p.read_text(encoding='utf-8')", "p.write_text(s, 'utf-8')",
    "open(p, 'rb')", "open(p, encoding='utf-8')", "Image.open(p)", "p.open('wb')",
    "run(c)", "run(c, text=True, encoding='utf-8')",
])
def test_what_has_an_encoding_is_not_found(source: str) -> None:
    assert not left_to_the_machine(source)
