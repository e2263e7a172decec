# SPDX-License-Identifier: GPL-2.0-or-later
"""Physical memory, and the keys under which its pages are stored.

With multi-key memory encryption the same line of DRAM reads differently under different KeyIDs. What is modelled:

* every page of RAM has the KeyID under which it was last written (0: no encryption);
* software that reads with that KeyID sees the data, software that reads with another one sees the AES-XTS ciphertext
  that lies in the DIMMs, "decrypted" with its own key if it has one;
* software that writes with another KeyID than a private one destroys the line's integrity: the page is *poisoned*, and
  the guest that owns it takes a machine check on touching it. A full overwrite (MOVDIR64B) heals it.

Data is stored in the clear, so that guest execution has no extra cost; ciphertext is computed when it is read. Keys
are generated at random when configured (PCONFIG) and end with :meth:`PhysicalMemory.drop_key`. They protect nothing:
this process can read everything.

Above RAM lie *windows* on the memory of the process that uses the emulated kernel: the physical pages behind its
mappings, as the EPT of a guest names them.

Sources: Intel Architecture Memory Encryption Technologies specification; TDX module base specification, "memory
integrity protection and access control".
"""

from __future__ import annotations

import array
import mmap
import os
import threading
from bisect import bisect_right, insort
from typing import TYPE_CHECKING

from swtdx.snapshot.pages import Region, address_of
from swtdx.snapshot.private import Private
from swtdx.x86 import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from swtdx.cpu._engine import Engine

WINDOW_BASE = 1 << 45
"""Physical addresses from here on are windows on user memory."""
_SMALLEST_WINDOW = 2 << 20
"""Which is also their alignment, so that a large page of the user's can be one of the guest's."""
_MAP_NORESERVE = 0x4000


def _window_size(length: int) -> int:
    return max(_SMALLEST_WINDOW, 1 << (length - 1).bit_length())


