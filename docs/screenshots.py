"""Pictures of a report in a real browser: ``python docs/screenshots.py [CHROMIUM]``.

Needs playwright, and a browser of its own (``playwright install chromium``) or the path
of another one. Makes ``images/report.png`` and ``images/report_narrow.png``, of a short
comparison, which takes minutes; a page that is wider than the window is an error.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

IMAGES = Path(__file__).parent / "images"

#: Width and height of the window for each picture.
WINDOWS = {"report": (1280, 1500), "report_narrow": (390, 1500)}

COMPARE = [
    "-m", "recbole_fedras", "compare", "--compressors=none SVD FedRAS KLT",
    "--epochs=60", "--seeds=2020 1",
]  # fmt: skip


def main(executable: str | None = None) -> None:
    """Compare, and take the pictures."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, *COMPARE], cwd=folder, check=True)  # noqa: S603
        report = Path(folder) / "comparison" / "report.html"
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=executable)
            for name, size in WINDOWS.items():
                take(browser, report, IMAGES / f"{name}.png", size)
            browser.close()


def take(
    browser: Browser, page_file: Path, picture: Path, size: tuple[int, int]
) -> None:
    """Take a picture of what a window of that size shows of a page."""
    page = browser.new_page(viewport={"width": size[0], "height": size[1]})
    page.goto(page_file.as_uri())
    width = page.evaluate("document.documentElement.scrollWidth")
    if width > size[0]:
        raise SystemExit(f"{page_file}: {width} wide in a window of {size[0]}")
    page.screenshot(path=picture)
    page.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
