# SPDX-License-Identifier: GPL-2.0-or-later
"""A program's memory, as far as guests run in it.

A guest's memory is user memory of the program, and the processor that executes the guest is in the server. What a slot
names must therefore be memory of both. Files that the program maps shared are mapped here, too. Everything else
(private anonymous memory, copies of a file's pages) is moved into a memfd that takes the place of the mapping, at the
same address with the same contents and protection, while the program stands still (`ptrace.hold`).

What the program can see of that: /proc/self/maps names a memfd, and a child made by fork() shares this memory instead
of getting a copy.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from swtdx.exec.notify.seccomp import Sys
from swtdx.linux.err import err
from swtdx.linux.uaccess import Mm

_PAGE = 4096
_libc = ctypes.CDLL(None, use_errno=True)
_mmap = _libc.mmap
_mmap.restype = ctypes.c_size_t
_mmap.argtypes = (ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_munmap = _libc.munmap
_munmap.argtypes = (ctypes.c_size_t, ctypes.c_size_t)
_syscall = _libc.syscall
_fallocate = _libc.fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)
_PUNCH_HOLE = 0x01 | 0x02  # FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE
_MAP_FAILED = (1 << 64) - 1
_MAP_FIXED, _MAP_NORESERVE = 0x10, 0x4000
_SYS_PIDFD_GETFD, _SYS_KCMP = 438, 312
_KCMP_VM = 1
_SEALS = 0x0001 | 0x0002 | 0x0004  # F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW
_F_ADD_SEALS = 1033
_PAGEMAP_CHUNK = 512
_PRESENT = 3 << 62  # in memory or in swap
# VmFlags of smaps, and the madvise(2) or mlock2(2) that makes a new mapping the same
_ADVICE = {"dc": 10, "dd": 16, "hg": 14, "nh": 15, "mg": 12, "wf": 18}
_LOCKED, _SPECIAL = "lo", {"io", "pf"}
_MLOCK_ONFAULT = 1
_PM_SCAN = struct.Struct("=12Q")  # struct pm_scan_arg
_WALK_END = struct.Struct("=Q")
_PAGEMAP_SCAN, _PAGE_IS_SWAPPED = 0xC0606610, 1 << 4
_REGIONS = 64


@dataclass(frozen=True)
class Vma:
    """A line of /proc/PID/maps."""

    start: int
    end: int
    protection: int
    shared: bool
    offset: int
    device: int
    inode: int

    @classmethod
    def parse(cls, line: bytes) -> Vma:
        """``line`` without its end."""
        extent, permissions, offset, device, inode = line.split(None, 5)[:5]
        start, _, end = extent.partition(b"-")
        major, _, minor = device.partition(b":")
        protection = sum(bit for flag, bit in ((b"r", 1), (b"w", 2), (b"x", 4)) if flag in permissions)
        return cls(
            *(int(start, 16), int(end, 16), protection, permissions[3:4] == b"s"),
            *(int(offset, 16), os.makedev(int(major, 16), int(minor, 16)), int(inode)),
        )


@dataclass(eq=False)
class Window:
    """Memory of the program at [start, end) that is ours at ``address``."""

    start: int
    end: int
    address: int
    device: int
    inode: int
    offset: int
    users: int = 0
    current: bool = True
    """The program has it there still."""

    def shows(self, vma: Vma) -> bool:
        """Whether this is what the program has mapped there now."""
        same = (self.device, self.inode) == (vma.device, vma.inode)
        return vma.shared and same and self.offset - self.start == vma.offset - vma.start


@dataclass
class Move:
    """What is to take the place of one mapping: from ``offset`` of the memfd on."""

    vma: Vma
    offset: int
    flags: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Part:
    """A part of a memfd; ``wiped``: a child made by fork() finds zeros there (MADV_WIPEONFORK)."""

    start: int
    end: int
    wiped: bool


class NotShared(OSError):
    """EFAULT for now: the range must be shared first."""

    def __init__(self, start: int, end: int) -> None:
        super().__init__(errno.EFAULT, f"user memory at {start:#x} is not the server's too: a guard region, a device's")
        self.range = start, end


class ProgramMm(Mm):
    """The address space of a process under ``swtdx exec``, known to the kernel as ``current->mm``."""

    def __init__(self, pid: int, owner: int, signals: Callable[[], set[int]], changed: Callable[[], None]) -> None:
        """Of the thread ``pid``, which belongs to the process ``owner``. ``changed``: `windows` has changed."""
        self._served = threading.local()
        super().__init__(pid)
        self.owner = owner
        self._memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        self._signals, self._changed = signals, changed
        self.windows: list[Window] = []
        self._moved: dict[tuple[int, int], int] = {}  # device and inode of a memfd -> our descriptor
        self._private: dict[tuple[int, int], list[Part]] = {}  # what of a memfd the program takes for memory of its own
        self.wanted: tuple[int, int] | None = None
        self.lock = threading.RLock()
        self.suspect = False
        """It may have been replaced by execve(2) since it was last looked at."""
        self.sharing = threading.Lock()

    def __del__(self) -> None:
        for fd in (getattr(self, "_memory", -1), *getattr(self, "_moved", {}).values()):
            with contextlib.suppress(OSError):
                os.close(fd)
        for window in getattr(self, "windows", ()):
            _munmap(window.address, window.end - window.start)

    # --- by which of its threads it is reached ------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """The thread whose call this thread of ours serves, which waits meanwhile; else the last one of all."""
        tid: int = getattr(self._served, "tid", self._last)
        return tid

    @pid.setter
    def pid(self, tid: int) -> None:
        self._served.tid = self._last = tid

    def find_thread(self) -> bool:
        with contextlib.suppress(OSError):
            for name in os.listdir(f"/proc/{self.owner}/task"):
                with contextlib.suppress(OSError), open(f"/proc/{self.owner}/task/{name}/maps", "rb") as maps:
                    if maps.read(1):  # a first thread that has ended is there, and has no memory
                        self.pid = int(name)
                        return True
        return False

    # --- which address space it is ------------------------------------------------------------------------------------

    def alive(self) -> bool:
        """Whether any process has it still."""
        try:
            return os.pread(self._memory, 1, 0x1000) != b""
        except OSError:  # nothing is mapped there, but something could be
            return True

    def is_of(self, pid: int) -> bool:
        """Whether ``pid``, a thread of another process than the owner, has this address space."""
        return self.alive() and _syscall(_SYS_KCMP, self.pid, pid, _KCMP_VM, 0, 0) == 0

    # --- what the kernel asks (Mm) ------------------------------------------------------------------------------------

    def fstat(self, fd: int) -> os.stat_result:
        try:
            return os.stat(f"/proc/{self.owner}/fd/{fd}")
        except OSError as error:
            raise err(errno.EBADF, f"fd {fd} of process {self.pid}") from error

    def dup(self, fd: int) -> int:
        if not 0 <= fd < 1 << 31:
            raise err(errno.EBADF, f"fd {fd}")
        try:
            process = os.pidfd_open(self.owner)
        except OSError as error:
            raise err(errno.EBADF, f"process {self.owner} is gone") from error
        try:
            copy = int(_syscall(_SYS_PIDFD_GETFD, process, fd, 0))
            number = ctypes.get_errno()
        finally:
            os.close(process)
        if copy < 0 and number in (errno.EPERM, errno.ENOSYS):  # a container's seccomp profile, as docker's default
            raise err(
                errno.EBADF,
                f"fd {fd} of the program cannot be taken over: pidfd_getfd(2) is refused here. In a container, give it "
                "--cap-add SYS_PTRACE, or link the program dynamically",
            )
        if copy < 0:
            raise err(errno.EMFILE if number in (errno.EMFILE, errno.ENFILE) else errno.EBADF, f"fd {fd} is not open")
        return copy

    def pending_signals(self) -> set[int]:
        return self._signals()

    def reach(self, start: int, end: int) -> int:
        with self.lock:
            window = self._window_at(start)
            if window is None or window.end < end:
                self.wanted = start, end
                raise NotShared(start, end)
            window.users += 1
            return window.address + start - window.start

    def leave(self, start: int, end: int) -> None:
        with self.lock:
            for window in self.windows:
                if window.users and window.start <= start and end <= window.end:
                    window.users -= 1
                    break
            self._drop()

    def find_vma(self, address: int) -> tuple[int, int, bool, bool] | None:
        for vma in self.vmas(address, address + 1):
            with self.lock:
                window = self._window_at(address)
                if window is not None and not window.shows(vma):
                    window.current = False
                elif window is not None:
                    start, end = max(vma.start, window.start), min(vma.end, window.end)
                    return start, end, bool(vma.protection & 1), bool(vma.protection & 2)
            return vma.start, vma.end, bool(vma.protection & 1), bool(vma.protection & 2)
        return None

    def _window_at(self, address: int) -> Window | None:
        return next((w for w in self.windows if w.current and w.start <= address < w.end), None)

    def _drop(self) -> None:
        for window in [w for w in self.windows if not w.current and not w.users]:
            self.windows.remove(window)
            _munmap(window.address, window.end - window.start)
            self._changed()

    # --- memory goes away ---------------------------------------------------------------------------------------------

    def touches(self, start: int, end: int) -> bool:
        """Whether guests may run in a part of the range."""
        return any(window.current and window.start < end and start < window.end for window in self.windows)

    def forget(self, start: int, end: int) -> None:
        """The program takes what it has at [start, end) away, or changes it."""
        with self.lock:
            for window in self.windows:
                if window.current and window.start < end and start < window.end:
                    window.current = False
            self._drop()

    def discard(self, start: int, end: int) -> None:
        """MADV_DONTNEED: what was moved is private memory to the program, and reads as zeros from now on."""
        with self.lock:
            for window in self.windows:
                moved = self._moved.get((window.device, window.inode))
                low, high = max(start, window.start), min(end, window.end)
                if window.current and moved is not None and low < high:
                    offset = window.offset + low - window.start
                    _fallocate(moved, _PUNCH_HOLE, offset, high - low)

    # --- sharing ------------------------------------------------------------------------------------------------------

    def vmas(self, start: int, end: int) -> Iterator[Vma]:
        """The mappings that overlap the range, whole."""
        try:
            with open(f"/proc/{self.pid}/maps", "rb") as maps:
                for line in maps:
                    extent = line.split(b" ", 1)[0].split(b"-")
                    if int(extent[1], 16) <= start:
                        continue
                    if int(extent[0], 16) >= end:
                        return
                    yield Vma.parse(line)
        except OSError:
            return

    def unshared(self, start: int, end: int) -> list[Vma]:
        """Parts of the range, cut to it, that the program has and that are not ours yet.

        Guard regions (MADV_GUARD_INSTALL) are not among them: the program keeps them, and they are EFAULT to a guest.
        """
        return [part for vma in self._without_window(start, end) for part in self._touchable(vma)]

    def _touchable(self, vma: Vma) -> Iterator[Vma]:
        """Yield the parts of it that are no guard regions."""
        start = vma.start
        for low, high in [*guard_regions(self.pid, self._memory, vma.start, vma.end), (vma.end, vma.end)]:
            if start < low:
                yield replace(vma, start=start, end=low, offset=vma.offset + start - vma.start)
            start = high

    def _without_window(self, start: int, end: int) -> list[Vma]:
        with self.lock:
            found: list[Vma] = []
            for vma in self.vmas(start, end):
                low, high = max(vma.start, start), min(vma.end, end)
                for window in self.windows:
                    if window.current and window.start < high and low < window.end and not window.shows(vma):
                        window.current = False
                while low < high:
                    covering = self._window_at(low)
                    if covering is None:
                        edges = [w.start for w in self.windows if w.current and low < w.start < high]
                        until = min(edges, default=high)
                        offset = vma.offset + low - vma.start
                        found.append(Vma(low, until, vma.protection, vma.shared, offset, vma.device, vma.inode))
                        low = until
                    else:
                        low = covering.end
            return found

    def share_files(self, vmas: list[Vma]) -> list[Vma]:
        """Map here what the program maps shared; answer what is left, which must be moved."""
        left = []
        for vma in vmas:
            if not vma.shared or not self._share_file(vma):
                left.append(vma)
        return left

    def _share_file(self, vma: Vma) -> bool:
        fd = self._file_of(vma)
        if fd < 0:
            return False
        try:
            return self._add(vma.start, vma.end, fd, vma.offset, vma.protection)
        finally:
            os.close(fd)

    def _file_of(self, vma: Vma) -> int:
        """The file behind a shared mapping, open here; -1 if it cannot be reached."""
        moved = self._moved.get((vma.device, vma.inode))
        if moved is not None:
            return os.dup(moved)
        flags = (os.O_RDWR if vma.protection & 2 else os.O_RDONLY) | os.O_CLOEXEC
        names = [f"/proc/{self.pid}/map_files/{whole.start:x}-{whole.end:x}" for whole in self.vmas(vma.start, vma.end)]
        with contextlib.suppress(OSError):
            folder = f"/proc/{self.owner}/fd"
            for name in os.listdir(folder):
                with contextlib.suppress(OSError):
                    status = os.stat(f"{folder}/{name}")
                    if (status.st_ino, status.st_dev) == (vma.inode, vma.device) and stat.S_ISREG(status.st_mode):
                        names.append(f"{folder}/{name}")
        for name in names:
            with contextlib.suppress(OSError):
                return os.open(name, flags)
        return -1

    def _add(self, start: int, end: int, fd: int, offset: int, protection: int) -> bool:
        wanted = protection & 3 or 1
        address = _mmap(0, end - start, wanted, mmap.MAP_SHARED | _MAP_NORESERVE, fd, offset)
        if address == _MAP_FAILED and wanted & 2:
            address = _mmap(0, end - start, 1, mmap.MAP_SHARED | _MAP_NORESERVE, fd, offset)
        if address == _MAP_FAILED:
            return False
        status = os.fstat(fd)
        with self.lock:
            self.windows.append(Window(start, end, address, status.st_dev, status.st_ino, offset))
        self._changed()
        return True

    # --- moving: while the program stands still -----------------------------------------------------------------------

    def move(self, vmas: list[Vma], fd: int) -> list[Move]:
        """Fill the memfd ``fd``, which is ours from now on, with the contents of ``vmas``: what goes where in it.

        Raises OSError.
        """
        moves: list[Move] = []
        size = 0
        for vma in vmas:
            flags = self._flags(vma)
            if flags & _SPECIAL:
                continue  # a device's: no memory for guests
            moves.append(Move(vma, size, flags))
            size += vma.end - vma.start
        status = os.fstat(fd)
        self._moved[status.st_dev, status.st_ino] = fd
        self._private[status.st_dev, status.st_ino] = [
            Part(move.offset, move.offset + move.vma.end - move.vma.start, "wf" in move.flags)
            for move in moves
            if not move.vma.shared
        ]
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, _F_ADD_SEALS, _SEALS)
        for move in moves:
            if not self._add(move.vma.start, move.vma.end, fd, move.offset, 3):
                raise err(errno.ENOMEM, "the server has no room for the program's memory")
            self._copy(self.windows[-1])
        return moves

    def place(self, fd: int, moves: list[Move], call: Callable[..., int]) -> None:
        """Put the memfd, which the program has as ``fd``, in the place of its mappings. Raises OSError."""
        for move in moves:
            vma = move.vma
            length = vma.end - vma.start
            flags = mmap.MAP_SHARED | _MAP_FIXED | _MAP_NORESERVE
            call(Sys.MMAP, vma.start, length, vma.protection, flags, fd, move.offset)
            for flag in move.flags & _ADVICE.keys():
                with contextlib.suppress(OSError):
                    call(Sys.MADVISE, vma.start, length, _ADVICE[flag])
            if _LOCKED in move.flags:
                with contextlib.suppress(OSError):
                    call(Sys.MLOCK2, vma.start, length, _MLOCK_ONFAULT)

    # --- fork(2): while parent and child stand still ------------------------------------------------------------------

    @property
    def has_moved(self) -> bool:
        """Whether the program may have a memfd of ours where it takes memory for its own."""
        return any(self._private.values())

    def part_from(self, child: int, call: Callable[..., int]) -> None:
        """Give the process ``child``, a copy of this, memory of its own where it has our memfds.

        ``call`` makes calls in the child's name. Raises OSError.
        """
        memory = os.open(f"/proc/{child}/mem", os.O_RDWR | os.O_CLOEXEC)
        try:
            for vma in list(self._mappings_of(child)):
                key = vma.device, vma.inode
                for part in self._private.get(key, ()) if vma.shared else ():
                    low, high = max(part.start, vma.offset), min(part.end, vma.offset + vma.end - vma.start)
                    if low >= high:
                        continue
                    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED | _MAP_NORESERVE
                    start = vma.start - vma.offset
                    call(Sys.MMAP, start + low, high - low, vma.protection, flags, -1 & (1 << 64) - 1, 0)
                    if not part.wiped:
                        copy_out(self._moved[key], low, high, memory, start)
        finally:
            os.close(memory)

    @staticmethod
    def _mappings_of(pid: int) -> Iterator[Vma]:
        with open(f"/proc/{pid}/maps", "rb") as maps:
            yield from (Vma.parse(line) for line in maps)

    def _flags(self, vma: Vma) -> set[str]:
        with contextlib.suppress(OSError), open(f"/proc/{self.pid}/smaps", "rb") as smaps:
            inside = False
            for line in smaps:
                if line[:1].islower() or line[:1].isdigit():
                    extent = line.split(b" ", 1)[0].split(b"-")
                    inside = int(extent[0], 16) <= vma.start < int(extent[1], 16)
                elif inside and line.startswith(b"VmFlags:"):
                    return set(line.decode("ascii").split()[1:])
        return set()

    def _copy(self, window: Window) -> None:
        """What is populated of the program's range; the rest is zeros in the memfd, too."""
        base = (ctypes.c_char * (window.end - window.start)).from_address(window.address)
        target = memoryview(base).cast("B")
        for start, end in self._populated(window.start, window.end):
            done = start
            while done < end:
                piece = target[done - window.start : min(end, done + (1 << 20)) - window.start]
                try:
                    count = os.preadv(self._memory, [piece], done)
                except OSError:  # behind the end of a mapped file
                    count = 0
                done += count or _PAGE

    def _populated(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Ranges of pages that hold something. A mapping of a file holds its file where nothing is populated."""
        if any(vma.inode for vma in self.vmas(start, end)):
            yield start, end
            return
        with open(f"/proc/{self.pid}/pagemap", "rb", buffering=0) as pagemap:
            for chunk in range(start, end, _PAGEMAP_CHUNK * _PAGE):
                count = min(_PAGEMAP_CHUNK, (end - chunk) // _PAGE)
                data = os.pread(pagemap.fileno(), 8 * count, chunk // _PAGE * 8)
                if data == data[:8] * count and not int.from_bytes(data[:8], "little") & _PRESENT:
                    continue
                entries = memoryview(data).cast("Q")
                position = 0
                while position < count:
                    if not entries[position] & _PRESENT:
                        position += 1
                        continue
                    first = position
                    while position < count and entries[position] & _PRESENT:
                        position += 1
                    yield chunk + first * _PAGE, chunk + position * _PAGE


def guard_regions(pid: int, memory: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the guard regions of a range of ``pid``, whose /proc/PID/mem is ``memory``.

    Their pages are said to be swapped out, and cannot be read. Before Linux 6.7 there is no PAGEMAP_SCAN, and before
    6.13 there are no guard regions.
    """
    regions = (ctypes.c_uint64 * (3 * _REGIONS))()
    with contextlib.suppress(OSError), open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap:
        while start < end:
            request = bytearray(
                _PM_SCAN.pack(
                    *(_PM_SCAN.size, 0, start, end, 0, ctypes.addressof(regions), _REGIONS, 0),
                    *(0, _PAGE_IS_SWAPPED, 0, _PAGE_IS_SWAPPED),
                )
            )
            count = fcntl.ioctl(pagemap.fileno(), _PAGEMAP_SCAN, request)
            for at in range(0, 3 * count, 3):
                for page in range(regions[at], regions[at + 1], _PAGE):
                    if not _can_be_read(memory, page):
                        yield page, page + _PAGE
            (start,) = _WALK_END.unpack_from(request, 32)


def _can_be_read(memory: int, address: int) -> bool:
    try:
        return bool(os.pread(memory, 1, address))
    except OSError:
        return False


def copy_out(fd: int, low: int, high: int, memory: int, shift: int) -> None:
    """Write what the memfd has between two offsets to a process's memory, ``shift`` behind. Holes are zeros there.

    Raises OSError: ESRCH if the process was killed.
    """
    while low < high:
        try:
            low = max(low, os.lseek(fd, low, os.SEEK_DATA))
        except OSError:  # ENXIO: nothing more
            return
        end = min(os.lseek(fd, low, os.SEEK_HOLE), high) if low < high else low
        while low < end:
            written = os.pwrite(memory, os.pread(fd, min(end - low, 1 << 20), low), shift + low)
            if not written:
                raise err(errno.ESRCH, "the child was killed")
            low += written
