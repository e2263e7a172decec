# SPDX-License-Identifier: GPL-2.0-or-later
"""A debug TD under the debugger: TDH.MEM.RD and WR for its private memory, TDH.VP.RD and WR for its vCPUs.

No ioctl of any KVM leads to these SEAMCALLs, so they come through a door of the emulated machine (`DebugTd`) that a
real one does not have.  All else is what the TDX module allows the host of a TD with ATTRIBUTES.DEBUG (metadata tables
of the ABI specification, columns for debug TDs):

- breakpoints and steps: DR0-3, DR7, RFLAGS.TF and the exception bitmap are writable; #DB and #BP then leave the TD
  as exception exits, which KVM hands to user space as KVM_EXIT_EXCEPTION
- why there was a #DB: the exit qualification
- interrupts during a step: the interruptibility state is writable, so that STI's shadow keeps them out

What cannot be: the VM-entry interruption field is read-only, so an INT3 of the guest's own cannot be injected.  Its
interception is taken away for that vCPU until the machine stops again, and the guest executes it by itself.  MOV DR is
not intercepted: a guest that writes its debug registers takes the debugger's breakpoints away until the next stop.  An
instruction that leaves the TD or raises #VE does not end a step, which ends one instruction (or handler) later.
"""

from __future__ import annotations

from swtdx.uapi.abilities import DebugTd
from swtdx.vmm.gdb.breakpoints import Breakpoints
from swtdx.vmm.gdb.registers import SELECTORS
from swtdx.vmm.gdb.save_area import HEADER, SaveArea, compacted_offsets, end, offered
from swtdx.vmm.gdb.target import AccessError
from swtdx.vmm.launch import Machine
from swtdx.x86 import Cr0, Cr4, Gpr, Rflags, Vector

MASK64 = (1 << 64) - 1
_TDVPS_GPR, _TDVPS_STATE, _TDVPS_MSR = 0x1020_0003_0000_0000, 0x1120_0003_0000_0000, 0x1320_0003_0000_0000
_VAPIC, _XBUFF = 0x0120_0003_0000_0000, 0x1220_0003_0000_0000
_GPR_NUMBERS = {
    register.name.lower(): int(register)
    for register in Gpr
    if register is not Gpr.RSP  # in the VMCS
}
_VMCS_WIDTHS = (1, 3, 2, 3)  # by bits 14:13 of an encoding: 16, 64, 32 bits and natural; log2 of the bytes


def vmcs(encoding: int) -> int:
    """The metadata field id of a VMCS field (class 0, context: vCPU)."""
    return 0x0024_0000_0000_0000 | _VMCS_WIDTHS[encoding >> 13 & 3] << 32 | encoding


_SELECTOR_CODES = {"es": 0x800, "cs": 0x802, "ss": 0x804, "ds": 0x806, "fs": 0x808, "gs": 0x80A}
_FIELDS: dict[str, int] = {
    **{name: _TDVPS_GPR + number for name, number in _GPR_NUMBERS.items()},
    "rsp": vmcs(0x681C),
    "rip": vmcs(0x681E),
    "eflags": vmcs(0x6820),
    **{name: vmcs(_SELECTOR_CODES[name]) for name in SELECTORS},
    "fs_base": vmcs(0x680E),
    "gs_base": vmcs(0x6810),
    "k_gs_base": _TDVPS_MSR + 0x2102,
    "cr0": vmcs(0x6800),
    "cr2": _TDVPS_STATE + 0x28,
    "cr3": vmcs(0x6802),
    "cr4": vmcs(0x6804),
    "efer": vmcs(0x2806),
    "xcr0": _TDVPS_STATE + 0x20,
}
_TPR = _VAPIC + 0x80 // 8
_DR0, _DR7 = _TDVPS_STATE, vmcs(0x681A)
_CS_BASE, _EXCEPTION_BITMAP, _QUALIFICATION = vmcs(0x6808), vmcs(0x4004), vmcs(0x6400)
_INTERRUPTIBILITY, _STI_SHADOW = vmcs(0x4824), 1
_DB, _BP = 1 << Vector.DB, 1 << Vector.BP
_XCOMP_BV = _XBUFF + HEADER // 8 + 1
_PRESENT, _LARGE = 1, 1 << 7
_ADDRESS = 0x000F_FFFF_FFFF_F000


