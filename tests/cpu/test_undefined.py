# SPDX-License-Identifier: GPL-2.0-or-later
"""Which instructions exist: those that CPUID offers, and no others.

Every opcode of every map, with every prefix that selects an instruction, is decoded by iced-x86, which knows the CPUID
feature of each. What iced does not know, or what needs a feature that is not offered, must raise #UD; all else must
not.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from iced_x86 import CpuidFeature, Decoder, DecoderOptions, EncodingKind, FlowControl, Instruction, Mnemonic

from swtdx.cpu import cpuid
from swtdx.cpu.platform import Platform
from swtdx.cpu.vmx import ExitReason, Segment
from tests.cpu.guest import CODE, FLAT_CODE, FLAT_DATA, GDT, IDT, SELECTOR_CODE, SELECTOR_DATA, Guest

UNDEFINED = 6
# iced's name of a feature: (leaf, register, bit). What is not here is not a feature of an Intel processor of today.
FEATURES = {
    "CX8": (1, 3, 8), "SEP": (1, 3, 11), "CMOV": (1, 3, 15), "CLFSH": (1, 3, 19), "MMX": (1, 3, 23), "FXSR": (1, 3,
    24), "SSE": (1, 3, 25), "SSE2": (1, 3, 26), "SSE3": (1, 2, 0), "PCLMULQDQ": (1, 2, 1), "MONITOR": (1, 2, 3),
    "VMX": (1, 2, 5), "SMX": (1, 2, 6), "SSSE3": (1, 2, 9), "FMA": (1, 2, 12), "CMPXCHG16B": (1, 2, 13), "SSE4_1":
    (1, 2, 19), "SSE4_2": (1, 2, 20), "MOVBE": (1, 2, 22), "POPCNT": (1, 2, 23), "AES": (1, 2, 25), "XSAVE": (1, 2,
    26), "AVX": (1, 2, 28), "F16C": (1, 2, 29), "RDRAND": (1, 2, 30), "FSGSBASE": (7, 1, 0), "BMI1": (7, 1, 3),
    "AVX2": (7, 1, 5), "BMI2": (7, 1, 8), "INVPCID": (7, 1, 10), "RTM": (7, 1, 11), "HLE": (7, 1, 4), "RDSEED": (7,
    1, 18), "ADX": (7, 1, 19), "SMAP": (7, 1, 20), "CLFLUSHOPT": (7, 1, 23), "CLWB": (7, 1, 24), "SHA": (7, 1, 29),
    "PKU": (7, 2, 3), "WAITPKG": (7, 2, 5), "GFNI": (7, 2, 8), "VAES": (7, 2, 9), "VPCLMULQDQ": (7, 2, 10), "RDPID":
    (7, 2, 22), "MOVDIRI": (7, 2, 27), "MOVDIR64B": (7, 2, 28), "ENQCMD": (7, 2, 29), "KL": (7, 2, 23), "UINTR": (7,
    3, 5), "SERIALIZE": (7, 3, 14), "TSXLDTRK": (7, 3, 16), "PCONFIG": (7, 3, 18), "SYSCALL": (0x80000001, 3, 11),
    "RDTSCP": (0x80000001, 3, 27), "LZCNT": (0x80000001, 2, 5), "WBNOINVD": (0x80000008, 1, 9), "XSAVEOPT": (0xD, 0,
    0), "XSAVEC": (0xD, 0, 1), "XSAVES": (0xD, 0, 3),
}  # fmt: skip
BASELINE = {
    "INTEL8086", "INTEL186", "INTEL286", "INTEL386", "INTEL486", "X64", "FPU", "FPU387", "MULTIBYTENOP", "CPUID",
    "MSR", "TSC", "PAUSE", "RDPMC", "INTEL8086_ONLY", "INTEL286_ONLY"
}  # fmt: skip
# PREFETCHW and the like do nothing where they are not offered; hints in the NOP space too.
HINTS = {"PREFETCHW", "PREFETCHWT1", "CET_SS", "CET_IBT", "CLDEMOTE", "MPX", "PREFETCHITI", "SMM", "HLE"}


def offered(instruction: Instruction) -> bool | None:
    """Whether our CPUID offers this instruction; None: the test leaves it alone."""
    names = {FEATURE_NAMES[number] for number in instruction.cpuid_features()}
    if names & HINTS:
        return None
    platform = Platform(memory_size=1 << 30)
    for name in names - BASELINE:
        if name not in FEATURES:
            return False
        leaf, register, bit = FEATURES[name]
        subleaf = 1 if leaf == 0xD else 0
        if not cpuid.native(platform, leaf, subleaf)[register] >> bit & 1:
            return False
    return True


FEATURE_NAMES = {value: name for name, value in vars(CpuidFeature).items() if isinstance(value, int)}
MNEMONICS = {value: name for name, value in vars(Mnemonic).items() if isinstance(value, int)}
# They exit or need a state of their own, which other tests give them.
LEFT_ALONE = {"UD0", "UD1", "UD2", "TDCALL", "RSM", "SYSEXIT", "SYSRET", "SYSENTER", "SYSCALL", "XABORT", "XBEGIN",
              "VMCALL", "GETSEC", "MOV", "TZCNT", "MONITOR", "MWAIT"}  # fmt: skip


BRANCHES = {FlowControl.CONDITIONAL_BRANCH, FlowControl.UNCONDITIONAL_BRANCH, FlowControl.INDIRECT_BRANCH,
            FlowControl.CALL, FlowControl.INDIRECT_CALL, FlowControl.RETURN}  # fmt: skip


def encodings(prefix: bytes, escape: bytes) -> Iterator[bytes]:
    for opcode in range(256):
        if not escape and opcode in (
            0x0F,
            0x26,
            0x2E,
            0x36,
            0x3E,
            0x64,
            0x65,
            0x66,
            0x67,
            0xF0,
            0xF2,
            0xF3,
            *range(0x40, 0x50),
        ):
            continue
        if escape == b"\x0f" and opcode in (0x38, 0x3A):
            continue
        for middle in range(8):
            for modrm in (middle << 3 | 7, 0xC1 | middle << 3):  # [rdi] and rcx
                yield prefix + escape + bytes([opcode, modrm]) + bytes.fromhex("02000000 00000000")


HLT = b"\xf4"


def undefined(guest: Guest, code: bytes, xcr0: int = 1) -> bool:
    context = guest.context
    guest.memory.write(CODE, code)
    context.rip = CODE
    context.rflags = 2
    context.cr0, context.cr4, context.xcr0 = 0x80000021, 0x50660, xcr0
    for segment in (Segment.ES, Segment.SS, Segment.DS, Segment.FS, Segment.GS):
        context.set_segment(segment, SELECTOR_DATA, 0, 0xFFFFFFFF, FLAT_DATA)
    context.set_segment(Segment.CS, SELECTOR_CODE, 0, 0xFFFFFFFF, FLAT_CODE)
    context.set_segment(Segment.GDTR, 0, GDT, 31, 0)
    context.set_segment(Segment.IDTR, 0, IDT, 4095, 0)
    for register in range(16):
        context.gpr[register] = 0x90000
    reason = context.run()
    if context.event_pending:
        context.cancel_event()
    return reason == ExitReason.EXCEPTION_NMI and context.interruption_info & 0xFF == UNDEFINED


@pytest.mark.parametrize("escape", ["", "0f", "0f38", "0f3a"])
@pytest.mark.parametrize("prefix", ["", "66", "f2", "f3", "48"])
def test_what_cpuid_does_not_offer_is_undefined(prefix: str, escape: str) -> None:
    guest = Guest()
    guest.context.exception_bitmap = 0xFFFFFFFF
    guest.memory.write(CODE + 16, b"\xf4" * 256)
    wrong = []
    for code in encodings(bytes.fromhex(prefix), bytes.fromhex(escape)):
        instruction = Decoder(64, code, DecoderOptions.NONE).decode()
        if instruction.is_invalid or instruction.op_code().encoding != EncodingKind.LEGACY:
            expected = False
        else:
            known = offered(instruction)
            if known is None or MNEMONICS[instruction.mnemonic] in LEFT_ALONE or instruction.flow_control in BRANCHES:
                continue
            expected = known
            code = code[: instruction.len] + HLT
        if undefined(guest, code) == expected:
            wrong.append(f"{code.hex()} {instruction} {'is undefined' if expected else 'executes'}")
    assert not wrong, "\n".join([str(len(wrong)), *wrong])


AVX_STATE = 7


def vex_encodings(number: int) -> Iterator[bytes]:
    """All opcodes of a map with all of VEX.W, VEX.L and VEX.pp; registers that differ, as gathers want it."""
    for third in range(8):
        for wide in (0, 0x80):
            for vvvv in (0, 3):
                for opcode in range(256):
                    for modrm in (0x0C, 0x17, 0x1F, 0x0F, 0xC9, 0xD1, 0xD9):
                        sib = b"\x25" if modrm & 7 == 4 and modrm < 0xC0 else b""
                        fields = bytes([0xC4, 0xE0 | number, wide | (15 - vvvv) << 3 | third, opcode, modrm])
                        yield fields + sib + bytes.fromhex("10000900 00000000")


@pytest.mark.parametrize("xcr0", [AVX_STATE, 3, 1])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_vex_prefix_selects_what_cpuid_offers_and_xcr0_enables(number: int, xcr0: int) -> None:
    if not cpuid.supported_xcr0(Platform()) & 4:
        pytest.skip("the processor here has no AVX")
    guest = Guest()
    guest.context.exception_bitmap = 0xFFFFFFFF
    guest.memory.write(CODE + 16, b"\xf4" * 256)
    wrong = []
    for code in vex_encodings(number):
        instruction = Decoder(64, code, DecoderOptions.NONE).decode()
        expected = False
        if not instruction.is_invalid:
            if MNEMONICS[instruction.mnemonic] == "VLDMXCSR":
                continue  # what it loads here is #GP
            names = {FEATURE_NAMES[feature] for feature in instruction.cpuid_features()}
            expected = bool(offered(instruction)) and (xcr0 == AVX_STATE or names <= {"BMI1", "BMI2"})
            code = code[: instruction.len] + HLT
        if undefined(guest, code, xcr0) == expected:
            wrong.append(f"{code.hex()} {instruction} {'is undefined' if expected else 'executes'}")
    assert not wrong, "\n".join([str(len(wrong)), *wrong[:50]])
