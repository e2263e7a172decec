# SPDX-License-Identifier: GPL-2.0-or-later
"""``swtdx qemu --fw-cfg``: the files of a QEMU's fw_cfg, from a program that speaks QEMU's qtest protocol."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from swtdx.attest.machine_files import read_fw_cfg

QEMU = """#!{python}
import socket, struct, sys

if "--version" in sys.argv:
    print("QEMU emulator version 11.1.0")
    sys.exit(0)
assert "-S" in sys.argv, "the guest would run"
{early}
path = sys.argv[sys.argv.index("-qtest") + 1].split(",")[0].removeprefix("unix:")
files = {{"etc/table-loader": b"script", "etc/acpi/tables": bytes(range(256)) * 20, "bootorder": b""}}
listed = struct.pack(">I", len(files))
items = {{0x0E: b"\\1\\0"}}
for number, (name, contents) in enumerate(files.items()):
    listed += struct.pack(">IHH56s", len(contents), 0x20 + number, 0, name.encode())
    items[0x20 + number] = contents
items[0x19] = listed
server = socket.socket(socket.AF_UNIX)
server.bind(path)
server.listen()
connection, _ = server.accept()
selected, at = b"", 0
for line in connection.makefile("r"):
    words = line.split()
    if words[0] == "outw":
        selected, at = items[int(words[2], 0)], 0
        connection.sendall(b"[I 0.1] OPENED\\nOK\\n")
    else:
        connection.sendall(b"OK 0x%04x\\n" % (selected[at] if at < len(selected) else 0))
        at += 1
"""


def dumped(tmp_path: Path, early: str = "") -> subprocess.CompletedProcess[str]:
    program = tmp_path / "qemu"
    program.write_text(QEMU.format(python=sys.executable, early=early))
    program.chmod(0o755)
    command = [sys.executable, "-m", "swtdx", "qemu", "--qemu", str(program), "--firmware", str(program)]
    return subprocess.run(
        [*command, "--fw-cfg", str(tmp_path / "fw_cfg"), "-m", "1G"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_files_of_fw_cfg_are_written_by_their_names(tmp_path: Path) -> None:
    done = dumped(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert read_fw_cfg(tmp_path / "fw_cfg") == {
        "etc/table-loader": b"script", "etc/acpi/tables": bytes(range(256)) * 20, "bootorder": b"", "BootMenu": b"\1\0",
    }  # fmt: skip


@pytest.mark.parametrize("early", ["sys.exit(3)", "sys.exit('no such machine')"])
def test_a_qemu_that_ends_is_one_sentence(tmp_path: Path, early: str) -> None:
    done = dumped(tmp_path, early)
    assert done.returncode == 125
    assert "does not give its fw_cfg: it ended with status" in done.stderr.splitlines()[-1]