class PhysicalMemory:
    """RAM at physical addresses 0 up to ``size``, with a KeyID per 4 KiB page.

    ``keyid_shift`` is the position of the KeyID in the physical addresses given to :meth:`read`, :meth:`write` and
    :meth:`clear_page`.
    """

    __slots__ = ("__dict__", "__weakref__", "poisoned")  # PageRun reads them

    def __init__(self, size: int, keyid_shift: int = 46) -> None:
        self.size = size
        self.keyid_shift = keyid_shift
        self._address_mask = (1 << keyid_shift) - 1
        self._map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
        self.raw = memoryview(self._map)
        """All of RAM, in the clear ('B'). For the processor and the TDX module, which hold the keys."""
        self.qwords = self.raw.cast("Q")
        """The same as 64-bit words: ``qwords[hpa >> 3]``."""
        # Mappings, of which only what is touched takes memory: a machine may be larger than its host.
        self.regions = {"ram": Region(address_of(self._map), size)}
        """What a snapshot keeps page by page."""
        self.keyids = self._sparse("keyids", 2 * (size // PAGE_SIZE)).cast("H")
        self.poison = self._sparse("poison", size // PAGE_SIZE)
        """A byte for each page, non-zero while its integrity is broken."""
        self.fresh = self._sparse("fresh", size // PAGE_SIZE)
        """A byte for each page, non-zero where the allocator has given it out for the first time and it is zero still.
        `discard_page` then has nothing to do: most pages that a guest accepts are of this kind."""
        self.uses = self._sparse("uses", size // PAGE_SIZE)
        """A byte for each page, for the allocator: what the page is used for, 0 while it is free."""
        self.poisoned = 0
        """How many these are."""
        self.on_broken: Callable[[int], None] | None = None
        """Called with each page whose integrity breaks, for the module, which reads pages without a guest."""
        self._keys: dict[int, bytes] = {}
        self.random: Callable[[int], bytes] = os.urandom
        self._windows: dict[int, tuple[int, int]] = {}
        self._window_bases: list[int] = []
        """Ascending."""
        self._next_window = WINDOW_BASE
        self._free_windows: dict[int, list[int]] = {}  # by size: what was given back
        self._windows_lock = threading.Lock()
        self._engine: Engine | None = None

    def _sparse(self, name: str, length: int) -> memoryview:
        """Return zeroed bytes that a snapshot keeps. `length` may be less than a page."""
        mapping = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
        self.regions[name] = Region(address_of(mapping), length)
        return memoryview(mapping)

    # --- keys ---------------------------------------------------------------------------------------------------------

    def create_key(self, hkid: int) -> None:
        """Program a fresh random key for a KeyID (PCONFIG, KEYID_SET_KEY_RANDOM)."""
        self._keys[hkid] = self.random(64)

    def drop_key(self, hkid: int) -> None:
        """Forget a KeyID's key. What was stored under it reads as noise from now on."""
        self._keys.pop(hkid, None)

    def set_key(self, hpa: int, hkid: int) -> None:
        """Note that the page at ``hpa`` is completely written under ``hkid``: no poison, no stale guest code."""
        page = hpa >> 12
        self.keyids[page] = hkid
        if self.poisoned and self.poison[page]:
            self.poison[page] = 0
            self._tell_poison(-1)
        if self._engine is not None:
            self._engine.forget_code(hpa & ~4095, PAGE_SIZE)

    def key_of(self, hpa: int) -> int:
        """Return the KeyID under which the page at ``hpa`` is stored."""
        return self.keyids[hpa >> 12]

    def _tell_poison(self, change: int) -> None:
        self.poisoned += change
        if self._engine is not None:
            self._engine.poisoned(self.poisoned)

    def _crypt(self, data: bytes, hkid: int, page: int, *, encrypt: bool) -> bytes:
        """Encrypt or decrypt a page: AES-256-XTS under a KeyID's key, tweaked by position. No key: no change."""
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

        key = self._keys.get(hkid)
        if key is None:
            return data
        cipher = Cipher(algorithms.AES(key), modes.XTS(page.to_bytes(16, "little")))
        context = cipher.encryptor() if encrypt else cipher.decryptor()
        return context.update(data) + context.finalize()

    def _dram(self, page: int) -> bytes:
        """Return the page as it lies in the DIMMs."""
        return self._crypt(bytes(self.raw[page << 12 : (page + 1) << 12]), self.keyids[page], page, encrypt=True)

    # --- access as software does it, with a KeyID in the address ------------------------------------------------------

    def _split(self, pa: int, length: int) -> tuple[int, int]:
        hpa, hkid = pa & self._address_mask, pa >> self.keyid_shift
        if hpa < 0 or length < 0 or hpa + length > self.size:
            raise ValueError(f"physical address {pa:#x}+{length:#x} is not RAM")
        return hpa, hkid

    def read(self, pa: int, length: int) -> bytes:
        """Read ``length`` bytes with the KeyID in ``pa``: data if the pages are stored under it, else ciphertext.

        Raises ValueError outside RAM (a kernel bug, not something that a guest or a user can cause).
        """
        hpa, hkid = self._split(pa, length)
        if 0 < length <= PAGE_SIZE - (hpa & 4095) and self.keyids[hpa >> 12] == hkid:
            return self.raw[hpa : hpa + length].tobytes()
        pieces = []
        while length:
            page, offset = hpa >> 12, hpa & 4095
            take = min(length, PAGE_SIZE - offset)
            if self.keyids[page] == hkid:
                pieces.append(bytes(self.raw[hpa : hpa + take]))
            else:
                pieces.append(self._crypt(self._dram(page), hkid, page, encrypt=False)[offset : offset + take])
            hpa, length = hpa + take, length - take
        return b"".join(pieces)

    def write(self, pa: int, data: bytes) -> None:
        """Write with the KeyID in ``pa``. A foreign write to a page under a private KeyID breaks its integrity."""
        hpa, hkid = self._split(pa, len(data))
        for page in range(hpa >> 12, hpa + len(data) + 4095 >> 12):
            self.fresh[page] = 0
        done = 0
        while done < len(data):
            page, offset = hpa >> 12, hpa & 4095
            take = min(len(data) - done, PAGE_SIZE - offset)
            chunk = data[done : done + take]
            if self.keyids[page] == hkid:
                self.raw[hpa : hpa + take] = chunk
                if self._engine is not None:
                    self._engine.forget_code(hpa, take)
            elif take == PAGE_SIZE and self.keyids[page] not in self._keys:
                self.raw[hpa : hpa + take] = chunk
                self.set_key(hpa, hkid)
            else:
                self._foreign_write(page, offset, chunk, hkid)
            hpa, done = hpa + take, done + take

    def _foreign_write(self, page: int, offset: int, data: bytes, hkid: int) -> None:
        owner = self.keyids[page]
        seen = bytearray(self._crypt(self._dram(page), hkid, page, encrypt=False))
        seen[offset : offset + len(data)] = data
        dram = self._crypt(bytes(seen), hkid, page, encrypt=True)
        self.raw[page << 12 : (page + 1) << 12] = self._crypt(dram, owner, page, encrypt=False)
        if owner in self._keys:
            self.break_integrity(page << 12)
        if self._engine is not None:
            self._engine.forget_code(page << 12, PAGE_SIZE)

    def integrity_broken(self, hpa: int) -> bool:
        """Return whether a read of the page at ``hpa`` with its KeyID raises a machine check."""
        return bool(self.poison[hpa >> 12])

    def break_integrity(self, hpa: int) -> None:
        """Poison the page at ``hpa`` until it is completely written."""
        if not self.poison[hpa >> 12]:
            self.poison[hpa >> 12] = 1
            self._tell_poison(1)
            if self.on_broken is not None:
                self.on_broken(hpa & ~4095)

    def clear_page(self, pa: int) -> None:
        """Fill a page with zeros by full-line direct stores (MOVDIR64B) under the KeyID in ``pa``."""
        hpa, hkid = self._split(pa & ~4095, PAGE_SIZE)
        self.raw[hpa : hpa + PAGE_SIZE] = bytes(PAGE_SIZE)
        self.set_key(hpa, hkid)

    def clear_range(self, hpa: int, length: int, hkid: int) -> None:
        """Do `clear_page` for whole pages under ``hkid``. Host memory behind them is released, not written."""
        self._discard(hpa, length)
        first, last = hpa >> 12, hpa + length >> 12
        self.keyids[first:last] = array.array("H", [hkid]) * (last - first)
        if self.poisoned:
            poisoned = sum(map(bool, self.poison[first:last]))
            if poisoned:
                self.poison[first:last] = bytes(last - first)
                self._tell_poison(-poisoned)
        if self._engine is not None:
            self._engine.forget_code(hpa, length)

    def discard_page(self, hpa: int, hkid: int) -> None:
        """Do `clear_range` for one page. A page that the guest never uses then takes no memory of the host."""
        page = hpa >> 12
        if self.fresh[page]:
            self.fresh[page] = 0
            if not self.poisoned:
                self.keyids[page] = hkid  # it had no owner yet: no guest has executed in it
                return
        else:
            self._discard(hpa, PAGE_SIZE)
        self.set_key(hpa, hkid)

    def _discard(self, hpa: int, length: int) -> None:
        """Let memory be zero."""
        if self.regions["ram"].shown is None:
            try:
                self._map.madvise(mmap.MADV_DONTNEED, hpa, length)
            except OSError:  # locked memory (RLIMIT, mlockall) is not given back
                self.raw[hpa : hpa + length] = bytes(length)
        else:  # what would appear is what the snapshot has there
            self.raw[hpa : hpa + length] = bytes(length)

    def is_ram(self, hpa: int) -> bool:
        """Return whether this physical address is RAM (as opposed to a window or nothing)."""
        return 0 <= hpa < self.size

    # --- windows on user memory ---------------------------------------------------------------------------------------

    def map_user(self, address: int, length: int) -> int:
        """Pin ``length`` bytes of this process at ``address`` (page aligned); returns a window's physical address.

        The window is aligned to 2 MiB. The memory must stay mapped; if it does not, a guest that touches it exits with
        HOST_FAULT.
        """
        if address % PAGE_SIZE or length % PAGE_SIZE or length <= 0:
            raise ValueError("a window consists of whole pages")
        with self._windows_lock:
            hpa = self._allocate_window(length)
            if self._engine is not None:
                try:
                    self._engine.map(hpa, address, length)
                except BaseException:
                    self._free_window(hpa, length)
                    raise
            self._windows[hpa] = (address, length)
            insort(self._window_bases, hpa)
            return hpa

    def _allocate_window(self, length: int) -> int:
        """Allocate physical addresses by powers of two, so that a released range fits again."""
        size = _window_size(length)
        free = self._free_windows
        if free.get(size):
            return free[size].pop()
        if self._next_window + size <= 1 << self.keyid_shift:
            hpa = self._next_window
            self._next_window += size
            return hpa
        larger = min((other for other, places in free.items() if other > size and places), default=0)
        if not larger:
            raise MemoryError("no physical addresses left for windows on user memory")
        hpa = free[larger].pop()
        while larger > size:
            larger //= 2
            free.setdefault(larger, []).append(hpa + larger)
        return hpa

    def _free_window(self, hpa: int, length: int) -> None:
        self._free_windows.setdefault(_window_size(length), []).append(hpa)

    def unmap_user(self, hpa: int, length: int) -> None:
        """Release a window (same arguments as came out of and went into :meth:`map_user`)."""
        with self._windows_lock:
            if self._windows.get(hpa, (0, 0))[1] != length:
                raise ValueError(f"no window of {length:#x} bytes at {hpa:#x}")
            if self._engine is not None:
                self._engine.unmap(hpa, length)
            del self._windows[hpa]
            del self._window_bases[bisect_right(self._window_bases, hpa) - 1]
            self._free_window(hpa, length)
            if not self._windows:
                self._next_window = WINDOW_BASE
                self._free_windows.clear()

    def read_window(self, hpa: int, length: int) -> bytes | None:
        """Read user memory behind a window, as the processor would; None where there is none (any more)."""
        address = self._behind_window(hpa, length)
        if address is None:
            return None
        try:
            with open("/proc/thread-self/mem", "rb", buffering=0) as process:
                data = os.pread(process.fileno(), length, address)
        except OSError:  # unmapped since
            return None
        return data if len(data) == length else None

    def write_window(self, hpa: int, data: bytes) -> bool:
        """Write user memory behind a window; False (and perhaps a part written) where there is none."""
        address = self._behind_window(hpa, len(data))
        if address is None:
            return False
        try:
            with open("/proc/thread-self/mem", "r+b", buffering=0) as process:
                return os.pwrite(process.fileno(), data, address) == len(data)
        except OSError:
            return False

    def _behind_window(self, hpa: int, length: int) -> int | None:
        with self._windows_lock:
            position = bisect_right(self._window_bases, hpa) - 1
            if position < 0:
                return None
            base = self._window_bases[position]
            address, size = self._windows[base]
        return address + hpa - base if hpa + length <= base + size else None

    def forget_code(self, hpa: int, length: int) -> None:
        """Forget code that guests have translated from this memory, RAM or a window: it changed behind their backs."""
        if self._engine is not None:
            self._engine.forget_code(hpa, length)

    # --- snapshots ----------------------------------------------------------------------------------------------------

    def kept(self) -> Private | None:
        """Return the windows, which name addresses of this process."""
        if not self._windows:
            return None
        free = {size: list(places) for size, places in self._free_windows.items()}
        return Private((dict(self._windows), self._next_window, free))

    def go_on(self, kept: tuple[dict[int, tuple[int, int]], int, dict[int, list[int]]] | None) -> None:
        """Have the windows of `kept` again."""
        windows, next_window, free = kept or ({}, WINDOW_BASE, {})
        with self._windows_lock:
            if self._engine is not None:
                for hpa, (address, length) in self._windows.items():
                    if windows.get(hpa) != (address, length):
                        self._engine.unmap(hpa, length)
                for hpa, (address, length) in windows.items():
                    if self._windows.get(hpa) != (address, length):
                        self._engine.map(hpa, address, length)
            self._windows = dict(windows)
            self._window_bases = sorted(windows)
            self._next_window = next_window
            self._free_windows = {size: list(places) for size, places in free.items()}
        if self._engine is not None:
            self._engine.poisoned(self.poisoned)

    def changed(self, name: str, extents: list[tuple[int, int]] | None) -> None:
        """Note that a region was given back: code that guests have translated from these parts is stale."""
        if name == "ram":
            for offset, length in extents if extents is not None else [(0, self.size)]:
                self.forget_code(offset, length)

    def user_memory_changed(self, address: int, length: int) -> None:
        """Do the same for user memory."""
        with self._windows_lock:
            windows = list(self._windows.items())
        for hpa, (start, size) in windows:
            low, high = max(address, start), min(address + length, start + size)
            if low < high:
                self.forget_code(hpa + low - start, high - low)

    def attach(self, engine: Engine) -> None:
        """Pass the engine what is mapped, and every later change."""
        with self._windows_lock:
            self._engine = engine
            for hpa, (address, length) in self._windows.items():
                engine.map(hpa, address, length)
        engine.poisoned(self.poisoned)

    def detach(self) -> None:
        """Forget the engine, which is gone."""
        self._engine = None
