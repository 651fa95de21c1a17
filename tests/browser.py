"""A page in a real browser: what it draws, and what its console complains of."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--enable-unsafe-swiftshader", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--enable-logging=stderr"),
)
SCHEMES = {"dark": 0, "light": 1}
"""Blink's numbers of the schemes that a reader may prefer."""
in_a_browser = pytest.mark.skipif(BROWSER is None, reason="needs chromium or chrome")


def opened(page: Path, folder: Path, *flags: str) -> tuple[str, list[str]]:
    """(what the browser prints, complaints of the console) once the page's scripts ran."""
    command = [str(BROWSER), *FLAGS, *flags, f"--user-data-dir={folder}", page.resolve().as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=True)
    console = [line for line in done.stderr.splitlines() if ":CONSOLE:" in line]
    return done.stdout, [line for line in console if re.search(r"ERROR:CONSOLE|Uncaught|Refused|Content Security Policy", line)]


def rendered(page: Path, folder: Path) -> tuple[str, list[str]]:
    """(the document after its scripts ran, complaints of the console)."""
    return opened(page, folder, "--virtual-time-budget=8000", "--dump-dom")


def photographed(page: Path, folder: Path, scheme: str) -> tuple[Counter[str], list[str]]:
    """(pixels of each colour as "#rrggbb" in a window of 1280 x 1500, complaints of the console), in that scheme."""
    picture = folder.with_suffix(".png")
    look = ("--window-size=1280,1500", "--hide-scrollbars", f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}")
    complaints = opened(page, folder, *look, "--virtual-time-budget=500", f"--screenshot={picture}")[1]
    with Image.open(picture) as image:
        assert image.size == (1280, 1500)
        found = image.convert("RGB").getcolors(maxcolors=image.width * image.height)
    assert found is not None
    return Counter({f"#{red:02x}{green:02x}{blue:02x}": count for count, (red, green, blue) in found}), complaints
