# SPDX-License-Identifier: GPL-2.0-or-later
# cython: language_level=3, binding=False, boundscheck=False, wraparound=False
"""The native core: one emulated logical processor and the virtual CPUs that it runs (see ``native/engine/swtdx.h``).

Only what must be native is: execution, the EPT walk, APIC virtualization, the turn-taking. What an exit *means* is for
the floors above. ``run`` releases the GIL, so that other threads (timers, devices, other virtual CPUs' exits) go on.
"""

cimport cython
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.object cimport PyObject
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy, memset

from array import array
from types import MemberDescriptorType
from zlib import crc32

cdef extern from "structmember.h":
    int T_OBJECT_EX

    struct PyMemberDef:
        int type
        Py_ssize_t offset

    ctypedef struct PyMemberDescrObject:
        PyMemberDef *d_member

cdef extern from *:
    const uint32_t SWTDX_SOURCE  # a macro of the command line: `source_checksum` of native/unicorn.py

cdef extern from "swtdx.h" nogil:
    struct swtdx_event:
        uint8_t valid, vector, type, has_error
        uint32_t error_code, instruction_length

    struct swtdx_exit:
        uint32_t reason, instruction_length
        uint64_t qualification, linear_address, physical_address
        uint32_t instruction_info, interruption_info, interruption_error, ve_convertible, trap_flag

    ctypedef struct swtdx_package:
        pass

    ctypedef struct swtdx_cpu:
        uint64_t gpr[16]
        uint64_t rip
        uint32_t spins, naps, nap_ns
        uint64_t eptp, shared_eptp, shared_bit
        uint64_t cr0_mask, cr0_shadow, cr4_mask, cr4_shadow
        uint64_t tsc_offset, tsc_multiplier
        uint64_t posted_interrupt_descriptor
        uint32_t exception_bitmap
        uint8_t tdx, apicv, rdtsc_exiting, interrupt_window, nmi_window, no_ept, dr_exiting, no_hlt_exiting
        uint8_t bus_lock_exiting
        uint8_t msr_bitmap[4096]
        uint8_t vapic[4096]
        swtdx_event event
        swtdx_exit exit
        uint32_t activity

    struct swtdx_segment:
        uint64_t base
        uint32_t limit, access_rights
        uint16_t selector

    uint32_t SWTDX_EXIT_TDCALL
    int SWTDX_RFLAGS, SWTDX_CR0, SWTDX_DR0, SWTDX_XCR0, SWTDX_PKRU, SWTDX_INTERRUPTIBILITY

    swtdx_package *swtdx_package_new(void *ram, uint64_t size, uint64_t tsc_ratio, uint32_t pkru_offset, bint parallel)
    uint32_t swtdx_host_features()
    void swtdx_package_free(swtdx_package *package)
    int swtdx_map(swtdx_package *package, uint64_t hpa, void *host, uint64_t length)
    int swtdx_unmap(swtdx_package *package, uint64_t hpa, uint64_t length)
    void swtdx_forget_code(swtdx_package *package, uint64_t hpa, uint64_t length)
    void swtdx_check_code(swtdx_cpu *cpu, bint all)
    void swtdx_invept(swtdx_package *package)
    void swtdx_invept_one(swtdx_cpu *cpu)
    void swtdx_set_poison(swtdx_package *package, const uint8_t *pages, uint64_t count)
    uint64_t swtdx_walks(const swtdx_package *package)
    uint64_t swtdx_host_tsc()
    bint swtdx_read_user(void *buffer, const void *user, uint64_t length)
    bint swtdx_write_user(void *user, const void *buffer, uint64_t length)
    void swtdx_set_tsc_bias(swtdx_package *package, uint64_t bias)
    bint swtdx_cover(swtdx_package *package)
    size_t swtdx_covered(swtdx_package *package, uint64_t *blocks, size_t most)
    void swtdx_start_counting(swtdx_package *package, uint64_t tsc_ratio, uint64_t seed)
    uint64_t swtdx_count(const swtdx_package *package)
    void swtdx_set_count_end(swtdx_package *package, uint64_t end)
    uint64_t swtdx_counted_ns(const swtdx_package *package)
    void swtdx_jump(swtdx_package *package, uint64_t ns)
    bint swtdx_set_stops(swtdx_package *package, const uint64_t *addresses, size_t count)
    bint swtdx_take_stop(swtdx_package *package)
    void swtdx_pass_stops(swtdx_package *package, bint passes)
    uint64_t swtdx_last_stop(const swtdx_package *package)
    void swtdx_counted_state(const swtdx_package *package, uint64_t *state)
    void swtdx_set_counted_state(swtdx_package *package, const uint64_t *state)
    void swtdx_signal()
    int swtdx_signal_pending()
    void swtdx_clear_signal()
    swtdx_cpu *swtdx_cpu_new(swtdx_package *package)
    void swtdx_cpu_free(swtdx_cpu *cpu)
    uint32_t swtdx_run(swtdx_cpu *cpu)
    void swtdx_kick(swtdx_cpu *cpu)
    void swtdx_notify(swtdx_cpu *cpu)
    uint64_t swtdx_get(swtdx_cpu *cpu, uint32_t reg)
    void swtdx_set(swtdx_cpu *cpu, uint32_t reg, uint64_t value)
    void swtdx_get_segment(swtdx_cpu *cpu, uint32_t index, swtdx_segment *segment)
    void swtdx_set_segment(swtdx_cpu *cpu, uint32_t index, const swtdx_segment *segment)
    bint swtdx_get_msr(swtdx_cpu *cpu, uint32_t index, uint64_t *value)
    bint swtdx_set_msr(swtdx_cpu *cpu, uint32_t index, uint64_t value)
    void swtdx_get_fxsave(swtdx_cpu *cpu, uint8_t *image)
    void swtdx_set_fxsave(swtdx_cpu *cpu, const uint8_t *image)
    void swtdx_get_ymm(swtdx_cpu *cpu, uint8_t *image)
    void swtdx_set_ymm(swtdx_cpu *cpu, const uint8_t *image)
    size_t swtdx_state_size()
    void swtdx_get_state(swtdx_cpu *cpu, void *state)
    bint swtdx_set_state(swtdx_cpu *cpu, const void *state)
    int swtdx_translate_linear(swtdx_cpu *cpu, uint64_t gla, uint64_t *gpa)
    int swtdx_translate_physical(swtdx_cpu *cpu, uint64_t gpa, uint64_t *hpa, uint32_t *prot)
    bint swtdx_read(swtdx_package *package, uint64_t hpa, void *buffer, uint64_t length)
    int swtdx_pending_interrupt(swtdx_cpu *cpu)


