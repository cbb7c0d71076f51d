"""Execute notebooks as Jupyter does and store their outputs: `python tools/execute.py [--check]
[notebook ...]`.

A notebook is written only when every cell ran without an error, a warning or a path of this machine
in its outputs.
"""
from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from tqdm import tqdm

from diffusion_course.cli import keep_stills, lab_environment

ROOT = Path(__file__).resolve().parents[1]
BASE64 = re.compile(r"[A-Za-z0-9+/=\\]{120,}")  # images and points: by chance anything stands in them
PROGRESS = re.compile(r"\s*(.*\d+%\|.*|\d+(it|step)s? \[.*)?\s*")  # a line of a progress bar


class NotebookError(Exception):
    """What is wrong with a notebook, with its name and cell."""


def notebooks(folder: Path = ROOT / "nbs") -> list[Path]:
    """All notebooks of a folder in reading order, without Jupyter's checkpoints."""
    return sorted(p for p in folder.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


def texts(output: dict) -> list[str]:
    """Everything in an output that a reader could read, as strings without embedded images."""
    data = output.get("data", {})
    is_text = lambda kind: kind.startswith("text/") or kind.endswith(("svg+xml", "javascript"))
    readable = [content for kind, content in data.items() if is_text(kind)]
    found = [output.get("text", ""), output.get("evalue", ""), *readable]
    return [BASE64.sub("", "".join(t) if isinstance(t, list) else t) for t in found]


def machine_paths(text: str) -> list[str]:
    """Absolute paths in a text that are true on one machine only."""
    folders = ROOT, Path.home(), Path(tempfile.gettempdir()), Path(sys.prefix)
    here = {str(p) for p in folders if len(p.parts) > 1}
    exact = [p for p in here if re.search(rf"(?<![\w/.]){re.escape(p)}(?!\w)", text)]
    return exact + re.findall(r"(?<![\w/.])/(?:home|Users)/\w+|\b[A-Z]:\\\\?Users\b|site-packages", text)


def is_progress(output: dict) -> bool:
    """Whether an output is nothing but a progress bar, which says nothing once it is over."""
    return output.get("name") == "stderr" and all(map(PROGRESS.fullmatch, re.split(r"[\r\n]", output["text"])))


def problem(output: dict) -> str | None:
    """What must not be stored in an output, in words."""
    if output["output_type"] == "error": return f"{output['ename']}: {output['evalue']}"
    if output.get("name") == "stderr": return f"wrote to stderr: {output['text'].strip()[:300]}"
    html = "".join(output.get("data", {}).get("text/html", ""))
    if found := re.search(r'role="alert"[^>]*>(.*?)</div>', html): return f"a panel shows {found[1]}"
    paths = [p for t in texts(output) for p in machine_paths(t)]
    return f"holds a path of this machine: {paths[0]}" if paths else None


def execute(path: Path, timeout: float = 600) -> nbformat.NotebookNode:
    """The notebook with fresh outputs; the file is left alone. A `NotebookError` names the cell that failed."""
    nb = nbformat.read(path, as_version=4)
    os.environ.update(lab_environment())
    client = NotebookClient(
        nb, timeout=timeout, kernel_name="python3", store_widget_state=False, record_timing=False,
        resources={"metadata": {"path": str(path.parent)}}, extra_arguments=["--log-level=ERROR"],
    )
    failure = None
    try: client.execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error: failure = error
    for k, cell in enumerate(nb.cells):
        if cell.cell_type != "code": continue
        cell.outputs = [o for o in cell.outputs if not is_progress(o)]
        for output in cell.outputs:
            if said := problem(output): raise NotebookError(f"{path.name}, cell {k + 1} ({cell.id}): {said}")
    if failure is not None: raise NotebookError(f"{path.name}: {failure}")
    return keep_stills(nb)


def store(path: Path, nb: nbformat.NotebookNode) -> None:
    """Write an executed notebook the way `nbdev_clean` leaves it."""
    from execnb.nbio import nb2str
    from nbdev.clean import clean_nb
    from nbdev.config import get_config

    plain = json.loads(nbformat.writes(nb))
    clean_nb(plain, allowed_cell_metadata_keys=get_config(path=ROOT).allowed_cell_metadata_keys.split())
    path.write_text(nb2str(plain), encoding="utf-8", newline="\n")


def main(argv: list[str] | None = None) -> int:
    """Execute the notebooks named (default: all), one after the other; 1 where any failed."""
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("notebooks", nargs="*", type=Path, help="default: all in nbs/")
    args.add_argument("--check", action="store_true", help="execute without writing")
    args = args.parse_args(argv)
    paths = [p.resolve() for p in args.notebooks] or notebooks()
    failed = 0
    bar = tqdm(paths, unit="notebook", dynamic_ncols=True)
    for path in bar:
        bar.set_description(path.stem)
        start = time.perf_counter()
        try:
            nb = execute(path)
            if not args.check: store(path, nb)
            shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
            tqdm.write(f"{time.perf_counter() - start:6.1f} s  {shown}")
        except NotebookError as error:
            failed += 1
            tqdm.write(f"FAILED  {error}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
