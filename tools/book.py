"""Tables of slow measurements in a JSON file, written row by row: `measure_*.py` fill, lessons read them."""
from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from diffusion_course.files import whole_file


class Book:
    """Tables in a file. A row that is there is not measured again.

    Args:
        path: the JSON file; it need not exist.
        about: what is said of the measurement as a whole, at the head of the file.
        anew: keys of `about`: where one of them differs from the file's, all rows are measured again.
    """

    def __init__(self, path: Path, about: dict, anew: tuple[str, ...] = ()):
        self.path = path
        self.tables = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        before = self.tables.get("about", about)
        if before.get("quick") != about.get("quick"):
            written = "without" if about.get("quick") else "with"
            raise SystemExit(f"{path} was written {written} --quick: expected another --out")
        if any(before.get(k) != about.get(k) for k in anew): self.tables = {}
        self.tables = {"about": about} | {k: v for k, v in self.tables.items() if k != "about"}

    def row(self, table: str, key: dict, measure: Callable[..., dict], *args, **options) -> dict:
        """The row of this table with this key: the file's, or `measure(*args, **options)`, then written."""
        rows = self.tables.setdefault(table, [])
        for row in rows:
            if all(row.get(k) == v for k, v in key.items()): return row
        print(f"{table}: {key}", flush=True)
        start = time.perf_counter()
        rows.append(key | measure(*args, **options) | dict(seconds=round(time.perf_counter() - start)))
        text = json.dumps(self.tables, indent=1, ensure_ascii=False) + "\n"
        with whole_file(self.path) as file: file.write_text(text, encoding="utf-8")
        return rows[-1]
