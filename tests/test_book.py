"""The tables that the tools fill: each row is measured once."""
from __future__ import annotations

import json
from pathlib import Path

import pytest
from book import Book


def test_a_book_measures_each_row_once_and_survives_a_stop(tmp_path: Path) -> None:
    path, calls = tmp_path / "b.json", []

    def measure(value: int) -> dict:
        calls.append(value)
        if value == 3: raise KeyboardInterrupt
        return dict(found=2 * value)

    def rows() -> list[dict]: return json.loads(path.read_text(encoding="utf-8"))["t"]

    about = dict(quick=False, model="a")
    for _ in range(2):
        b = Book(path, about, anew=("model",))
        assert [b.row("t", dict(k=k), measure, k)["found"] for k in (1, 2)] == [2, 4]
    with pytest.raises(KeyboardInterrupt): b.row("t", dict(k=3), measure, 3)
    assert calls == [1, 2, 3] and [r["k"] for r in rows()] == [1, 2]

    other = about | dict(model="b")
    assert Book(path, other).row("t", dict(k=1), measure, 1)["found"] == 2 and len(calls) == 3
    Book(path, other, anew=("model",)).row("t", dict(k=1), measure, 1)
    assert calls == [1, 2, 3, 1] and len(rows()) == 1
    with pytest.raises(SystemExit, match="expected another --out"): Book(path, dict(quick=True))
