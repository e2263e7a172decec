# SPDX-License-Identifier: GPL-2.0-or-later
"""The local APIC (arch/x86/kvm/lapic.c; Intel SDM vol. 3, "Advanced Programmable Interrupt Controller").

Registers live in a 4 KiB page laid out as xAPIC MMIO is. For a normal VM that page is the processor's virtual-APIC page
(APICv): TPR, EOI, SELF IPI and delivery happen there without KVM. For a TD the page that counts belongs to the module;
KVM keeps one of its own for the timer, the ICR and the LVTs, and knows nothing of what is in service.

Interrupts are not written into IRR here but posted (`vmx_deliver_interrupt`): they reach IRR at the next entry.
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING

from swtdx.linux.arch.x86.kvm.irq_comm import (
    APIC_DM_EXTINT,
    APIC_DM_FIXED,
    APIC_DM_INIT,
    APIC_DM_LOWEST,
    APIC_DM_NMI,
    APIC_DM_REMRD,
    APIC_DM_STARTUP,
    BROADCAST,
    CLUSTER,
    FLAT,
    X2APIC,
    X2APIC_BROADCAST,
    irq_delivery_to_apic,
)
from swtdx.linux.err import err
from swtdx.linux.virt.kvm.kvm_main import IrqchipMode, SuppressEoiBroadcast
from swtdx.uapi.kvm import KVM_X86_QUIRK_LINT0_REENABLED

if TYPE_CHECKING:
    from swtdx.linux.arch.x86.kvm.x86.vcpu import Vcpu

APIC_DEFAULT_PHYS_BASE = 0xFEE00000
APICBASE_BSP, APICBASE_X2APIC, APICBASE_ENABLE, APICBASE_RESERVED = 1 << 8, 1 << 10, 1 << 11, 0x2FF

ID, LVR, TASKPRI, ARBPRI, PROCPRI, EOI, RRR, LDR, DFR, SPIV = (
    0x20, 0x30, 0x80, 0x90, 0xA0, 0xB0, 0xC0, 0xD0, 0xE0, 0xF0,
)  # fmt: skip
ISR, TMR, IRR, ESR, LVTCMCI, ICR, ICR2 = 0x100, 0x180, 0x200, 0x280, 0x2F0, 0x300, 0x310
LVTT, LVTTHMR, LVTPC, LVT0, LVT1, LVTERR, TMICT, TMCCT, TDCR, SELF_IPI = (
    0x320, 0x330, 0x340, 0x350, 0x360, 0x370, 0x380, 0x390, 0x3E0, 0x3F0,
)  # fmt: skip
LVTS = (LVTT, LVTTHMR, LVTPC, LVT0, LVT1, LVTERR)
LVT_MASKED, LVT_DELIVERY_MODE = 1 << 16, 0x700
_LVT0_ACCEPTS = LVT_MASKED | LVT_DELIVERY_MODE
SPIV_APIC_ENABLED, SPIV_DIRECTED_EOI, LVR_DIRECTED_EOI = 1 << 8, 1 << 12, 1 << 24
TIMER_PERIODIC, TIMER_TSCDEADLINE, TIMER_MODE = 1 << 17, 2 << 17, 3 << 17
READABLE_X2APIC = frozenset(
    [ID, LVR, TASKPRI, PROCPRI, LDR, SPIV, ESR, ICR, *LVTS, TMICT, TMCCT, TDCR]
    + [base + 0x10 * n for base in (ISR, TMR, IRR) for n in range(8)]
)
WRITABLE_X2APIC = frozenset([TASKPRI, EOI, SPIV, ESR, ICR, *LVTS, TMICT, TDCR, SELF_IPI])
_UPPER_HALF, _ALL = 0xFFFFFFFF << 32, (1 << 64) - 1
X2APIC_RESERVED = {
    ICR: 0xFFF00000 | 0x30000 | 1 << 13,  # 31:20, 17:16 and 13 (X2APIC_ICR_RESERVED_BITS)
    SELF_IPI: _ALL & ~0xFF,
    ESR: _ALL,
}
"""Bits that must be 0 in a write to a register in x2APIC mode; in those that are not named, the upper half."""
_LVT_WRITABLE = {
    LVTT: 0x700FF, LVTTHMR: 0x107FF, LVTPC: 0x107FF, LVTCMCI: 0x107FF, LVT0: 0x1E7FF, LVT1: 0x1E7FF, LVTERR: 0x100FF,
}  # fmt: skip
DFR_FLAT, DFR_CLUSTER = 0xFFFFFFFF, 0x0FFFFFFF
MIN_PERIOD_NS = 200_000  # kvm.min_timer_period_us
ICR_ASSERT, ICR_LEVEL_TRIGGERED = 1 << 14, 1 << 15


class Lapic:
    """``page``: 4096 writable bytes."""

    def __init__(self, vcpu: Vcpu, page: memoryview) -> None:
        self.vcpu = vcpu
        self.page = page
        self._regs = page.cast("I")
        self.base = 0
        self.arb_prio = 0
        self.lvts: tuple[int, ...] = LVTS
        """The LVT entries that there are: CMCI's only where MCG_CAP has MCG_CMCI_P."""
        self.lapic_timer = vcpu.kvm.kernel.timers.timer(self.apic_timer_fn)
        self._tmict_start = 0
        self._period = 0
        self.tsc_deadline = 0
        self.pending_init = False
        self.pending_sipi = False
        self.sipi_vector = 0
        self.pending_ioapic_eoi: int | None = None
        self.reset()

    def reset(self) -> None:
        """State after RESET and INIT."""
        vcpu = self.vcpu
        self.lapic_timer.cancel()
        for offset in range(0, 0x400, 0x10):
            self._regs[offset >> 2] = 0
        self.base = APIC_DEFAULT_PHYS_BASE | APICBASE_ENABLE
        if vcpu.is_bsp:
            self.base |= APICBASE_BSP
        self._set(ID, vcpu.vcpu_id << 24 & 0xFFFFFFFF)
        self._set(LVR, self.version)
        for lvt in self.lvts:
            self._set(lvt, LVT_MASKED)
        if vcpu.is_bsp and not vcpu.kvm.disabled_quirks & KVM_X86_QUIRK_LINT0_REENABLED:
            self._set(LVT0, 0x700)  # ExtINT, unmasked
        self._set(DFR, 0xFFFFFFFF)
        self._set(SPIV, 0xFF)
        self.tsc_deadline = 0
        self._period = 0

    @property
    def version(self) -> int:
        """The version register: 14H, the number of the last LVT entry, and Directed EOI (kvm_apic_set_version)."""
        version = 0x14 | (len(self.lvts) - 1) << 16
        kvm = self.vcpu.kvm
        offered = kvm.suppress_eoi_broadcast is SuppressEoiBroadcast.ENABLED
        if kvm.suppress_eoi_broadcast is SuppressEoiBroadcast.QUIRKED:
            offered = kvm.irqchip_mode is not IrqchipMode.KERNEL
        return version | (LVR_DIRECTED_EOI if offered and self.vcpu.guest_cpuid_has_x2apic() else 0)

    def set_version(self) -> None:
        """What the version register says may have changed: the vCPU has another CPUID."""
        self._set(LVR, self.version)

    def set_cmci(self, has_cmci: bool) -> None:
        """KVM_X86_SETUP_MCE said whether there is LVT CMCI (kvm_apic_after_set_mcg_cap)."""
        wanted = (*LVTS, LVTCMCI) if has_cmci else LVTS
        if wanted != self.lvts:
            self.lvts = wanted
            if has_cmci:
                self._set(LVTCMCI, LVT_MASKED)
            self._set(LVR, self.version)

    def local_deliver(self, lvt: int) -> None:
        """Deliver an interrupt that arose here, as its LVT entry says (kvm_apic_local_deliver)."""
        value = self.get(lvt)
        if self.enabled and not value & LVT_MASKED:
            self.accept_irq(value >> 8 & 7, value & 0xFF, False)

    def get(self, register: int) -> int:
        """Return a register as it stands in the page."""
        return self._regs[register >> 2]

    def _set(self, register: int, value: int) -> None:
        self._regs[register >> 2] = value & 0xFFFFFFFF

    # --- Mode and identity --------------------------------------------------------------------------------------------

    @property
    def enabled(self) -> bool:
        """Enabled by IA32_APIC_BASE."""
        return bool(self.base & APICBASE_ENABLE)

    @property
    def x2apic(self) -> bool:
        """In x2APIC mode."""
        return bool(self.base & APICBASE_X2APIC)

    @property
    def sw_enabled(self) -> bool:
        """Enabled by the spurious-interrupt vector register too; a TD's always is."""
        return self.vcpu.kvm.is_td or bool(self.get(SPIV) & SPIV_APIC_ENABLED)

    @property
    def accepts_pic_interrupts(self) -> bool:
        """kvm_apic_accept_pic_intr: LINT0 takes ExtINT, or the APIC is off and the INTR pin goes to the processor."""
        return not self.base & APICBASE_ENABLE or self._regs[LVT0 >> 2] & _LVT0_ACCEPTS == APIC_DM_EXTINT << 8

    @property
    def apic_id(self) -> int:
        """The id that physical destinations name."""
        return self.get(ID) if self.x2apic else self.get(ID) >> 24

    def set_base(self, value: int) -> None:
        """Write IA32_APIC_BASE, which `Vcpu.set_apic_base` has checked."""
        old_mode, mode = self.base >> 10 & 3, value >> 10 & 3
        self.base = value
        if mode == 3 and old_mode != 3:
            self.enable_x2apic()
        elif mode != 3 and old_mode == 3:
            self._set(ID, self.vcpu.vcpu_id << 24)
            self._set(LDR, 0)
        self.vcpu.kvm.ops.set_virtual_apic_mode(self.vcpu)

    def enable_x2apic(self) -> None:
        """Into x2APIC mode without asking the vCPU's CPUID (v10 did not)."""
        self.base |= APICBASE_ENABLE | APICBASE_X2APIC
        x2apic_id = self.vcpu.vcpu_id
        self._set(ID, x2apic_id)
        self._set(LDR, x2apic_id >> 4 << 16 | 1 << (x2apic_id & 0xF))

    @property
    def logical_id(self) -> int:
        """The address of logical destinations; 0 if it has none."""
        return self.get(LDR) if self.x2apic else self.get(LDR) >> 24

    @property
    def logical_mode(self) -> str:
        """How logical destinations are read."""
        if self.x2apic:
            return X2APIC
        return FLAT if self.get(DFR) == DFR_FLAT else CLUSTER

    def match_destination(self, destination: int, logical: bool, *, is_ipi: bool) -> bool:
        """Return whether an interrupt so addressed is for this APIC (kvm_apic_match_dest)."""
        if self.x2apic and not is_ipi and destination == BROADCAST:
            if not self.vcpu.kvm.x2apic_broadcast_quirk_disabled:
                return True
        if destination == (X2APIC_BROADCAST if self.x2apic else BROADCAST):
            return True
        if not logical:
            wide = self.x2apic or destination > BROADCAST
            return destination == (self.vcpu.vcpu_id if wide else self.apic_id)
        own = self.logical_id
        if self.x2apic:
            return own >> 16 == destination >> 16 and bool(own & destination & 0xFFFF)
        if self.logical_mode == FLAT:
            return bool(own & destination)
        if self.get(DFR) != DFR_CLUSTER:
            return False
        return own >> 4 == destination >> 4 and bool(own & destination & 0xF)

    # --- Incoming -----------------------------------------------------------------------------------------------------

    def accept_irq(self, delivery_mode: int, vector: int, level_triggered: bool) -> int:
        """__apic_accept_irq: 1 if the interrupt was taken."""
        vcpu = self.vcpu
        if delivery_mode == APIC_DM_LOWEST:
            self.arb_prio += 1
        if delivery_mode in (APIC_DM_FIXED, APIC_DM_LOWEST):
            if not self.enabled or not self.sw_enabled:
                return 0
            index = TMR + 0x10 * (vector >> 5) >> 2
            if level_triggered:
                self._regs[index] |= 1 << (vector & 31)
            else:
                self._regs[index] &= ~(1 << (vector & 31))
            vcpu.kvm.ops.deliver_interrupt(vcpu, vector)
        elif delivery_mode == APIC_DM_REMRD:
            vcpu.kick()
        elif delivery_mode == APIC_DM_NMI:
            vcpu.queue_nmi()
        elif delivery_mode in (APIC_DM_INIT, APIC_DM_STARTUP):
            if vcpu.kvm.ops.apic_init_signal_blocked(vcpu):
                return 1
            if delivery_mode == APIC_DM_INIT:
                self.pending_init, self.pending_sipi = True, False
            else:
                self.pending_sipi, self.sipi_vector = True, vector
            # The vCPU's own thread takes them, before it enters the guest; one that waits for a SIPI sleeps.
            vcpu.kick()
        else:
            return 0
        return 1

    def find_highest(self, base: int) -> int:
        """Return the highest vector set in ISR, TMR or IRR; -1 if none."""
        for word in range(7, -1, -1):
            bits = self._regs[base + 0x10 * word >> 2]
            if bits:
                return 32 * word + bits.bit_length() - 1
        return -1

    def update_ppr(self) -> int:
        """Recompute the processor priority."""
        tpr, isr = self.get(TASKPRI) & 0xFF, max(self.find_highest(ISR), 0)
        ppr = tpr if tpr & 0xF0 >= isr & 0xF0 else isr & 0xF0
        self._set(PROCPRI, ppr)
        return ppr

    def set_tpr(self, value: int) -> None:
        """Set the task priority, as CR8 does."""
        self._set(TASKPRI, value)
        self.update_ppr()

    def has_interrupt(self) -> bool:
        """Return whether IRR holds a vector of a higher class than PPR."""
        if not self.enabled:
            return False
        irr = self.find_highest(IRR)
        return irr >= 0 and irr & 0xF0 > self.update_ppr() & 0xF0

    def set_eoi(self) -> int:
        """End of interrupt; the vector that was in service, -1 if none."""
        vector = self.find_highest(ISR)
        if vector < 0:
            return -1
        self._regs[ISR + 0x10 * (vector >> 5) >> 2] &= ~(1 << (vector & 31))
        self.update_ppr()
        self.eoi_broadcast(vector)
        return vector

    def eoi_broadcast(self, vector: int) -> None:
        """A level-triggered interrupt ended: KVM_EXIT_IOAPIC_EOI informs the I/O APIC in user space."""
        if self._regs[TMR + 0x10 * (vector >> 5) >> 2] & 1 << (vector & 31):
            self.ioapic_send_eoi(vector)

    def ioapic_send_eoi(self, vector: int) -> None:
        """Broadcast the EOI of a level-triggered vector, unless the guest does that itself (kvm_ioapic_send_eoi)."""
        if self.get(SPIV) & SPIV_DIRECTED_EOI and self.vcpu.kvm.suppress_eoi_broadcast is SuppressEoiBroadcast.ENABLED:
            return
        self.pending_ioapic_eoi = vector

    # --- Register access ----------------------------------------------------------------------------------------------

    def read(self, register: int) -> int:
        """Return a 32-bit register as the guest reads it."""
        if register == TMCCT:
            return self.apic_get_tmcct()
        if register == PROCPRI:
            return self.update_ppr()
        return self.get(register)

    def write(self, register: int, value: int) -> None:
        """A 32-bit register as the guest writes it."""
        if register == EOI:
            self.set_eoi()
        elif register == ICR:
            self._set(ICR, value & ~(1 << 12))
            self.send_ipi(value, self.get(ICR2) if self.x2apic else self.get(ICR2) >> 24)
        elif register == SELF_IPI:
            self.send_ipi(1 << 18 | value & 0xFF, 0)
        elif register in self.lvts:
            self._write_lvt(register, value)
        elif register == SPIV:
            mask = 0x3FF | (SPIV_DIRECTED_EOI if self.get(LVR) & LVR_DIRECTED_EOI else 0)
            self._set(SPIV, value & mask)
            if value & SPIV_APIC_ENABLED and self.vcpu.async_pf.wakes_all:
                self.vcpu.async_pf.check_completion()
            if not value & SPIV_APIC_ENABLED:
                for lvt in self.lvts:
                    self._set(lvt, self.get(lvt) | LVT_MASKED)
        elif register == TMICT:
            if self.get(LVTT) & TIMER_MODE != TIMER_TSCDEADLINE:
                self._set(TMICT, value)
                self.start_apic_timer()
        elif register == TDCR:
            self._set(TDCR, value & 0xB)
            self.start_apic_timer()
        elif register == TASKPRI:
            self.set_tpr(value & 0xFF)
        elif register == ESR:
            self._set(ESR, 0)
        elif register in (LDR, DFR, ID, ICR2):
            mask = {LDR: 0xFF000000, DFR: 0xFFFFFFFF, ID: 0xFF000000, ICR2: 0xFF000000}[register]
            if not self.x2apic:
                self._set(register, value & mask | (0x0FFFFFFF if register == DFR else 0))

    def _write_lvt(self, register: int, value: int) -> None:
        value &= _LVT_WRITABLE[register]
        if not self.sw_enabled:
            value |= LVT_MASKED
        if register == LVTT:
            self._update_lvtt(self.get(LVTT), value)
        self._set(register, value)

    def _update_lvtt(self, old: int, value: int) -> None:
        """apic_update_lvtt: into TSC-deadline mode or out of it, what the timer counted is void."""
        if (old & TIMER_MODE == TIMER_TSCDEADLINE) is not (value & TIMER_MODE == TIMER_TSCDEADLINE):
            self.lapic_timer.cancel()
            self._set(TMICT, 0)
            self.tsc_deadline = self._period = 0
        elif value & TIMER_PERIODIC and self._period:
            self._period = max(self._period, MIN_PERIOD_NS)

    def x2apic_read(self, msr: int) -> int | None:
        """RDMSR in 800H..8FFH; None is #GP."""
        register = msr - 0x800 << 4
        if not self.x2apic or (register not in READABLE_X2APIC and register not in self.lvts):
            return None
        if register == ICR:
            return self.get(ICR) | self.get(ICR2) << 32
        return self.read(register)

    def x2apic_write(self, msr: int, value: int) -> bool:
        """WRMSR in 800H..8FFH; False is #GP."""
        register = msr - 0x800 << 4
        if not self.x2apic or (register not in WRITABLE_X2APIC and register not in self.lvts):
            return False
        if value & X2APIC_RESERVED.get(register, _UPPER_HALF):
            return False
        if register == ICR:
            self._set(ICR, value & ~(1 << 12))
            self._set(ICR2, value >> 32)
            self.send_ipi(value & 0xFFFFFFFF, value >> 32)
            return True
        self.write(register, value)
        return True

    def send_ipi(self, icr: int, destination: int) -> None:
        """Deliver what the ICR says. INIT's de-assertion (level-triggered, not asserted) resets no vCPU."""
        if icr >> 8 & 7 == APIC_DM_INIT and icr & ICR_LEVEL_TRIGGERED and not icr & ICR_ASSERT:
            return
        irq_delivery_to_apic(
            self.vcpu.kvm,
            self,
            destination=destination,
            logical=bool(icr & 1 << 11),
            shorthand=icr >> 18 & 3,
            delivery_mode=icr >> 8 & 7,
            vector=icr & 0xFF,
            level_triggered=False,
            lowest=icr >> 8 & 7 == APIC_DM_LOWEST,
        )

    # --- Timer --------------------------------------------------------------------------------------------------------

    def _divisor(self) -> int:
        tdcr = self.get(TDCR)
        return 1 << ((tdcr & 3 | tdcr >> 1 & 4) + 1 & 7)

    def start_apic_timer(self, left: int | None = None) -> None:
        """Count from TMICT. ``left``: what is left of the first period, where user space restores a timer."""
        self.lapic_timer.cancel()
        count = self.get(TMICT)
        if not count or self.get(LVTT) & TIMER_MODE == TIMER_TSCDEADLINE:
            return
        self._period = count * self.vcpu.kvm.apic_bus_cycle_ns * self._divisor()
        if self.get(LVTT) & TIMER_PERIODIC:
            self._period = max(self._period, MIN_PERIOD_NS)
        first = self._period
        if left is not None:
            first = min(left * self.vcpu.kvm.apic_bus_cycle_ns * self._divisor(), first)
            if not first and self.get(LVTT) & TIMER_PERIODIC:
                first = self._period
        self._tmict_start = self.vcpu.kvm.processor.clock.monotonic_ns() - self._period + first
        self.lapic_timer.start(self._tmict_start + self._period)

    def apic_get_tmcct(self) -> int:
        count = self.get(TMICT)
        if not count or not self._period or self.get(LVTT) & TIMER_MODE == TIMER_TSCDEADLINE:
            return 0
        # A count that is over stays at 0 when its timer becomes periodic: only TMICT starts it again.
        left = self._tmict_start + self._period - self.vcpu.kvm.processor.clock.monotonic_ns()
        return max(0, left) // (self.vcpu.kvm.apic_bus_cycle_ns * self._divisor())

    def set_tsc_deadline(self, deadline: int) -> None:
        """WRMSR IA32_TSC_DEADLINE (guest TSC); 0 disarms. Ignored in the other timer modes."""
        if self.get(LVTT) & TIMER_MODE != TIMER_TSCDEADLINE:
            return
        self.lapic_timer.cancel()
        self.tsc_deadline = deadline
        if not deadline:
            return
        delay = deadline - self.vcpu.guest_tsc()
        if delay <= 0:
            self.apic_timer_fn()
        else:
            self.lapic_timer.start(
                self.vcpu.kvm.processor.clock.monotonic_ns() + delay * 1_000_000 // self.vcpu.virtual_tsc_khz
            )

    def apic_timer_fn(self) -> None:
        lvtt = self.get(LVTT)
        if lvtt & TIMER_MODE == TIMER_TSCDEADLINE:
            self.tsc_deadline = 0
        elif lvtt & TIMER_PERIODIC:
            now = self.vcpu.kvm.processor.clock.monotonic_ns()
            self._tmict_start += self._period
            if self._tmict_start + self._period < now:  # behind: skip what was missed
                self._tmict_start = now
            self.lapic_timer.start(self._tmict_start + self._period)
        if not lvtt & LVT_MASKED:
            self.accept_irq(APIC_DM_FIXED, lvtt & 0xFF, False)

    def request(self, vectors: int) -> None:
        """Set bits of IRR, from a 256-bit mask."""
        for word in range(8):
            if bits := vectors >> 32 * word & 0xFFFFFFFF:
                self._regs[IRR + 0x10 * word >> 2] |= bits

    # --- KVM_GET_LAPIC, KVM_SET_LAPIC ---------------------------------------------------------------------------------

    def get_state(self) -> bytes:
        """The first KiB of the page; in x2APIC mode the id as the VM's API format has it."""
        self._set(TMCCT, self.apic_get_tmcct())
        state = bytearray(self.page[:0x400])
        if self.x2apic and not self.vcpu.kvm.x2apic_format:
            struct.pack_into("<I", state, ID, self.vcpu.vcpu_id << 24 & 0xFFFFFFFF)
        return bytes(state)

    def set_state(self, state: bytes) -> None:
        """Load the registers and restart the timer. The x2APIC id cannot be set. Raises OSError(EINVAL) if it differs.

        Without KVM_X2APIC_API_USE_32BIT_IDS another id is not refused, but ignored.
        """
        if self.x2apic and self.vcpu.kvm.x2apic_format and struct.unpack_from("<I", state, ID)[0] != self.vcpu.vcpu_id:
            raise err(errno.EINVAL, f"the x2APIC id is {self.vcpu.vcpu_id} and cannot be set")
        old_lvtt = self.get(LVTT)
        self.page[:0x400] = state
        if self.x2apic:
            x2apic_id = self.vcpu.vcpu_id
            self._set(ID, x2apic_id)
            self._set(LDR, x2apic_id >> 4 << 16 | 1 << (x2apic_id & 0xF))
        self._set(LVR, self.version)
        self.update_ppr()
        left = self.get(TMCCT)
        self._set(TMCCT, 0)
        self._update_lvtt(old_lvtt, self.get(LVTT))
        if self.get(LVTT) & TIMER_MODE == TIMER_TSCDEADLINE:
            self.set_tsc_deadline(self.tsc_deadline)
        else:
            self.start_apic_timer(left)

    def free(self) -> None:
        """The vCPU ends."""
        self.lapic_timer.shutdown_sync()
        self._regs.release()