cdef extern from "<sys/mman.h>" nogil:
    int madvise(void *address, size_t length, int advice)
    int MADV_DONTNEED


cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec, tv_nsec
    int clock_gettime(int clock, timespec *time)
    int CLOCK_MONOTONIC


cdef extern from "<cpuid.h>" nogil:
    void __cpuid_count(uint32_t leaf, uint32_t subleaf, uint32_t eax, uint32_t ebx, uint32_t ecx, uint32_t edx)


cdef int check_source() except -1:
    """Refuse to be the engine of a checkout in which this file is another by now.

    Without this a kernel of newer Python would fail somewhere, with no sign of the cause. A wheel has no such file.
    """
    try:
        with open(__file__.rpartition("/")[0] + "/_engine.pyx", "rb") as file:
            source = file.read()
    except OSError:
        return 0
    if crc32(source) != SWTDX_SOURCE:
        raise ImportError("the engine was built from other sources: run script/setup", name=__name__)
    return 0


check_source()


def host_cpuid(leaf: int, subleaf: int = 0) -> tuple[int, int, int, int]:
    """CPUID executed on the host's processor: EAX, EBX, ECX, EDX."""
    cdef uint32_t number = leaf, index = subleaf, eax = 0, ebx = 0, ecx = 0, edx = 0
    __cpuid_count(number, index, eax, ebx, ecx, edx)  # a macro: it assigns to its last four arguments
    return eax, ebx, ecx, edx


def host_features() -> int:
    """What the host's processor and its kernel add to x86-64-v2, bits of enum swtdx_feature."""
    return swtdx_host_features()


def host_tsc() -> int:
    """The host's time-stamp counter, on which all guest time is based."""
    return swtdx_host_tsc()


def read_user(uintptr_t address, Py_ssize_t length) -> bytes | None:
    """Copy memory of this process that may be unmapped. None: it could not be done here, or it is not readable."""
    cdef bytes data = PyBytes_FromStringAndSize(NULL, length)
    cdef char *buffer = data
    cdef bint done
    with nogil:
        done = swtdx_read_user(buffer, <const void *>address, length)
    return data if done else None


def write_user(uintptr_t address, const uint8_t[::1] data) -> bool:
    """Copy to memory of this process that may be unmapped or read-only. False as `read_user`; some may be written."""
    cdef bint done
    cdef const void *source = &data[0]
    cdef uint64_t length = data.shape[0]
    with nogil:
        done = swtdx_write_user(<void *>address, source, length)
    return done


def state_layout() -> str:
    """What distinguishes the engines whose :meth:`GuestContext.kept` an engine understands."""
    return f"{swtdx_state_size()} {SWTDX_SOURCE:08x}"


def signal_entry() -> int:
    """The address of ``void swtdx_signal(void)``, for a signal handler: the virtual CPU of the thread leaves its guest."""
    return <uintptr_t>&swtdx_signal


def signal_pending() -> bool:
    """Whether ``swtdx_signal`` was called on this thread and :func:`clear_signal` was not."""
    return swtdx_signal_pending() != 0


def clear_signal() -> None:
    """The signal has been taken."""
    swtdx_clear_signal()


