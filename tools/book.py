"""Tables of slow measurements in a JSON file, a row at a time: what the tools beside this file fill, and lessons read."""
from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from diffusion_course.files import whole_file


class Book:
    """Tables in a file. A row that is there is not measured again; all are, if `about` now differs from the file's in one of `anew`."""

    def __init__(self, path: Path, about: dict, anew: tuple[str, ...] = ()):
        self.path, self.tables = path, json.loads(path.read_text()) if path.exists() else {}
        before = self.tables.get("about", about)
        if before.get("quick") != about.get("quick"):
            raise SystemExit(f"{path} was written {'without' if about.get('quick') else 'with'} --quick: expected another --out")
        if any(before.get(k) != about.get(k) for k in anew): self.tables = {}
        self.tables = dict(about=about) | {k: v for k, v in self.tables.items() if k != "about"}

    def row(self, table: str, key: dict, measure: Callable[..., dict], *args, **how) -> dict:
        """The row of this table with this key. If it isn't there, `measure(*args, **how)` makes it, and it is written."""
        rows = self.tables.setdefault(table, [])
        for row in rows:
            if all(row.get(k) == v for k, v in key.items()): return row
        print(f"{table}: {key}", flush=True)
        start = time.perf_counter()
        rows.append(key | measure(*args, **how) | dict(seconds=round(time.perf_counter() - start)))
        with whole_file(self.path) as fresh: fresh.write_text(json.dumps(self.tables, indent=1, ensure_ascii=False) + "\n")
        return rows[-1]
