"""Measure what the README claims, ours and others' in turns: `make bench`, `make bench ARGS="loop unet"`.

Each topic is a module beside this one whose `measure(quick)` returns plain data: tables, goals, plots. What it
found is written to `benchmarks/results/` when the topic ends, so that a run that is stopped loses only the topic it
was in; topics that aren't named keep what they had. At the end `report.py` writes `benchmarks/README.md` anew.
Close what else computes on the machine first: the report says how busy it was.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import report
from measuring import machine, versions
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"


def write(path: Path, data: dict[str, Any]) -> None:
    """All of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def measured(topic: str, quick: bool) -> dict[str, Any]:
    """What a topic found, with the machine, the versions, the date and the seconds it took."""
    before = machine()
    begin = time.perf_counter()
    found = importlib.import_module(topic).measure(quick=quick)
    about = dict(
        command=f"make bench ARGS={topic}",
        date=datetime.date.today().isoformat(),
        quick=quick,
        seconds=round(time.perf_counter() - begin),
        machine=before,
        versions=versions(),
    )
    return dict(about=about, **found)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the topics named, or all; 1 where one of them failed, 130 where it was stopped."""
    names = list(report.TOPICS)
    parser = argparse.ArgumentParser(prog="make bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "topics", nargs="*", metavar="topic", help=f"of {', '.join(names)}; default: all"
    )
    parser.add_argument(
        "--quick", action="store_true", help="few repeats, small settings: to see that all runs"
    )
    parser.add_argument(
        "--label", default="", help="another machine: its results are kept beside the first's"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=None,
        metavar="FOLDER",
        help="for results and report; default: benchmarks, and out/bench with --quick",
    )
    args = parser.parse_args(argv)
    unknown = [t for t in args.topics if t not in names]
    if unknown:
        parser.error(f"{', '.join(unknown)}: expected topics of {', '.join(names)}")
    if not args.label.replace("-", "").isalnum() and args.label:
        parser.error(f"label is {args.label!r}: expected letters, digits and hyphens")
    out = args.out or (HERE.parent / "out" / "bench" if args.quick else HERE)
    failed = []
    bar = tqdm([t for t in names if t in args.topics] or names, unit="topic")
    try:
        for topic in bar:
            bar.set_description(topic)
            try:
                found = measured(topic, args.quick)
            except Exception as e:  # the other topics go on
                tqdm.write(f"{topic}: {type(e).__name__}: {e}", file=sys.stderr)
                failed.append(topic)
                continue
            write(out / "results" / f"{topic}{'.' + args.label if args.label else ''}.json", found)
            tqdm.write(f"{topic}: {found['about']['seconds']} s")
    except KeyboardInterrupt:
        print(f"\nStopped. What was finished is kept in {out / 'results'}.", file=sys.stderr)
        report.write(out)
        return 130
    report.write(out)
    print(f"Written: {out / 'README.md'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