@cython.no_gc_clear  # a context frees its native half through the engine: that must be there until the last one
cdef class Engine:
    """The processors over ``ram`` (a writable buffer: physical addresses 0 up to its length).

    ``tsc_ratio``: ticks of the time-stamp counter for each of the host's, in units of 2^-48. ``parallel``: virtual CPUs
    execute at the same time; else they take turns.
    """

    cdef swtdx_package *package
    cdef object ram, poison
    cdef uint8_t[::1] view, poison_view

    def __cinit__(self, ram, poison, tsc_ratio=1 << 48, pkru_offset=0xA80, parallel=False):
        self.ram, self.poison = ram, poison
        self.view, self.poison_view = ram, poison
        self.package = swtdx_package_new(&self.view[0], self.view.shape[0], tsc_ratio, pkru_offset, parallel)
        if self.package is NULL:
            raise MemoryError("the guest CPU engine could not be created")

    def __dealloc__(self):
        swtdx_package_free(self.package)

    def map(self, hpa: int, address: int, length: int) -> None:
        """Let physical addresses from ``hpa`` on reach ``length`` bytes of this process at ``address``."""
        cdef uint64_t target = hpa, size = length
        cdef void *host = <void *><uintptr_t>address
        cdef int result
        with nogil:
            result = swtdx_map(self.package, target, host, size)
        if result:
            raise MemoryError(f"cannot map {length:#x} bytes at physical address {hpa:#x}")

    def unmap(self, hpa: int, length: int) -> None:
        """Undo :meth:`map` (same arguments)."""
        cdef uint64_t target = hpa, size = length
        with nogil:
            swtdx_unmap(self.package, target, size)

    def forget_code(self, hpa: int, length: int) -> None:
        """Software changed this memory behind the guest's back: translated code in it is stale."""
        cdef uint64_t target = hpa, size = length
        with nogil:
            swtdx_forget_code(self.package, target, size)

    def invept(self) -> None:
        """Drop all cached translations; when this returns no guest uses one of them any more."""
        with nogil:
            swtdx_invept(self.package)

    def poisoned(self, count: int) -> None:
        """Tell that ``count`` pages are marked in the poison array now."""
        cdef uint64_t pages = count
        cdef const uint8_t *marks = &self.poison_view[0]
        with nogil:
            swtdx_set_poison(self.package, marks, pages)

    def set_tsc_bias(self, ticks: int) -> None:
        """What is added to the time-stamp counter, in its own ticks, modulo 2^64. Not while a guest runs."""
        swtdx_set_tsc_bias(self.package, ticks & 0xFFFFFFFFFFFFFFFF)

    def cover(self) -> None:
        """Note the blocks of guest code that are translated from now on: see :meth:`covered`."""
        if not swtdx_cover(self.package):
            raise MemoryError("no memory for coverage")

    def covered(self) -> set[int]:
        """The linear addresses of the blocks that were translated since :meth:`cover`, or the last question."""
        cdef uint64_t blocks[1024]
        cdef size_t count, index
        found = set()
        while True:
            count = swtdx_covered(self.package, blocks, 1024)
            for index in range(count):
                found.add(blocks[index])
            if count < 1024:
                return found

    def start_counting(self, tsc_ratio: int, seed: int) -> None:
        """Count instructions, and have time follow from that. ``tsc_ratio``: ticks for each nanosecond, times 2^48.

        ``seed``: from which RDRAND and RDSEED follow. For one virtual CPU, before it runs.
        """
        swtdx_start_counting(self.package, tsc_ratio, seed & 0xFFFFFFFFFFFFFFFF)

    @property
    def count(self) -> int:
        """How many instructions have begun since :meth:`start_counting`."""
        return swtdx_count(self.package)

    def set_count_end(self, end: int) -> None:
        """Let the virtual CPU leave its guest as if kicked when the count is ``end``. Not while it runs."""
        swtdx_set_count_end(self.package, end)

    @property
    def counted_ns(self) -> int:
        """The time that follows from the count."""
        return swtdx_counted_ns(self.package)

    def jump(self, ns: int) -> None:
        """Set that time forward."""
        swtdx_jump(self.package, ns)

    def set_stops(self, addresses) -> None:
        """Stop before each instruction at these linear addresses, once for each count. Not while a guest runs."""
        cdef uint64_t[::1] stops = array("Q", addresses)
        if not swtdx_set_stops(self.package, &stops[0] if len(stops) else NULL, len(stops)):
            raise MemoryError("no memory for breakpoints")

    def take_stop(self) -> bool:
        """Whether there was such a stop since the last question."""
        return swtdx_take_stop(self.package)

    def pass_stops(self, passes: bool) -> None:
        """Only note stops from now on (see `last_stop`), or stop again. Not while a guest runs."""
        swtdx_pass_stops(self.package, passes)

    @property
    def last_stop(self) -> int | None:
        """The count at the last stop that was made or noted since the count was set back."""
        cdef uint64_t count = swtdx_last_stop(self.package)
        return None if count == 0xFFFFFFFFFFFFFFFF else count

    @property
    def counted_state(self) -> tuple[int, int, int]:
        """Count, time set forward, and where the random numbers are: what a machine goes back to."""
        cdef uint64_t state[3]
        swtdx_counted_state(self.package, state)
        return state[0], state[1], state[2]

    @counted_state.setter
    def counted_state(self, state: tuple[int, int, int]) -> None:
        cdef uint64_t values[3]
        values[0], values[1], values[2] = state
        swtdx_set_counted_state(self.package, values)

    @property
    def walks(self) -> int:
        """How often the EPT tables were walked."""
        return swtdx_walks(self.package)


cdef class _Window:
    """A writable buffer inside a context's native state; keeps the context alive."""

    cdef object owner
    cdef void *base
    cdef Py_ssize_t size

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.base, self.size, 0, flags)


cdef _window(owner, void *base, Py_ssize_t size):
    cdef _Window window = _Window()
    window.owner, window.base, window.size = owner, base, size
    return memoryview(window)


cdef struct Watched:
    PyObject **where
    PyObject *value


cdef class Conditions:
    """Attributes of objects, and what they must be for something to go on. Asked for each page that a guest accepts.

    An attribute of a class's ``__slots__`` is a word of the instance, and is read as one instead of by its name.
    """

    cdef tuple same
    cdef list others
    cdef Watched watched[16]
    cdef int count

    def __init__(self, same):
        """``same``: (object, attribute, value). Keeps objects and values alive."""
        self.same, self.others, self.count = same, [], 0
        for condition in same:
            thing, name, value = condition
            slot = getattr(type(thing), name, None)
            if self.count < 16 and type(slot) is MemberDescriptorType and self.add(thing, slot, value):
                continue
            self.others.append(condition)

    cdef bint add(self, thing, slot, value):
        cdef PyMemberDef *member = (<PyMemberDescrObject *>slot).d_member
        if member.type != T_OBJECT_EX:
            return False
        self.watched[self.count].where = <PyObject **>(<char *><PyObject *>thing + member.offset)
        self.watched[self.count].value = <PyObject *>value
        self.count += 1
        return True

    cdef bint hold(self) except -1:
        """Whether all are as they must be."""
        cdef int i
        cdef PyObject *found
        for i in range(self.count):
            found = self.watched[i].where[0]
            if found is not self.watched[i].value and (
                found is NULL or <object>found != <object>self.watched[i].value
            ):
                return False
        for thing, name, value in self.others:
            there = getattr(thing, name)
            if there is not value and there != value:
                return False
        return True


