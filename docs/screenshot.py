# SPDX-License-Identifier: GPL-2.0-or-later
"""The first screen of a page as a PNG: ``python docs/screenshot.py PAGE.html OUT.png``, by a headless Chromium.

README's picture of a run is made by it, of what ``swtdx run --until 'UEFI Interactive Shell' --html PAGE.html`` writes.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SIZE = (1440, 680)
"""In pixels: what README has room for."""
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def picture(page: Path, target: Path) -> None:
    """Write the picture. Exits with a sentence where there is no browser."""
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if browser is None:
        raise SystemExit("docs/screenshot.py: there is no Chromium here: install the package chromium")
    with tempfile.TemporaryDirectory() as folder:
        quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
        where = [f"--user-data-dir={folder}/profile", f"--window-size={SIZE[0]},{SIZE[1]}"]
        shot = Path(folder, "page.png")
        command = [browser, *quiet, *where, f"--screenshot={shot}", page.resolve().as_uri()]
        subprocess.run(command, check=True, timeout=120, capture_output=True)
        shutil.copy(shot, target)


if __name__ == "__main__":
    picture(*map(Path, sys.argv[1:3]))
