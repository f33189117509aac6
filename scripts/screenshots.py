"""Pictures of a report for the docs: ``make screenshots`` runs Esper on digits and photographs what it wrote."""

import os
import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from esper.cli.main import main

IMAGES = Path(__file__).parent.parent / "docs" / "images"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
SECTIONS = ("curves", "anatomy", "lanes", "worth", "lattice")


def run(directory: Path) -> Path:
    """A run with the defaults, as ``make run`` does it; gives its report."""
    code = main(["run", "--output", str(directory), "--plain"])
    if code:
        sys.exit(code)
    return directory / "report.html"


def photograph(page: Page, report: Path) -> None:
    """The top of the page, and its sections one by one."""
    page.goto(report.as_uri())
    page.locator("#lattice canvas.marks").wait_for()
    page.screenshot(path=IMAGES / "report.png", clip={"x": 0, "y": 0, "width": 1100, "height": 900})
    for name in SECTIONS:
        page.locator(f"#{name}").screenshot(path=IMAGES / f"report-{name}.png")
    page.locator("#lattice canvas").first.click(position={"x": 200, "y": 20})
    page.locator("#lattice").screenshot(path=IMAGES / "report-seeds.png")


if __name__ == "__main__":
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        sys.exit("No browser found: run scripts/browser.")
    IMAGES.mkdir(exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as play:
        report = run(Path(scratch) / "digits-0")
        chromium = play.chromium.launch(executable_path=browser, args=FLAGS)
        photograph(chromium.new_page(viewport={"width": 1100, "height": 900}), report)
        chromium.close()
    print(f"Written to {IMAGES}")