cdef inline uint64_t monotonic_ns() noexcept nogil:
    """The clock of ``time.perf_counter_ns``."""
    cdef timespec time
    clock_gettime(CLOCK_MONOTONIC, &time)
    return <uint64_t>time.tv_sec * 1000000000 + time.tv_nsec


@cython.no_gc_clear
cdef class PageRun:
    """2 MiB of which a guest takes one page after another by the same TDCALL, each for the first time.

    Host and TDX module both have their part in that, and both are Python. What they do for each page is to change the
    same few words, as long as nothing else has happened meanwhile. Here they say which words, and what must be as it
    is; `GuestContext.run` then does it for the pages that follow, without an exit. It holds the GIL all the time and
    executes no Python code, so that no other thread sees a half of it. Where anything is otherwise it changes nothing,
    and the exit is as if it had never been tried.
    """

    cdef uint64_t number, table, free, made, used, busy, typed, prepared, giant, bias_4k, bias_2m, bias_1g
    cdef uint32_t call
    cdef uint16_t keyid
    cdef uint8_t use
    cdef bint armed
    cdef long taken
    cdef readonly long noted
    """How many pages the last run has taken."""
    cdef bint notes
    cdef uint64_t[:, ::1] log
    cdef object memory, region, mutex, source, settle, blocks
    cdef list given_back
    cdef object locked, module_locked, module_settle
    cdef Conditions host_same, module_same
    cdef tuple host_zero
    cdef uint64_t[::1] qwords, leaves, books
    cdef uint16_t[::1] keyids
    cdef uint8_t[::1] fresh, uses

    def __init__(
        self, memory, number, *, leaves, books, prepared, source, given_back, use, mutex, locked, same, zero, settle
    ):
        """The host's half.

        ``number``: which 2 MiB (GPA / 2 MiB). ``leaves`` and ``books``: 512 words each, which become the page, and the
        page with ``prepared``. ``source``: the allocator, with the pages that were given back (last in, first out) and
        the use that its book is to name. ``mutex`` must be free, and ``locked`` answer false. ``same``: (object,
        attribute, value). ``zero``: (sequence, index). ``settle``: told how many pages it were when the run ends.
        """
        self.memory, self.region, self.number = memory, memory.regions["ram"], number
        self.qwords, self.keyids, self.fresh, self.uses = memory.qwords, memory.keyids, memory.fresh, memory.uses
        self.leaves, self.books, self.prepared = leaves, books, prepared
        self.source, self.given_back, self.use = source, given_back, use
        self.mutex, self.locked, self.host_zero, self.settle = mutex, locked, zero, settle
        self.host_same = Conditions(same)
        self.armed, self.giant, self.taken, self.noted, self.notes = False, <uint64_t>-1, 0, 0, False
        if self.leaves.shape[0] != 512 or self.books.shape[0] != 512:
            raise ValueError("2 MiB are 512 pages")

    def arm(self, *, call, table, free, made, blocks, busy, typed, used, keyid, locked, same, settle):
        """The module's half, for the time until the virtual CPU leaves its guest.

        ``call``: RAX. ``table``: where the 512 words are that must be ``free``, and become the page with ``made``.
        ``blocks``: by GiB the positions of a page's metadata, of each size; none may have a bit of ``typed``, the
        smallest none of ``busy``, and that becomes ``used``, 0. ``locked``, ``same`` and ``settle`` are as for the host.
        """
        self.call, self.table, self.free, self.made, self.blocks = call, table, free, made, blocks
        self.busy, self.typed, self.used, self.keyid = busy, typed, used, keyid
        self.module_same, self.module_locked, self.module_settle = Conditions(same), locked, settle
        self.giant, self.armed = <uint64_t>-1, self.table + 512 <= <uint64_t>self.qwords.shape[0]

    def note(self, log):
        """Note in ``log`` what the next run takes: 512 rows of 6 words.

        A row is a page: when the guest was entered, when it left, when it was entered again (`time.perf_counter_ns`),
        GPA, HPA, and RIP of the TDCALL.
        """
        self.log = log
        if self.log.shape[0] != 512 or self.log.shape[1] != 6:
            raise ValueError("of 512 pages 6 words each")
        self.notes = True

    cdef void put_down(self, swtdx_cpu *cpu, uint64_t gpa, uint64_t rip, uint64_t entered, uint64_t left):
        cdef uint64_t *row
        if self.taken > 512:
            return
        row = &self.log[self.taken - 1, 0]
        row[0], row[1], row[2] = entered, left, monotonic_ns()
        row[3], row[4], row[5] = gpa, self.leaves[gpa >> 12 & 511], rip

    cdef bint undisturbed(self) except -1:
        """Whether all is as host and module said."""
        if not self.host_same.hold() or not self.module_same.hold():
            return False
        for sequence, index in self.host_zero:
            if sequence[index]:
                return False
        if self.locked() or self.module_locked() or not self.mutex.acquire(False):
            return False
        self.mutex.release()  # no other thread gets to it before the GIL is released
        return True

    cdef bint takes_metadata(self, uint64_t page) except -1:
        """Take the page as the module would; False if it would refuse it."""
        cdef uint64_t index
        if page >> 30 != self.giant:
            block = self.blocks.get(page >> 30)
            if block is None:
                return False
            self.bias_4k, self.bias_2m, self.bias_1g = block
            self.giant = page >> 30
        index = self.bias_4k + (page >> 11)
        if (
            self.qwords[index] & self.busy
            or self.qwords[self.bias_2m + (page >> 21) * 2] & self.typed
            or self.qwords[self.bias_1g + (page >> 30) * 2] & self.typed
        ):
            return False
        self.qwords[index] = self.used
        self.qwords[index + 1] = 0
        return True

    cdef void clear(self, uint64_t page, Engine engine):
        """Make a page zero that was used before."""
        cdef void *host = &engine.view[page]
        if self.region.shown is not None or madvise(host, 4096, MADV_DONTNEED):
            memset(host, 0, 4096)
        swtdx_forget_code(engine.package, page, 4096)

    cdef bint take(self, swtdx_cpu *cpu, Engine engine) except -1:
        """Do what the TDCALL asks for, if it is the one that is expected."""
        cdef uint64_t gpa = cpu.gpr[1], book, page
        cdef uint32_t index = gpa >> 12 & 511
        cdef bint known = False
        if (
            cpu.gpr[0] != self.call
            or gpa >> 21 != self.number
            or gpa & 4095
            or self.qwords[self.table + index] != self.free
            or self.leaves[index]
            or not self.undisturbed()
        ):
            return False
        book = self.books[index]
        if book:
            page = book & ~<uint64_t>4095
        elif self.given_back:
            page = self.given_back[len(self.given_back) - 1]
        else:
            page = self.source.next_page
            known = True
            if page >= <uint64_t>self.source.end:
                return False
        if not self.takes_metadata(page):
            return False
        if not book:
            self.uses[page >> 12] = self.use
            if known:
                self.source.next_page = page + 4096
            else:
                self.given_back.pop()
        if not known:
            if not self.fresh[page >> 12]:
                self.clear(page, engine)
            self.fresh[page >> 12] = 0
        self.books[index] = page | self.prepared
        self.leaves[index] = page
        self.keyids[page >> 12] = self.keyid
        self.qwords[self.table + index] = self.made | page
        self.taken += 1
        cpu.gpr[0] = 0
        cpu.rip += cpu.exit.instruction_length
        return True


