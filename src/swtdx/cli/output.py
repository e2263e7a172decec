# SPDX-License-Identifier: GPL-2.0-or-later
"""Files that a command writes: no mistake in a command line destroys data, and no failed write is silent.

All outputs of a command are opened through one `Outputs`, before anything is built:

1. `Outputs.reads` names what the command reads, and `Outputs.open` what it writes.  An output is opened without
   truncating it.  It is refused if it is an input, another output, or something that is in use: see
   `swtdx.cli.file_identity` for how files are compared.
2. `Outputs.begin` truncates, when every check of the command has passed.
3. `Output.write` reports the first failure and drops what comes after it, so that the run continues.  `Outputs.failed`
   is for the exit status.

A pipe, a socket, a terminal or ``/dev/null`` may be given for several outputs.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from swtdx.cli.file_identity import FileIdentity, in_use
from swtdx.cli.writing import complain, write_all

_STANDARD = ((0, "standard input"), (1, "standard output"), (2, "standard error"))


class OutputError(Exception):
    """A file cannot be an output; the text is one sentence for a person."""


class Output:
    """An output that is open. ``name`` is how messages call it: the option and the file."""

    def __init__(self, descriptor: int, name: str, path: Path, *, created: bool) -> None:
        self.name = name
        self.problem: OSError | None = None
        """Why nothing is written any more."""
        self.descriptor = descriptor
        self.path = path
        self.may_come_to_nothing = False
        """Whether the command may end well without it: then there is no file, or the old one."""
        self._created = created
        self._began = False
        self._written = False

    @property
    def identity(self) -> FileIdentity:
        """What file it is."""
        return FileIdentity.of(self.descriptor)

    @property
    def is_regular(self) -> bool:
        """Whether it is a file on a file system: no pipe, no terminal, no device."""
        return stat.S_ISREG(os.fstat(self.descriptor).st_mode)

    @property
    def written(self) -> bool:
        """Whether anything was written."""
        return self._written

    def begin(self) -> None:
        """Truncate the file."""
        self._began = True
        try:
            if self.is_regular and not self.may_come_to_nothing:
                os.ftruncate(self.descriptor, 0)
        except OSError as problem:
            self._fail(problem)

    def write(self, data: bytes | memoryview) -> int:
        """Append ``data``, or drop it after a failure. Never raises OSError."""
        if self.problem is None:
            self._written = True
            try:
                write_all(self.descriptor, data)
            except OSError as problem:
                self._fail(problem)
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""

    def replace(self, data: bytes | Iterable[bytes], *, private: bool = False) -> None:
        """Make ``data`` the whole contents; a regular file is replaced in one step and never half-written.

        ``private``: only its owner may read it.
        """
        pieces = [data] if isinstance(data, bytes) else data
        if not self.is_regular:
            for piece in pieces:
                self.write(piece)
            return
        try:
            self._replace_regular(pieces, 0o077 if private else 0)
            self._written = True
        except OSError as problem:
            self._fail(problem)

    def _replace_regular(self, pieces: Iterable[bytes], forbidden: int) -> None:
        mode = stat.S_IMODE(os.fstat(self.descriptor).st_mode) & ~forbidden
        links = os.fstat(self.descriptor).st_nlink
        try:
            if links != 1 or not self._is_in_place():
                raise PermissionError  # another name of the file would keep the old contents
            temporary = self.path.with_name(f".{self.path.name[:100]}.{os.getpid()}")
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except PermissionError:
            os.ftruncate(self.descriptor, 0)
            for piece in pieces:
                write_all(self.descriptor, piece)
            return
        try:
            try:
                for piece in pieces:
                    write_all(descriptor, piece)
                os.fchmod(descriptor, mode)
            finally:
                os.close(descriptor)
            os.replace(temporary, self.path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise

    def _is_in_place(self) -> bool:
        """Return whether the path still names the file that was opened (``/dev/fd/3`` may name a deleted one)."""
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self.descriptor))
        except OSError:
            return False

    def close(self, *, finished: bool = True) -> None:
        """Close it. A file that was created for a command that has not ``finished`` is removed if it is empty."""
        if self.descriptor < 0:
            return
        came_to_nothing = self.may_come_to_nothing or self.problem is not None
        wanted = self._written or (self._began and finished and not came_to_nothing)
        try:
            if self._created and not wanted and self._is_in_place():
                self.path.unlink(missing_ok=True)
            os.close(self.descriptor)
        except OSError as problem:  # a network file system may report a full disk only now
            self._fail(problem)
        self.descriptor = -1

    def _fail(self, problem: OSError) -> None:
        if self.problem is None:
            self.problem = problem
            complain(f"{self.name} cannot be written: {problem.strerror or problem}; the rest of it is lost")


class Outputs:
    """All outputs of a command; a context manager that closes them. ``stdout``: the command prints something there."""

    def __init__(self, *, stdout: bool = True) -> None:
        self._inputs: list[tuple[FileIdentity, str]] = []
        self._taken: list[tuple[FileIdentity, str]] = []
        self._open: list[Output] = []
        for descriptor, name in _STANDARD:
            if descriptor == 1 and not stdout:
                continue
            with suppress(OSError):  # closed
                identity = FileIdentity.of(descriptor)
                (self._inputs if descriptor == 0 else self._taken).append((identity, name))

    def __enter__(self) -> Outputs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for output in self._open:
            output.close(finished=error is None)

    @property
    def failed(self) -> bool:
        """Whether anything could not be written."""
        return any(output.problem is not None for output in self._open)

    def reads(self, name: str, file: Path | int) -> None:
        """The command reads ``file``, which messages call ``name``. Raises `OutputError` if it is written, too."""
        try:
            identity = FileIdentity.of(file)
        except OSError:
            return  # the reader reports that
        for taken, other in self._taken:
            if _clash(taken, identity, reading=True):
                raise OutputError(f"{other} is the same file as {name}, which is read")
        self._inputs.append((identity, name))

    def open(self, option: str, path: Path) -> Output:
        """Open ``path`` for ``option`` without truncating it. Raises `OutputError`."""
        name = f"{option} {path}"
        try:
            descriptor, created = _open_untouched(path, name)
        except IsADirectoryError:
            raise OutputError(f"{name} is a folder") from None
        except OSError as error:
            raise OutputError(f"{name} cannot be written: {_why(error, path)}") from None
        output = Output(descriptor, name, Path(os.path.realpath(path)), created=created)
        try:
            self._check(output)
        except BaseException:
            output.close()
            raise
        self._open.append(output)
        self._taken.append((output.identity, option))
        return output

    def begin(self) -> None:
        """Truncate all of them."""
        for output in self._open:
            output.begin()

    def _check(self, output: Output) -> None:
        identity = output.identity
        for other, name in self._inputs:
            if _clash(identity, other, reading=True):
                raise OutputError(f"{output.name} is the same file as {name}, which is read")
        for other, name in self._taken:
            if _clash(identity, other, reading=False):
                raise OutputError(f"{output.name} is the same file as that of {name}")
        if output.is_regular and in_use(output.descriptor):
            raise OutputError(f"{output.name} is in use by another process, which has locked it")


def _clash(output: FileIdentity, other: FileIdentity, *, reading: bool) -> bool:
    return (output.stores or (reading and output.is_pipe)) and output.overlaps(other)


def _open_untouched(path: Path, name: str) -> tuple[int, bool]:
    """Return (descriptor, whether the file was created). Raises OSError; EBUSY for a block device that is in use.

    A named pipe is open when another program reads it; that this one waits for that is said.
    """
    flags = os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY
    try:
        return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666), True
    except FileExistsError:
        pass
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISBLK(mode):
            flags |= os.O_EXCL  # refuses one that is mounted
        if stat.S_ISFIFO(mode):
            return _open_pipe(path, flags, name), False
        return os.open(path, flags), False
    except FileNotFoundError:  # a symbolic link to a file that does not exist yet
        return os.open(path, flags | os.O_CREAT, 0o666), True


def _open_pipe(pipe: Path, flags: int, name: str) -> int:
    try:
        descriptor = os.open(pipe, flags | os.O_NONBLOCK)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        complain(f"{name} is a pipe that no program reads: waiting for one")
        return os.open(pipe, flags)
    os.set_blocking(descriptor, True)  # not opened again: a reader would take the close in between for the end
    return descriptor


def _why(error: OSError, path: Path) -> str:
    folder = path.parent
    try:
        if isinstance(error, FileNotFoundError) and not folder.exists():
            return f"there is no folder {folder}"
        if isinstance(error, PermissionError) and not os.path.lexists(path):
            return f"the folder {folder} is not writable"
    except OSError:
        return f"the folder {folder} is not searchable"
    return error.strerror or str(error)