class TdTarget:
    """The vCPUs and the memory of a debug TD."""

    gives_back = frozenset((3,))

    def __init__(self, machine: Machine, door: DebugTd) -> None:
        assert machine.plan.td is not None
        self._vcpus = [vcpu.fd for vcpu in machine.vcpus]
        self._shared = machine.slots.memory
        self._shared_bit = 1 << machine.plan.td.gpa_width - 1
        self._door = door
        self._guest_dr: dict[int, dict[int, int]] = {}  # what DR0-3 and DR7 held before the debugger's
        self._stepping: dict[int, int] = {}  # TF as the guest had it
        self._offsets = compacted_offsets(self._rd(0, _XCOMP_BV))
        self.extensions = offered(self._offsets)

    def registers(self, vcpu: int) -> dict[str, int]:
        """Raises AccessError."""
        values = {name: self._rd(vcpu, field) for name, field in _FIELDS.items()}
        values["cr8"] = self._rd(vcpu, _TPR) >> 4 & 0xF
        return values | self._save_area(vcpu).registers()

    def set_register(self, vcpu: int, name: str, value: int) -> None:
        """Raises AccessError: the module does not let all be written."""
        field = _FIELDS.get(name)
        if field is not None:
            self._wr(vcpu, field, value)
            return
        area = self._save_area(vcpu)
        for word in area.set_register(name, value):
            self._wr(vcpu, _XBUFF + word, area.word(word))

    def _save_area(self, vcpu: int) -> SaveArea:
        """What XBUFF holds of the registers."""
        words = range(end(self._offsets) // 8)
        return SaveArea(
            bytearray(b"".join(self._rd(vcpu, _XBUFF + n).to_bytes(8, "little") for n in words)), self._offsets
        )

    def translate(self, vcpu: int, address: int) -> int:
        """A walk of the guest's tables, which lie in private memory. Raises AccessError where they map nothing.

        A TD has EFER.LME set from the beginning, so there is no paging but that of long mode.
        """
        if not self._rd(vcpu, _FIELDS["cr0"]) & Cr0.PG:
            return address & 0xFFFF_FFFF
        levels = 5 if self._rd(vcpu, _FIELDS["cr4"]) & Cr4.LA57 else 4
        top = 9 * levels + 11
        if address >> top not in (0, (1 << 64 - top) - 1):
            raise AccessError(f"{address:#x} is not canonical")
        table = self._rd(vcpu, _FIELDS["cr3"]) & _ADDRESS
        for level in range(levels, 0, -1):
            shift = 9 * level + 3
            entry = int.from_bytes(self.read(table + 8 * (address >> shift & 511), 8), "little")
            if not entry & _PRESENT:
                raise AccessError(f"{address:#x} is not mapped")
            if level == 1 or (entry & _LARGE and level <= 3):
                offset = (1 << shift) - 1
                return entry & _ADDRESS & ~offset | address & offset
            table = entry & _ADDRESS
        raise AssertionError("level 1 always returns")

    def read(self, gpa: int, length: int) -> bytes:
        """Private or shared by the shared bit of ``gpa``. Raises AccessError."""
        if gpa & self._shared_bit:
            try:
                return self._shared.read(gpa & ~self._shared_bit, length)
            except ValueError as error:
                raise AccessError(str(error)) from None
        first = gpa & ~7
        words = b"".join(self._mem_rd(at).to_bytes(8, "little") for at in range(first, gpa + length, 8))
        return words[gpa - first : gpa - first + length]

    def write(self, gpa: int, data: bytes) -> None:
        """As `read`. Raises AccessError; what precedes the failure has been written."""
        if gpa & self._shared_bit:
            try:
                self._shared.write(gpa & ~self._shared_bit, data)
            except ValueError as error:
                raise AccessError(str(error)) from None
            return
        first, end = gpa & ~7, gpa + len(data) + 7 & ~7
        words = bytearray(self.read(first, end - first))
        words[gpa - first : gpa - first + len(data)] = data
        for offset in range(0, len(words), 8):
            try:
                self._door.mem_wr(first + offset, int.from_bytes(words[offset : offset + 8], "little"))
            except OSError as error:
                raise AccessError(error.strerror or str(error)) from None

    def reasons(self, vcpu: int) -> int:
        """Raises AccessError."""
        return self._rd(vcpu, _QUALIFICATION)

    def linear_pc(self, vcpu: int) -> int:
        """Raises AccessError."""
        return self._rd(vcpu, _CS_BASE) + self._rd(vcpu, _FIELDS["rip"]) & MASK64

    def arm(self, vcpu: int, breakpoints: Breakpoints, *, step: bool, give_back: int | None) -> None:
        """Raises AccessError."""
        intercepted = _DB if step or breakpoints.hardware else 0
        if breakpoints.software and give_back is None:
            intercepted |= _BP
        self._intercept(vcpu, intercepted)
        if breakpoints.hardware:
            registers = breakpoints.debug_registers()
            if vcpu not in self._guest_dr:
                self._guest_dr[vcpu] = {field: self._rd(vcpu, field) for field in (*range(_DR0, _DR0 + 4), _DR7)}
            for number in range(4):
                self._wr(vcpu, _DR0 + number, registers[number])
            self._wr(vcpu, _DR7, registers[7])
        if step:
            flags = self._rd(vcpu, _FIELDS["eflags"])
            self._wr(vcpu, _FIELDS["eflags"], flags | Rflags.TF)
            if flags & Rflags.IF:
                self._wr(vcpu, _INTERRUPTIBILITY, self._rd(vcpu, _INTERRUPTIBILITY) | _STI_SHADOW)
            self._stepping[vcpu] = flags & Rflags.TF

    def disarm(self, vcpu: int) -> None:
        """Raises AccessError."""
        self._intercept(vcpu, 0)
        for field, value in self._guest_dr.pop(vcpu, {}).items():
            self._wr(vcpu, field, value)
        before = self._stepping.pop(vcpu, None)
        if before is not None:
            self._wr(vcpu, _FIELDS["eflags"], self._rd(vcpu, _FIELDS["eflags"]) & ~Rflags.TF | before)

    def _intercept(self, vcpu: int, vectors: int) -> None:
        bitmap = self._rd(vcpu, _EXCEPTION_BITMAP)
        wanted = bitmap & ~(_DB | _BP) | vectors
        if wanted != bitmap:
            self._wr(vcpu, _EXCEPTION_BITMAP, wanted, _DB | _BP)

    def _mem_rd(self, gpa: int) -> int:
        try:
            return self._door.mem_rd(gpa)
        except OSError as error:
            raise AccessError(error.strerror or str(error)) from None

    def _rd(self, vcpu: int, field: int) -> int:
        try:
            return self._door.vp_rd(self._vcpus[vcpu], field)
        except OSError as error:
            raise AccessError(error.strerror or str(error)) from None

    def _wr(self, vcpu: int, field: int, value: int, mask: int = MASK64) -> None:
        try:
            self._door.vp_wr(self._vcpus[vcpu], field, value, mask)
        except OSError as error:
            raise AccessError(error.strerror or str(error)) from None
