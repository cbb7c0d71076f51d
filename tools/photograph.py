"""Photograph the site for README.md: `make site`, then `python tools/photograph.py`.

Two panels of lessons as they look in the web edition go to docs/panels.png; it needs Chromium.
"""

from __future__ import annotations

import functools
import http.server
import io
import sys
import threading
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from interface import open_browser  # noqa: E402

SHOWN = (
    ("nbs/06_score_matching", 1),
    ("nbs/15_sampling_pictures", 0),
)  # a lesson, and which of its panels


def main() -> None:
    """Write docs/panels.png."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(ROOT / "_site"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    shots = []
    with open_browser() as browser:
        page = browser.new_page(
            viewport={"width": 640, "height": 1400}, color_scheme="light", device_scale_factor=1.5
        )
        for lesson, k in SHOWN:
            page.goto(f"http://127.0.0.1:{server.server_port}/{lesson}.html")
            panel = page.locator(".ahead").nth(k)
            panel.scroll_into_view_if_needed()
            page.wait_for_timeout(4000)
            shots.append(Image.open(io.BytesIO(panel.screenshot())).convert("RGB"))
    height = max(s.height for s in shots)
    sheet = Image.new("RGB", (sum(s.width for s in shots) + 24, height), "white")
    x = 0
    for shot in shots:
        sheet.paste(shot, (x, 0))
        x += shot.width + 24
    sheet.quantize(128).save(ROOT / "docs" / "panels.png", optimize=True)


if __name__ == "__main__":
    main()
