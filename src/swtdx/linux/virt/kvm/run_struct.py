# SPDX-License-Identifier: GPL-2.0-or-later
"""Where things are in kvm_run, as ready-made packers: filling an exit must cost microseconds.

Offsets are computed from `uapi.kvm_run`; the kernel writes through them into the vCPU's shared page.
"""

from __future__ import annotations

import struct

from swtdx.uapi.kvm import kvm_run

UNION = kvm_run.exit.offset  # byte 32
IMMEDIATE_EXIT = kvm_run.immediate_exit.offset
REQUEST_INTERRUPT_WINDOW = kvm_run.request_interrupt_window.offset
EXIT_REASON = kvm_run.exit_reason.offset
FLAGS = kvm_run.flags.offset
READY_FOR_INTERRUPT = kvm_run.ready_for_interrupt_injection.offset
CR8 = kvm_run.cr8.offset
VALID_REGS = kvm_run.kvm_valid_regs.offset
SYNC_REGS = kvm_run.s.offset
PIO_DATA = 0x1000
RUN_SIZE = 0x3000  # kvm_run, the PIO page, the coalesced-MMIO page

U16 = struct.Struct("<H")
U32 = struct.Struct("<I")
U64 = struct.Struct("<Q")
STATE = struct.Struct("<BBHQQ")  # from READY_FOR_INTERRUPT: ready, if_flag, flags, cr8, apic_base
IO = struct.Struct("<BBHIQ")  # direction, size, port, count, data_offset
MMIO = struct.Struct("<Q8sIB")  # phys_addr, data, len, is_write
HYPERCALL = struct.Struct("<Q6QQQ")  # nr, args, ret, flags
SYSTEM_EVENT = struct.Struct("<II16Q")  # type, ndata, data
INTERNAL = struct.Struct("<IIQQ")  # suberror, ndata, data
VECTORING = struct.Struct("<IIQQQQQ")  # suberror, ndata, the event, exit reason, qualification, gpa, cpu
MSR = struct.Struct("<B7xIIQ")  # error, reason, index, data
MEMORY_FAULT = struct.Struct("<QQQ")  # flags, gpa, size
TDX = struct.Struct("<QQQQQQQQ")  # flags, nr, ret and up to five words
DEBUG = struct.Struct("<I4xQQQ")  # exception, pc, dr6, dr7
DATA = {1: struct.Struct("<B"), 2: U16, 4: U32, 8: U64}
