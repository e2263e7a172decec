# SPDX-License-Identifier: GPL-2.0-or-later
"""On a terminal, ``swtdx run`` says that it waits for the guest until the guest has shown something."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CLEARED = "\x1b[2J\x1b[01;01H\x1b[=3h"  # what EDK II begins with
COMMAND = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
import swtdx.cli.machine_parts
from tests.vmm.fake_kernel import FakeKernel, typed
swtdx.cli.machine_parts.kernel_named = lambda *a, **k: FakeKernel(plays={{0: typed({CLEARED!r})}})
from swtdx.cli import main; main()
"""


def test_a_firmware_that_only_clears_the_screen_has_shown_nothing(firmware: Path, tmp_path: Path) -> None:
    (tmp_path / "command.py").write_text(COMMAND)
    master, slave = pty.openpty()
    command: list[str | Path] = [sys.executable, tmp_path / "command.py", "run", "--firmware", firmware]
    run = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=os.environ | {"TERM": "xterm"})
    try:
        shown = ""
        while "printed nothing yet" not in shown.partition(CLEARED)[2]:
            assert select.select([master], [], [], 60)[0], f"nothing more came after {shown!r}"
            shown += os.read(master, 65536).decode(errors="replace")
    finally:
        run.kill()
        run.wait()
        os.close(slave)
        os.close(master)
