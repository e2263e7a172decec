# SPDX-License-Identifier: GPL-2.0-or-later
"""fw_cfg of a QEMU that is started, and stopped before its guest runs: what ``swtdx measure --fw-cfg`` reads.

QEMU answers reads of its I/O ports on the socket of ``-qtest`` (QEMU, docs/devel/testing/qtest.rst), with any
accelerator.  ``-S`` keeps the guest from running; the ACPI tables are made by then.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from swtdx.cli.exec_command import OWN_FAILURE, ExecFailure

_SELECTOR, _DATA = 0x510, 0x511
_DIRECTORY, _BOOT_MENU = 0x19, 0x0E
_ENTRY = struct.Struct(">IHH56s")  # size, selector, reserved, name
_MOST_FILES = 1024
_MOST_BYTES = 4 << 20
_NOT_MEASURED = ("etc/boot/", "genroms/")
"""Kernels and option ROMs, which are long, and which firmware does not measure as files."""
_AT_ONCE = 4096
_SECONDS = 60.0


def dump(command: Sequence[str], folder: Path, release: str | None = None) -> int:
    """Write the files of fw_cfg below ``folder``, and return how many. Raises `ExecFailure`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExecFailure(f"--fw-cfg {folder} cannot be made: {error.strerror}", OWN_FAILURE) from None
    with tempfile.TemporaryDirectory(prefix="swtdx-") as private:
        path = Path(private) / "qtest"
        stopped = ["-S", "-display", "none", "-qtest", f"unix:{path},server=on,wait=off"]
        stopped += ["-qtest-log", "/dev/null"]
        chosen = ["--kernel-release", release] if release is not None else []
        whole = [sys.executable, "-m", "swtdx", "exec", *chosen, "--", *command, *stopped]
        process = subprocess.Popen(whole, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            with _connected(path, process) as connection:
                files = dict(_Qtest(connection).files())
        except (OSError, ValueError) as error:
            raise ExecFailure(f"QEMU does not give its fw_cfg: {error}", OWN_FAILURE) from None
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait()
    for name, contents in files.items():
        parts = [part for part in PurePosixPath(name).parts if part not in ("/", "..", ".")]
        target = folder.joinpath(*parts)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(contents)
        except OSError as error:
            raise ExecFailure(f"{target} cannot be written: {error.strerror}", OWN_FAILURE) from None
    return len(files)


@contextlib.contextmanager
def _connected(path: Path, process: subprocess.Popen[bytes]) -> Iterator[socket.socket]:
    """Connect when QEMU listens. Raises OSError if it ends, or does not listen in time."""
    deadline = time.monotonic() + _SECONDS
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_SECONDS)
        while True:
            try:
                connection.connect(str(path))
                break
            except OSError:
                if process.poll() is not None:
                    raise OSError(f"it ended with status {process.returncode}") from None
                if time.monotonic() > deadline:
                    raise OSError(f"it does not answer within {_SECONDS:.0f} s") from None
                time.sleep(0.05)
        yield connection


class _Qtest:
    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lines = connection.makefile("rb")

    def files(self) -> Iterator[tuple[str, bytes]]:
        """All files, and the boot menu's item. Raises OSError, ValueError."""
        (count,) = struct.unpack(">I", self._read(_DIRECTORY, 4))
        if count > _MOST_FILES:
            raise ValueError(f"it lists {count} files")
        listed = self._read(_DIRECTORY, 4 + count * _ENTRY.size)[4:]
        for size, selector, _, name in _ENTRY.iter_unpack(listed):
            text = name.split(b"\0")[0].decode("ascii", "replace")
            if size <= _MOST_BYTES and not text.startswith(_NOT_MEASURED):
                yield text, self._read(selector, size)
        yield "BootMenu", self._read(_BOOT_MENU, 2)

    def _read(self, selector: int, size: int) -> bytes:
        self._ask([f"outw {_SELECTOR:#x} {selector:#x}"])
        found = b""
        while len(found) < size:
            answers = self._ask([f"inb {_DATA:#x}"] * min(_AT_ONCE, size - len(found)))
            found += bytes(int(each.split()[1], 0) & 0xFF for each in answers)
        return found

    def _ask(self, commands: list[str]) -> list[bytes]:
        self._connection.sendall(("\n".join(commands) + "\n").encode())
        answers: list[bytes] = []
        while len(answers) < len(commands):
            line = self._lines.readline()
            if not line:
                raise OSError("it closed the connection")
            if line.startswith(b"OK"):
                answers.append(line)
            elif line.startswith((b"FAIL", b"ERR")):
                raise ValueError(line.decode("ascii", "replace").strip())
        return answers