@cython.no_gc_clear
cdef class GuestContext:
    """One virtual CPU in VMX non-root operation: registers, VM-execution controls, exit information.

    Everything but :meth:`kick` and :meth:`notify` is for the thread that runs it. Exits are fault-like: ``rip`` is that
    of the instruction; the handler adds ``instruction_length``.
    """

    cdef swtdx_cpu *cpu
    cdef Engine engine
    cdef public PageRun page_run
    """What :meth:`run` may do without an exit, the next time only: set by the handler of the exit before."""
    cdef readonly object gpr
    """16 x u64: RAX RCX RDX RBX RSP RBP RSI RDI R8..R15."""
    cdef readonly object vapic
    """The virtual-APIC page, 4096 bytes, laid out like the xAPIC's registers."""

    def __cinit__(self, Engine engine not None):
        self.engine = engine
        self.cpu = swtdx_cpu_new(engine.package)
        if self.cpu is NULL:
            raise MemoryError("no memory for a virtual CPU")
        self.gpr = self.page_run = None

    def __init__(self, engine):
        pass

    def __dealloc__(self):
        swtdx_cpu_free(self.cpu)

    def attach_views(self) -> None:
        """Create the buffers ``gpr`` and ``vapic`` (they refer back to this object; :meth:`close` breaks the circle)."""
        self.gpr = _window(self, self.cpu.gpr, 128).cast("Q")
        self.vapic = _window(self, self.cpu.vapic, 4096)

    def close(self) -> None:
        """Give up the buffers; the native state goes with the last reference."""
        self.gpr = self.vapic = None

    # -- running ------------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Enter the guest. Returns the VMX basic exit reason, with the details in the exit properties."""
        cdef uint32_t reason
        cdef swtdx_cpu *cpu = self.cpu
        cdef PageRun pages = self.page_run
        cdef uint64_t entered = 0, left = 0, gpa, rip
        if pages is None:
            with nogil:
                reason = swtdx_run(cpu)
            return reason
        self.page_run = None
        try:
            while True:
                if pages.notes:
                    entered = monotonic_ns()
                with nogil:
                    reason = swtdx_run(cpu)
                if pages.notes:
                    left = monotonic_ns()
                gpa, rip = cpu.gpr[1], cpu.rip
                if reason != SWTDX_EXIT_TDCALL or not pages.armed or not pages.take(cpu, self.engine):
                    return reason
                if pages.notes:
                    pages.put_down(cpu, gpa, rip, entered, left)
        finally:
            pages.armed = pages.notes = False
            taken, pages.taken = pages.taken, 0
            pages.noted = taken
            if taken:
                pages.module_settle(taken)
                pages.settle(taken)

    def page_added(self, hpa: int) -> None:
        """The host has added a page for the TDCALL that exited, in one step: for those who watch."""

    def kick(self) -> None:
        """From any thread: make :meth:`run` (this one or the next) return with EXTERNAL_INTERRUPT soon."""
        swtdx_kick(self.cpu)

    def invept(self) -> None:
        """Drop the translations that this virtual CPU has cached, before its next entry."""
        swtdx_invept_one(self.cpu)

    def notify(self) -> None:
        """Posted-interrupt notification: look at the descriptor again, without an exit."""
        swtdx_notify(self.cpu)

    def check_code(self, everywhere: bool = False) -> None:
        """The owner of user memory may have written to it: forget translated code that is out of date.

        The next instruction's page is looked at always, all others every 20 ms, or now if ``everywhere``.
        """
        cdef swtdx_cpu *cpu = self.cpu
        cdef bint all = everywhere
        with nogil:
            swtdx_check_code(cpu, all)

    def inject(self, vector: int, kind: int, error_code: int | None = None, instruction_length: int = 0) -> None:
        """Deliver an event at the next entry (``kind``: :class:`~swtdx.cpu.vmx.EventType`). Replaces a pending one."""
        self.cpu.event.vector = vector
        self.cpu.event.type = kind
        self.cpu.event.has_error = error_code is not None
        self.cpu.event.error_code = error_code or 0
        self.cpu.event.instruction_length = instruction_length
        self.cpu.event.valid = 1

    @property
    def event_pending(self) -> bool:
        """Is an event waiting for the next entry (injected, or its delivery was cut short by an exit)?"""
        return self.cpu.event.valid != 0

    @property
    def idt_vectoring_info(self) -> int:
        """The event whose delivery the last exit cut short, in VMX format (bit 31: there is one)."""
        if not self.cpu.event.valid:
            return 0
        return 1 << 31 | self.cpu.event.has_error << 11 | self.cpu.event.type << 8 | self.cpu.event.vector

    @property
    def idt_vectoring_error(self) -> int:
        """The error code that goes with :attr:`idt_vectoring_info`."""
        return self.cpu.event.error_code

    def cancel_event(self) -> None:
        """Forget the pending event."""
        self.cpu.event.valid = 0

    @property
    def pending_interrupt(self) -> int:
        """The vector that virtual-interrupt delivery would deliver next, or -1."""
        return swtdx_pending_interrupt(self.cpu)

    # -- exit information ---------------------------------------------------------------------------------------------

    @property
    def exit_reason(self) -> int:
        return self.cpu.exit.reason

    @property
    def exit_qualification(self) -> int:
        return self.cpu.exit.qualification

    @property
    def guest_linear_address(self) -> int:
        return self.cpu.exit.linear_address

    @property
    def guest_physical_address(self) -> int:
        return self.cpu.exit.physical_address

    @property
    def instruction_length(self) -> int:
        return self.cpu.exit.instruction_length

    def skip_instruction(self) -> bool:
        """Move RIP past the instruction that exited. True if RFLAGS.TF was set: the guest is to see a single step."""
        self.cpu.rip = self.cpu.rip + self.cpu.exit.instruction_length
        return self.cpu.exit.trap_flag != 0

    @property
    def trap_flag(self) -> bool:
        """RFLAGS.TF at the exit."""
        return self.cpu.exit.trap_flag != 0

    @property
    def instruction_info(self) -> int:
        return self.cpu.exit.instruction_info

    @property
    def interruption_info(self) -> int:
        return self.cpu.exit.interruption_info

    @property
    def interruption_error(self) -> int:
        return self.cpu.exit.interruption_error

    @property
    def ve_convertible(self) -> bool:
        """The EPT violation is one that the processor may turn into #VE (shared half, suppress-#VE clear)."""
        return self.cpu.exit.ve_convertible != 0

    # -- controls -----------------------------------------------------------------------------------------------------

    def set_ept(self, eptp: int) -> None:
        """The EPT pointer; for a Trust Domain that of Secure EPT (bits 5:3: levels - 1, 51:12: root)."""
        self.cpu.eptp = eptp

    def set_shared_ept(self, eptp: int, shared_bit: int) -> None:
        """The shared EPT of a Trust Domain and the bit (as a mask) that leads there; 0 and 0 for none."""
        self.cpu.shared_eptp, self.cpu.shared_bit = eptp, shared_bit

    def set_msr_bitmap(self, bitmap: bytes) -> None:
        """4096 bytes: read low, read high, write low, write high; a set bit exits."""
        cdef const uint8_t[::1] view = bitmap
        if view.shape[0] != 4096:
            raise ValueError("an MSR bitmap has 4096 bytes")
        memcpy(self.cpu.msr_bitmap, &view[0], 4096)

    @property
    def tdx_mode(self) -> bool:
        """SEAM non-root operation: TDCALL exits."""
        return self.cpu.tdx != 0

    @tdx_mode.setter
    def tdx_mode(self, value):
        self.cpu.tdx = bool(value)

    @property
    def apicv(self) -> bool:
        """APIC virtualization with virtual-interrupt delivery."""
        return self.cpu.apicv != 0

    @apicv.setter
    def apicv(self, value):
        self.cpu.apicv = bool(value)

    @property
    def no_ept(self) -> bool:
        """Guest-physical addresses are physical addresses (tests of the processor alone)."""
        return self.cpu.no_ept != 0

    @no_ept.setter
    def no_ept(self, value):
        self.cpu.no_ept = bool(value)

    @property
    def exception_bitmap(self) -> int:
        return self.cpu.exception_bitmap

    @exception_bitmap.setter
    def exception_bitmap(self, value):
        self.cpu.exception_bitmap = value

    @property
    def tsc_offset(self) -> int:
        return self.cpu.tsc_offset

    @tsc_offset.setter
    def tsc_offset(self, value):
        self.cpu.tsc_offset = value & 0xFFFFFFFFFFFFFFFF

    @property
    def tsc_multiplier(self) -> int:
        """Guest ticks per host tick, with 48 fraction bits."""
        return self.cpu.tsc_multiplier

    @tsc_multiplier.setter
    def tsc_multiplier(self, value):
        self.cpu.tsc_multiplier = value

    @property
    def posted_interrupt_descriptor(self) -> int:
        """Physical address of the 64-byte descriptor, 0 for none."""
        return self.cpu.posted_interrupt_descriptor

    @posted_interrupt_descriptor.setter
    def posted_interrupt_descriptor(self, value):
        self.cpu.posted_interrupt_descriptor = value

    @property
    def rdtsc_exiting(self) -> bool:
        return self.cpu.rdtsc_exiting != 0

    @rdtsc_exiting.setter
    def rdtsc_exiting(self, value):
        self.cpu.rdtsc_exiting = bool(value)

    @property
    def mov_dr_exiting(self) -> bool:
        return self.cpu.dr_exiting != 0

    @mov_dr_exiting.setter
    def mov_dr_exiting(self, value):
        self.cpu.dr_exiting = bool(value)

    @property
    def hlt_exiting(self) -> bool:
        return self.cpu.no_hlt_exiting == 0

    @hlt_exiting.setter
    def hlt_exiting(self, value):
        self.cpu.no_hlt_exiting = not value

    @property
    def bus_lock_exiting(self) -> bool:
        return self.cpu.bus_lock_exiting != 0

    @bus_lock_exiting.setter
    def bus_lock_exiting(self, value):
        self.cpu.bus_lock_exiting = bool(value)

    @property
    def activity_state(self) -> int:
        """0 active, 1 HLT: of a guest whose HLT does not exit (SDM vol. 3, 25.4.2)."""
        return self.cpu.activity

    @activity_state.setter
    def activity_state(self, value):
        self.cpu.activity = value

    @property
    def interrupt_window_exiting(self) -> bool:
        return self.cpu.interrupt_window != 0

    @interrupt_window_exiting.setter
    def interrupt_window_exiting(self, value):
        self.cpu.interrupt_window = bool(value)

    @property
    def nmi_window_exiting(self) -> bool:
        return self.cpu.nmi_window != 0

    @nmi_window_exiting.setter
    def nmi_window_exiting(self, value):
        self.cpu.nmi_window = bool(value)

    @property
    def cr0_guest_host_mask(self) -> int:
        return self.cpu.cr0_mask

    @cr0_guest_host_mask.setter
    def cr0_guest_host_mask(self, value):
        self.cpu.cr0_mask = value

    @property
    def cr0_read_shadow(self) -> int:
        return self.cpu.cr0_shadow

    @cr0_read_shadow.setter
    def cr0_read_shadow(self, value):
        self.cpu.cr0_shadow = value

    @property
    def cr4_guest_host_mask(self) -> int:
        return self.cpu.cr4_mask

    @cr4_guest_host_mask.setter
    def cr4_guest_host_mask(self, value):
        self.cpu.cr4_mask = value

    @property
    def cr4_read_shadow(self) -> int:
        return self.cpu.cr4_shadow

    @cr4_read_shadow.setter
    def cr4_read_shadow(self, value):
        self.cpu.cr4_shadow = value

    # -- registers ----------------------------------------------------------------------------------------------------

    @property
    def rip(self) -> int:
        return self.cpu.rip

    @rip.setter
    def rip(self, value):
        self.cpu.rip = value & 0xFFFFFFFFFFFFFFFF

    cdef uint64_t _get(self, uint32_t reg):
        cdef uint64_t value
        cdef swtdx_cpu *cpu = self.cpu
        with nogil:
            value = swtdx_get(cpu, reg)
        return value

    cdef void _set(self, uint32_t reg, uint64_t value):
        cdef swtdx_cpu *cpu = self.cpu
        with nogil:
            swtdx_set(cpu, reg, value)

    @property
    def rflags(self) -> int:
        return self._get(SWTDX_RFLAGS)

    @rflags.setter
    def rflags(self, value):
        self._set(SWTDX_RFLAGS, value)

    @property
    def cr0(self) -> int:
        return self._get(SWTDX_CR0)

    @cr0.setter
    def cr0(self, value):
        self._set(SWTDX_CR0, value)

    @property
    def cr2(self) -> int:
        return self._get(SWTDX_CR0 + 2)

    @cr2.setter
    def cr2(self, value):
        self._set(SWTDX_CR0 + 2, value)

    @property
    def cr3(self) -> int:
        return self._get(SWTDX_CR0 + 3)

    @cr3.setter
    def cr3(self, value):
        self._set(SWTDX_CR0 + 3, value)

    @property
    def cr4(self) -> int:
        return self._get(SWTDX_CR0 + 4)

    @cr4.setter
    def cr4(self, value):
        self._set(SWTDX_CR0 + 4, value)

    @property
    def cr8(self) -> int:
        return self._get(SWTDX_CR0 + 8)

    @cr8.setter
    def cr8(self, value):
        self._set(SWTDX_CR0 + 8, value)

    @property
    def efer(self) -> int:
        return self.rdmsr(0xC0000080)

    @efer.setter
    def efer(self, value):
        self.wrmsr(0xC0000080, value)

    @property
    def xcr0(self) -> int:
        return self._get(SWTDX_XCR0)

    @xcr0.setter
    def xcr0(self, value):
        self._set(SWTDX_XCR0, value)

    @property
    def pkru(self) -> int:
        return self._get(SWTDX_PKRU)

    @pkru.setter
    def pkru(self, value):
        self._set(SWTDX_PKRU, value)

    @property
    def polls(self) -> bool:
        """Whether it was found to do nothing but poll for another one, when it ran last."""
        return self.cpu.nap_ns != 0

    @property
    def naps(self) -> bool:
        """Whether it sleeps in its guest just now, as one that `polls`."""
        return self.cpu.naps != 0

    @property
    def interruptibility(self) -> int:
        """VMX interruptibility state: bit 0 blocking by STI, 1 by MOV SS, 3 by NMI."""
        return self._get(SWTDX_INTERRUPTIBILITY)

    @interruptibility.setter
    def interruptibility(self, value):
        self._set(SWTDX_INTERRUPTIBILITY, value)

    def get_dr(self, index: int) -> int:
        """DR0-3, DR6 or DR7."""
        if index not in (0, 1, 2, 3, 6, 7):
            raise ValueError(f"no debug register {index}")
        return self._get(SWTDX_DR0 + index)

    def set_dr(self, index: int, value: int) -> None:
        """DR0-3, DR6 or DR7."""
        if index not in (0, 1, 2, 3, 6, 7):
            raise ValueError(f"no debug register {index}")
        self._set(SWTDX_DR0 + index, value)

    def segment(self, index: int) -> tuple[int, int, int, int]:
        """(selector, base, limit, access rights in VMX format) of a segment or descriptor-table register."""
        cdef swtdx_segment segment
        cdef uint32_t number = index
        cdef swtdx_cpu *cpu = self.cpu
        if number > 9:
            raise ValueError(f"no segment register {index}")
        with nogil:
            swtdx_get_segment(cpu, number, &segment)
        return segment.selector, segment.base, segment.limit, segment.access_rights

    def set_segment(self, index: int, selector: int, base: int, limit: int, access_rights: int) -> None:
        """Load a segment or descriptor-table register without looking at memory."""
        cdef swtdx_segment segment
        cdef uint32_t number = index
        cdef swtdx_cpu *cpu = self.cpu
        if number > 9:
            raise ValueError(f"no segment register {index}")
        segment.selector, segment.base, segment.limit, segment.access_rights = selector, base, limit, access_rights
        with nogil:
            swtdx_set_segment(cpu, number, &segment)

    def rdmsr(self, index: int) -> int:
        """An MSR that the processor itself holds. Raises KeyError for any other."""
        cdef uint64_t value = 0
        cdef uint32_t number = index
        cdef bint known
        cdef swtdx_cpu *cpu = self.cpu
        with nogil:
            known = swtdx_get_msr(cpu, number, &value)
        if not known:
            raise KeyError(index)
        return value

    def wrmsr(self, index: int, value: int) -> None:
        """Set an MSR that the processor itself holds. Raises KeyError for any other."""
        cdef uint64_t content = value
        cdef uint32_t number = index
        cdef bint known
        cdef swtdx_cpu *cpu = self.cpu
        with nogil:
            known = swtdx_set_msr(cpu, number, content)
        if not known:
            raise KeyError(index)

    def get_fpu(self) -> bytes:
        """x87 and SSE state as the 512-byte FXSAVE image (64-bit form)."""
        cdef uint8_t image[512]
        cdef swtdx_cpu *cpu = self.cpu
        with nogil:
            swtdx_get_fxsave(cpu, image)
        return image[:512]

    def set_fpu(self, image: bytes) -> None:
        """Load x87 and SSE state from a 512-byte FXSAVE image."""
        cdef const uint8_t[::1] view = image
        cdef swtdx_cpu *cpu = self.cpu
        if view.shape[0] != 512:
            raise ValueError("an FXSAVE image has 512 bytes")
        with nogil:
            swtdx_set_fxsave(cpu, &view[0])

    def get_ymm_high(self) -> bytes:
        """The upper halves of YMM0 to YMM15, 256 bytes: the AVX component of the XSAVE area."""
        cdef uint8_t image[256]
        cdef swtdx_cpu *cpu = self.cpu
        with nogil:
            swtdx_get_ymm(cpu, image)
        return image[:256]

    def set_ymm_high(self, image: bytes) -> None:
        """Load the upper halves of YMM0 to YMM15 from 256 bytes."""
        cdef const uint8_t[::1] view = image
        cdef swtdx_cpu *cpu = self.cpu
        if view.shape[0] != 256:
            raise ValueError("the upper halves of the YMM registers have 256 bytes")
        with nogil:
            swtdx_set_ymm(cpu, &view[0])

    def get_xmm(self, index: int) -> int:
        """XMM register as a 128-bit integer."""
        return int.from_bytes(self.get_fpu()[160 + 16 * index : 176 + 16 * index], "little")

    def set_xmm(self, index: int, value: int) -> None:
        """Set an XMM register."""
        image = bytearray(self.get_fpu())
        image[160 + 16 * index : 176 + 16 * index] = value.to_bytes(16, "little")
        self.set_fpu(bytes(image))

    def kept(self) -> bytes:
        """All that this virtual CPU is, for :meth:`go_on` of this or another one. Numbers, no addresses of ours."""
        cdef bytes kept = bytes(swtdx_state_size())
        cdef swtdx_cpu *cpu = self.cpu
        cdef void *place = <void *><char *>kept
        with nogil:
            swtdx_get_state(cpu, place)
        return kept

    def go_on(self, kept: bytes) -> None:
        """Be what :meth:`kept` gave. Raises ValueError for what another build of the engine gave."""
        cdef const uint8_t[::1] view = kept
        cdef swtdx_cpu *cpu = self.cpu
        cdef bint right = <size_t>view.shape[0] == swtdx_state_size()
        if right:
            with nogil:
                right = swtdx_set_state(cpu, &view[0])
        if not right:
            raise ValueError("not the state of a virtual CPU of this engine")

    # -- the guest's memory -------------------------------------------------------------------------------------------

    def translate(self, gla: int) -> int | None:
        """The guest-physical address of a linear address by the guest's page tables, or None."""
        cdef uint64_t gpa, linear = gla
        cdef int result
        cdef swtdx_cpu *cpu = self.cpu
        with nogil:
            result = swtdx_translate_linear(cpu, linear, &gpa)
        return None if result else gpa

    def translate_gpa(self, gpa: int) -> tuple[int, int] | None:
        """(physical address, permissions R 1 W 2 X 4) of a guest-physical address by EPT, or None."""
        cdef uint64_t hpa
        cdef uint32_t prot
        if swtdx_translate_physical(self.cpu, gpa, &hpa, &prot):
            return None
        return hpa, prot

    def read_linear(self, gla: int, length: int) -> bytes:
        """Guest memory by linear address, as far as it is mapped (the result may be shorter)."""
        cdef uint64_t hpa, size
        cdef uint32_t prot
        cdef uint8_t page[4096]
        result = bytearray()
        while length > 0:
            piece = min(length, 4096 - (gla & 4095))
            gpa = self.translate(gla)
            if gpa is None or swtdx_translate_physical(self.cpu, gpa, &hpa, &prot):
                break
            size = piece
            if not swtdx_read(self.engine.package, hpa, page, size):
                break
            result += page[:piece]
            gla, length = gla + piece, length - piece
        return bytes(result)
