# SPDX-License-Identifier: GPL-2.0-or-later
"""What one ``swtdx exec`` has settled, in a directory that every process below it can read.

The directory holds ``settings`` (lines NAME=VALUE, read by C and by Python), ``files/`` (what programs read of the
machine by name) and ``swtdx.so``, a link to the preloaded library. That finds the rest beside itself, so a process
needs to inherit nothing but LD_PRELOAD. The directory's name is a digest of its contents. It stays when the command
ends: a program may leave a daemon behind, and without the library that one would find the machine's real /dev/kvm.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import sys
import sysconfig
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from swtdx.uapi.release import NEWEST_RELEASE

LIBRARY = "swtdx.so"
MEMORY = 64 << 30
"""The machine's memory where nothing is said: sparse, and more than a VMM will ask for."""
PROCESSORS = 64


class ExecError(Exception):
    """``swtdx exec`` cannot do what it is asked to; the text is one sentence for a person."""


@dataclass(frozen=True)
class Settings:
    """The machine, and what to keep of a run. Sizes in bytes, paths absolute."""

    kernel_release: str = NEWEST_RELEASE.value
    module_version: str = "1.5.06"
    cpu_features: tuple[str, ...] | None = None
    """What the processor has besides x86-64-v2; None: all that there is."""
    memory: int = MEMORY
    processors: int = PROCESSORS
    tdx: bool = True
    trace: str = ""
    trace_format: str = "jsonl"
    record: str = ""
    """Directory in which each process leaves its summary."""
    inject: tuple[str, ...] = ()
    """Faults on demand, as `swtdx.inject.parse` reads them."""
    quiet: bool = False
    pki: str = ""
    """Folder with the machine's report key, where there is one."""
    host: bool = False
    """What the front end cannot reach may use the machine's real /dev/kvm."""
    files: dict[str, str] = field(default_factory=dict)
    """Absolute path -> what programs read there."""

    def text(self) -> str:
        """The file ``settings``."""
        machine = asdict(self)
        del machine["files"]
        lines = {
            "version": f"{sys.version_info.major}.{sys.version_info.minor}",
            "libpython": libpython(),
            "bridge": extension("_bridge"),
            "python": os.path.abspath(sys.executable),
            "path": ":".join(_paths()),
            "quiet": str(int(self.quiet)),
            "host": str(int(self.host)),
            "machine": json.dumps(machine, sort_keys=True),
        }
        return "".join(f"{name}={value}\n" for name, value in lines.items())

    def write(self) -> Path:
        """The directory of these settings, made if need be. Raises `ExecError`."""
        try:
            return self._write(extension("_preload"), self.text())
        except OSError as error:
            raise ExecError(
                f"the settings cannot be written to the folder for temporary files: {error.strerror}"
                f"{f': {error.filename}' if error.filename else ''}. Set TMPDIR to another one"
            ) from None

    def _write(self, library: str, text: str) -> Path:
        digest = hashlib.sha256(repr((library, text, sorted(self.files.items()))).encode()).hexdigest()[:16]
        directory = Path(tempfile.gettempdir()).absolute() / f"swtdx-exec-{os.getuid()}-{digest}"
        if any(character in str(directory) for character in " :\t\n"):
            raise ExecError(f"LD_PRELOAD cannot name {directory}: set TMPDIR to a path without blanks and colons")
        if _is_ours(directory):
            return directory
        made = Path(tempfile.mkdtemp(prefix="swtdx-exec-"))
        try:
            self._fill(made, library, text)
            with suppress(OSError):  # another one was quicker
                made.rename(directory)
        finally:
            shutil.rmtree(made, ignore_errors=True)
        if not _is_ours(directory):
            raise ExecError(f"{directory} belongs to another user or is not complete: remove it")
        return directory

    def _fill(self, made: Path, library: str, text: str) -> None:
        for name, content in {"settings": text, **{f"files{path}": data for path, data in self.files.items()}}.items():
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            (made / name).write_text(content, encoding="utf-8")
        (made / LIBRARY).symlink_to(library)
        made.chmod(0o755)  # service users read it, too

    @classmethod
    def read(cls, directory: str) -> Settings:
        """What `write` has written. Raises OSError, ValueError."""
        with open(os.path.join(directory, "settings"), encoding="utf-8") as file:
            lines = dict(line.rstrip("\n").split("=", 1) for line in file)
        root = Path(directory) / "files"
        files = {
            f"/{path.relative_to(root)}": path.read_text(encoding="utf-8") for path in root.rglob("*") if path.is_file()
        }
        return cls(**json.loads(lines["machine"]), files=files)


def _is_ours(directory: Path) -> bool:
    try:
        status = directory.lstat()
    except OSError:
        return False
    mine = status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return stat.S_ISDIR(status.st_mode) and mine and (directory / LIBRARY).exists()


def extension(name: str) -> str:
    """The path of one of the two shared objects. Raises `ExecError` if it was not built or cannot be read."""
    path = Path(__file__).with_name(name + (sysconfig.get_config_var("EXT_SUFFIX") or ".so"))
    if not path.exists():
        raise ExecError(f"{path} is missing: install swtdx again (from a checkout: script/setup)")
    if not os.access(path, os.R_OK):
        raise ExecError(f"{path} cannot be read: programs need to load it, so make it readable")
    if os.statvfs(path).f_flag & os.ST_NOEXEC:
        raise ExecError(
            f"{path} is on a file system that is mounted noexec: programs cannot load it. Install swtdx elsewhere, or "
            "mount that file system with exec"
        )
    return str(path)


def libpython() -> str:
    """The shared library of this Python. Raises `ExecError` where there is none."""
    name = sysconfig.get_config_var("INSTSONAME") or sysconfig.get_config_var("LDLIBRARY") or ""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    names = [name, f"libpython{version}.so.1.0"]
    folders = [sysconfig.get_config_var("LIBDIR") or "", "/usr/lib", "/usr/lib64", "/lib"]
    multiarch = sysconfig.get_config_var("MULTIARCH") or "x86_64-linux-gnu"
    for folder in (*(f"{each}/{multiarch}" for each in folders), *folders):
        for each in names:
            path = os.path.join(folder, each)
            if ".so" in each and os.path.exists(path):
                return path
    raise ExecError(
        f"there is no shared library of Python {version}, which programs need to load: "
        f"install libpython{version} (Debian, Ubuntu), or a Python that was built with --enable-shared"
    )


def has_libpython() -> bool:
    """Whether programs can load this Python."""
    try:
        libpython()
    except ExecError:
        return False
    return True


def _paths() -> list[str]:
    """Where swtdx and what it needs are imported from, for a program that is Python itself."""
    import cryptography

    found = [Path(__file__).resolve().parents[2], Path(cryptography.__file__).resolve().parents[1]]
    return list(dict.fromkeys(map(str, found)))
