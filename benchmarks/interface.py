"""How fast the interface answers in headless Chromium: `python benchmarks/interface.py`."""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from interface import NO_BROWSER, find_browser, measure_speed, open_browser, serve  # noqa: E402


def main() -> int:
    """Print the table; 1 where there is no browser."""
    if not find_browser():
        print(NO_BROWSER, file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as tmp:
        notebooks = Path(tmp) / "nbs"
        notebooks.mkdir()
        with serve(notebooks, Path(tmp)) as server, open_browser() as browser:
            print(
                measure_speed(
                    browser.new_page(viewport={"width": 1400, "height": 1000}), server, notebooks
                )
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
