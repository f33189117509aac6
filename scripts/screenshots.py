"""Pictures of a report for the docs: ``make screenshots`` runs Esper on digits and photographs what it wrote."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from esper.cli.main import main

IMAGES = Path(__file__).parent.parent / "docs" / "images"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
SECTIONS = ("curves", "anatomy", "lanes", "worth", "lattice")
MARGIN = 24


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
        section(page, name, f"report-{name}.png")
    page.locator("#lattice canvas").first.click(position={"x": 200, "y": 20})
    section(page, "lattice", "report-seeds.png")


def section(page: Page, name: str, image: str) -> None:
    """One section with a margin around it."""
    box = page.locator(f"#{name}").bounding_box()
    assert box is not None
    top = box["y"] + page.evaluate("window.scrollY")
    clip = {
        "x": box["x"] - MARGIN,
        "y": top - MARGIN / 2,
        "width": box["width"] + 2 * MARGIN,
        "height": box["height"] + MARGIN,
    }
    page.screenshot(path=IMAGES / image, clip=clip, full_page=True)


if __name__ == "__main__":
    browser = subprocess.run(
        [Path(__file__).with_name("browser")], check=True, capture_output=True, text=True
    ).stdout.strip()
    IMAGES.mkdir(exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as play:
        report = run(Path(scratch) / "digits-0")
        chromium = play.chromium.launch(executable_path=browser, args=FLAGS)
        photograph(chromium.new_page(viewport={"width": 1100, "height": 900}), report)
        chromium.close()
    print(f"Written to {IMAGES}")
