# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest's SSE, AVX, BMI and x87 instructions against the host's processor: same bytes, same state, same result?

A case is an instruction in one form and some states. A program of a loop around the instruction loads a state
(FXRSTOR, the upper halves of YMM registers, general registers, RFLAGS), executes the instruction and stores what came
out; the host and a bare guest run it over the same area of memory. Which instructions there are, and what their
operands are, comes from iced-x86. Where the two do not agree, :func:`campaign` reports it.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import random
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from iced_x86 import CpuidFeature, Decoder, EncodingKind, Instruction, OpCodeOperandKind

from swtdx.cpu import _engine
from swtdx.cpu.platform import HOST_FEATURES
from swtdx.cpu.vmx import ExitReason
from testing.bare_processor import CODE, Guest, assemble

STATE = 1024
GENERAL, FLAGS, MEMORY, HIGH = 512, 640, 704, 768
"""Where in a state, after the FXSAVE image: sixteen general registers, RFLAGS, 64 bytes of memory operand, and the
upper halves of sixteen YMM registers."""
MXCSR, CONTROL, STATUS, TAGS = 24, 0, 2, 4
AREA = 0x80_0000
RETURN = 0x4F_0000
_REGISTERS = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)))
_USED = [n for n in range(16) if n not in (4, 7)]
_PREFIXES, _MAPS = (b"", b"\x66", b"\xf3", b"\xf2"), (b"\x0f", b"\x0f\x38", b"\x0f\x3a")
_NAMES = {value: name for name, value in vars(CpuidFeature).items() if isinstance(value, int)}
HOST = {name for bit, name in enumerate(HOST_FEATURES) if _engine.host_features() >> bit & 1}
AVX = "avx" in HOST
_ON_GENERAL = {"BMI1", "BMI2", "LZCNT", "POPCNT", "ADX", "MOVBE"}
OFFERED = {"MMX", "SSE", "SSE2", "SSE3", "SSSE3", "SSE4_1", "SSE4_2", "AES", "PCLMULQDQ", "FPU", "FPU387", "CMOV"}
OFFERED |= {name.upper() for name in HOST} | _ON_GENERAL
_ARITHMETIC_FLAGS = 0x8D5
_CARRY, _ZERO, _SIGN, _OVERFLOW = 1, 1 << 6, 1 << 7, 1 << 11
_DEFINED_FLAGS = {
    **dict.fromkeys(("tzcnt", "lzcnt"), _CARRY | _ZERO),
    "bextr": _CARRY | _ZERO | _OVERFLOW,
    **dict.fromkeys(("andn", "blsr", "blsmsk", "blsi", "bzhi"), _CARRY | _ZERO | _SIGN | _OVERFLOW),
}
"""What the SDM says of RFLAGS after these; the rest is undefined, and processors differ."""
_VECTORS = {
    getattr(OpCodeOperandKind, name)
    for name in dir(OpCodeOperandKind)
    if "XMM" in name or "YMM" in name or name.startswith("MM_")
}
# Their results are images with pointers, addresses of their own, or what Intel and AMD do not agree on (EMMS and TOP).
_SKIPPED = {
    "MASKMOVQ",
    "MASKMOVDQU",
    "VMASKMOVDQU",
    "FLDENV",
    "FNSTENV",
    "FRSTOR",
    "FNSAVE",
    "FSAVE",
    "FSTENV",
    "FNINIT",
    "EMMS",
}


@dataclass(frozen=True)
class Case:
    """An instruction's bytes, as iced prints it."""

    code: bytes
    text: str
    x87: bool
    vex: bool = False
    flags: int = _ARITHMETIC_FLAGS
    """The arithmetic flags that are defined after it."""

    @property
    def loads_memory(self) -> bool:
        return "[" in self.text


def _case(code: bytes) -> Case | None:
    instruction: Instruction = Decoder(64, code).decode()
    vex = instruction.op_code().encoding == EncodingKind.VEX
    if instruction.is_invalid or (not vex and instruction.op_code().encoding != EncodingKind.LEGACY):
        return None
    features = {_NAMES[feature] for feature in instruction.cpuid_features()}
    if not features <= OFFERED:
        return None
    text = f"{instruction}"
    if text.split()[0].upper() in _SKIPPED or "esp" in text or "rsp" in text:
        return None
    if "[" in text and "[rdi+2C0h]" not in text:  # and no gather
        return None
    kinds = {instruction.op_code().op_kind(index) for index in range(instruction.op_code().op_count)}
    x87 = bool(features & {"FPU", "FPU387"})
    if not x87 and not kinds & _VECTORS and not features & _ON_GENERAL and "vzero" not in text:
        return None
    flags = _DEFINED_FLAGS.get(text.split()[0], _ARITHMETIC_FLAGS)
    return Case(code[: instruction.len], text, x87, vex, flags)


@functools.cache
def cases() -> tuple[Case, ...]:
    """Every SSE, MMX, AVX, BMI and x87 instruction, with register and with memory operands."""
    found: dict[str, Case] = {case.text: case for case in _vex_cases()}
    memory = struct.pack("<I", MEMORY)
    for prefix in _PREFIXES:
        for rex in (b"", b"\x48"):
            for escape in _MAPS:
                for opcode in range(256):
                    for middle in range(8):
                        for tail in (
                            bytes([0xC0 | middle << 3 | 2]),
                            bytes([0xC0 | middle << 3 | middle]),
                            bytes([0x87 | middle << 3]) + memory,
                        ):
                            case = _case(prefix + rex + escape + bytes([opcode]) + tail + b"\0")
                            if case is None or (middle not in (1, 6) and opcode not in (0x71, 0x72, 0x73)):
                                continue
                            found.setdefault(case.text, case)
    for opcode in range(0xD8, 0xE0):
        for second in range(256):
            if second < 0xC0 and second & 0xC7 != 0x87:
                continue
            case = _case(bytes([opcode, second]) + (memory if second < 0xC0 else b"") + b"\0")
            if case is not None:
                found[case.code.hex()] = case
    return tuple(found.values())


def _vex_cases() -> Iterator[Case]:
    """Those with a VEX prefix. A register in the immediate is XMM5 or YMM5."""
    if not AVX:
        return
    memory = struct.pack("<I", MEMORY)
    fields = [
        (number, wide << 7 | long << 2 | prefix, opcode, middle, vvvv)
        for number in (1, 2, 3)
        for wide in (0, 1)
        for long in (0, 1)
        for prefix in range(4)
        for opcode in range(256)
        for middle in (range(8) if number < 3 and opcode in (0x71, 0x72, 0x73, 0xF3) else (1, 6))
        for vvvv in (0, 3)
    ]
    for number, third, opcode, middle, vvvv in fields:
        opening = bytes([0xC4, 0xE0 | number, third | (15 - vvvv) << 3, opcode])
        for tail in (
            bytes([0xC0 | middle << 3 | 2]),
            bytes([0xC0 | middle << 3 | middle]),
            bytes([0x87 | middle << 3]) + memory,
        ):
            case = _case(opening + tail + b"\x50")
            if case is not None:
                yield case


def with_immediate(case: Case, immediate: int) -> bytes:
    """The case's bytes with another immediate operand, if it has one (it is zero in the case)."""
    instruction = Decoder(64, case.code).decode()
    kinds = [instruction.op_code().op_kind(index) for index in range(instruction.op_code().op_count)]
    if OpCodeOperandKind.IMM8 in kinds:
        return case.code[:-1] + bytes([immediate])
    return case.code


# --- states -----------------------------------------------------------------------------------------------------------

_SINGLES = (
    0, 0x80000000, 0x3F800000, 0xBF800000, 0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC12345, 0x7F800001, 0xFFA00000,
    1, 0x80000001, 0x007FFFFF, 0x00800000, 0x7F7FFFFF, 0xFF7FFFFF, 0x4F000000, 0xCF000000, 0x5F000000, 0x3F000000,
    0x3FC00000, 0x40490FDB, 0x34000000, 0x3F7FFFFF
)  # fmt: skip
_DOUBLES = (
    0, 1 << 63, 0x3FF0000000000000, 0xBFF0000000000000, 0x7FF0000000000000, 0xFFF0000000000000, 0x7FF8000000000000,
    0xFFF8000000012345, 0x7FF0000000000001, 0xFFF4000000000000, 1, 0x8000000000000001, 0x000FFFFFFFFFFFFF,
    0x0010000000000000, 0x7FEFFFFFFFFFFFFF, 0x41E0000000000000, 0xC1E0000000000000, 0x43E0000000000000,
    0x3FE0000000000000, 0x3FF8000000000000, 0x400921FB54442D18, 0x36A0000000000000, 0x47EFFFFFE0000000,
    0x3690000000000000, 0x380FFFFFF0000000
)  # fmt: skip
_EXPONENTS = (
    0, 1, 0x3FFE, 0x3FFF, 0x4000, 0x3FBF, 0x403E, 0x403F, 0x7FFE, 0x7FFF, 0x3C00, 0x43FE, 0x3F80, 0x407E, 0x400E,
    0x401E,
)  # fmt: skip
_MANTISSAS = (
    0, 1 << 63, 0xC << 60, (1 << 64) - 1, 1, 1 << 62, 0x8000000000000001,
    0xC90FDAA22168C235, 0x80000000000007FF, 0x8000000000000400, 0xFFFFFFFFFFFFFC00, 0x8000008000000000
)  # fmt: skip


def _extended(chance: random.Random) -> bytes:
    kind = chance.random()
    if kind < 0.15:
        return chance.randbytes(10)
    if kind < 0.5:  # numbers of ordinary size
        return struct.pack(
            "<QH", chance.getrandbits(64) | 1 << 63, chance.randint(0x3FE0, 0x4010) | chance.getrandbits(1) << 15
        )
    mantissa = chance.choice(_MANTISSAS) if chance.random() < 0.7 else chance.getrandbits(64) | 1 << 63
    return struct.pack("<QH", mantissa, chance.choice(_EXPONENTS) | chance.getrandbits(1) << 15)


def _vector(chance: random.Random, length: int = 16) -> bytes:
    kind = chance.random()
    if kind < 0.2:
        return chance.randbytes(length)
    if kind < 0.4:
        return b"".join(struct.pack("<f", chance.uniform(-1000, 1000)) for _ in range(length // 4))
    if kind < 0.55:
        return b"".join(struct.pack("<d", chance.uniform(-(2**40), 2**40)) for _ in range(length // 8))
    if kind < 0.62:
        return bytes(chance.choice(b"abc\0") for _ in range(length))
    if kind < 0.8:
        return b"".join(struct.pack("<I", chance.choice(_SINGLES)) for _ in range(length // 4))
    return b"".join(struct.pack("<Q", chance.choice(_DOUBLES)) for _ in range(length // 8))


def state(chance: random.Random, *, x87: bool, masked: bool = True, full: bool | None = None) -> bytearray:
    """A random state. ``full``: all of the x87 stack is in use (None: by chance)."""
    image = bytearray(STATE)
    control = 0x40 | chance.randrange(4) << 10 | chance.choice((0, 2, 3, 3)) << 8 | 0x3F
    mxcsr = chance.randrange(4) << 13 | 0x1F80 | chance.choice((0, 0, 1 << 15, 1 << 6, 1 << 15 | 1 << 6))
    if chance.random() < 0.3:
        mxcsr |= chance.getrandbits(6)
    if not masked:
        control &= ~chance.getrandbits(6)
        mxcsr &= ~(chance.getrandbits(6) << 7)
    if full is None:
        full = chance.random() < 0.6
    tags = 0xFF if full else chance.choice((0, 0, 0xFC, 0x0F, 0x3E, chance.getrandbits(8)))
    status = chance.randrange(8) << 11 | chance.choice((0, 0, 0x4700, 0x0100))
    if masked and chance.random() < 0.3:
        status |= chance.getrandbits(7)
    struct.pack_into("<HHB", image, CONTROL, control, status if x87 else 0, tags if x87 else 0)
    struct.pack_into("<I", image, MXCSR, mxcsr)
    for index in range(8):
        image[32 + 16 * index : 42 + 16 * index] = _extended(chance)
    for index in range(16):
        image[160 + 16 * index : 176 + 16 * index] = _vector(chance)
    for index in range(16):
        value = chance.choice(
            (0, 1, 5, 16, 17, (1 << 64) - 1, 1 << 31, 1 << 63, chance.getrandbits(64), chance.getrandbits(31))
        )
        struct.pack_into("<Q", image, GENERAL + 8 * index, value)
    struct.pack_into("<Q", image, FLAGS, 0x202 | chance.getrandbits(12) & _ARITHMETIC_FLAGS)
    for index in range(16 if AVX else 0):
        image[HIGH + 16 * index : HIGH + 16 * index + 16] = _vector(chance)
    image[MEMORY : MEMORY + 64] = (
        _extended(chance) + bytes(6) + _vector(chance, 48) if x87 and chance.random() < 0.4 else _vector(chance, 64)
    )
    return image


def result(state: bytes | bytearray, flags: int = _ARITHMETIC_FLAGS) -> dict[str, bytes]:
    """What an instruction may have changed, by name. Not FIP, FDP and FOP: AMD's FXSAVE does not store them."""
    image = bytes(state)
    parts = {
        "control": image[0:2],
        "status": image[2:4],
        "tags": image[4:5],
        "mxcsr": image[24:28],
        "flags": struct.pack("<Q", struct.unpack_from("<Q", image, FLAGS)[0] & ~(_ARITHMETIC_FLAGS & ~flags)),
    }
    parts |= {f"st{n}": image[32 + 16 * n : 42 + 16 * n] for n in range(8)}
    parts |= {f"xmm{n}": image[160 + 16 * n : 176 + 16 * n] for n in range(16)}
    parts |= {f"ymm{n}": image[HIGH + 16 * n : HIGH + 16 * n + 16] for n in range(16)}
    parts |= {_REGISTERS[n]: image[GENERAL + 8 * n : GENERAL + 8 * n + 8] for n in _USED}
    return parts | {"memory": image[MEMORY : MEMORY + 64]}


# --- both processors --------------------------------------------------------------------------------------------------


def program(code: bytes) -> bytes:
    """A function (area in RDI, number of states in RSI) that executes ``code`` on each state."""
    saved = ("rbx", "rbp", "r12", "r13", "r14", "r15")
    before = "\n".join(f"push {name}" for name in saved) + "\n sub rsp, 24\n mov [rsp + 16], rsi\n"
    before += f"start: fxrstor [rdi]\n push qword ptr [rdi + {FLAGS}]\n popfq\n"
    after = ""
    if AVX:
        before += "".join(f"vinsertf128 ymm{n}, ymm{n}, [rdi + {HIGH + 16 * n}], 1\n" for n in range(16))
        after = "".join(f"vextractf128 [rdi + {HIGH + 16 * n}], ymm{n}, 1\n" for n in range(16))
    before += "\n".join(f"mov {_REGISTERS[n]}, [rdi + {GENERAL + 8 * n}]" for n in _USED)
    after += "\n".join(f"mov [rdi + {GENERAL + 8 * n}], {_REGISTERS[n]}" for n in _USED)
    after += f"\n pushfq\n pop qword ptr [rdi + {FLAGS}]\n fxsave [rdi]\n add rdi, {STATE}\n dec qword ptr [rsp + 16]\n"
    start = len(assemble(before[: before.index("start:")]))
    opening, closing = assemble(before), assemble(after)
    back = start - (len(opening) + len(code) + len(closing) + 6)
    end = (
        ("vzeroupper\n" if AVX else "")
        + "fninit\n cld\n mov dword ptr [rsp], 0x1f80\n ldmxcsr [rsp]\n add rsp, 24\n"
        + "\n".join(f"pop {name}" for name in reversed(saved))
    )
    return opening + code + closing + b"\x0f\x85" + struct.pack("<i", back) + assemble(end + "\n ret\n")


@functools.cache
def _memory(length: int) -> int:
    area = mmap.mmap(-1, length, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    _KEPT.append(area)
    return ctypes.addressof(ctypes.c_char.from_buffer(area))


_KEPT: list[mmap.mmap] = []

_ORACLE = """
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <ucontext.h>
static sigjmp_buf back;
static unsigned flags;
static void trap(int number, siginfo_t *info, void *context)
{
    flags = ((ucontext_t *)context)->uc_mcontext.fpregs->mxcsr;
    siglongjmp(back, 1);
}
/* -1, or MXCSR as it was when the program was stopped by a floating-point exception */
long oracle(void (*program)(void *, long), void *area, long count)
{
    struct sigaction action = { .sa_sigaction = trap, .sa_flags = SA_SIGINFO }, old;
    long result = -1;
    sigaction(SIGFPE, &action, &old);
    if (sigsetjmp(back, 1)) {
        result = flags;
        __asm__ volatile("fninit; ldmxcsr %0" : : "m"((unsigned){0x1f80}));
    } else {
        program(area, count);
    }
    sigaction(SIGFPE, &old, 0);
    return result;
}
"""


@functools.cache
def _oracle() -> ctypes._NamedFuncPointer:
    with tempfile.TemporaryDirectory() as scratch:
        source, library = Path(scratch) / "oracle.c", Path(scratch) / "oracle.so"
        source.write_text(_ORACLE)
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, source], check=True)
        function = ctypes.CDLL(str(library)).oracle
    function.restype = ctypes.c_long
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_long]
    return function


def on_host(code: bytes, states: Sequence[bytes | bytearray]) -> tuple[list[bytes], int]:
    """The states after ``code``, executed by this processor, and -1 or MXCSR where a SIMD exception ended it."""
    address = _memory(1 << 20)
    text = program(code)
    ctypes.memmove(address, text, len(text))
    area = address + 4096
    ctypes.memmove(area, b"".join(states), STATE * len(states))
    stopped = _oracle()(address, area, len(states))
    data = ctypes.string_at(area, STATE * len(states))
    return [data[at : at + STATE] for at in range(0, len(data), STATE)], stopped


class Machine:
    """A bare guest that runs programs."""

    def __init__(self) -> None:
        self.guest = Guest()
        self.guest.context.exception_bitmap = 0xFFFFFFFF & ~(1 << 16)
        self.guest.context.cr0 |= 1 << 5
        if AVX:
            self.guest.context.cr4 |= 1 << 18
            self.guest.context.xcr0 = 7
        self.guest.memory.write(RETURN, b"\xf4")
        self.guest.handler(16, "hlt", 0x4E0000)

    def run(self, code: bytes, states: Sequence[bytes | bytearray]) -> tuple[list[bytes], int | None]:
        """The states after ``code``, and the vector of the exception that ended it."""
        guest, context = self.guest, self.guest.context
        guest.memory.write(CODE, program(code))
        guest.memory.write(AREA, b"".join(states))
        guest.put64(0x90000, RETURN)
        context.gpr[4], context.gpr[7], context.gpr[6] = 0x90000, AREA, len(states)
        context.rip, context.rflags = CODE, 2
        context.cr0 = 0x80000031
        reason = context.run()
        vector = context.interruption_info & 0xFF if reason == ExitReason.EXCEPTION_NMI else None
        if reason == ExitReason.HLT and context.rip != RETURN:
            vector = 16
        data = bytes(guest.memory.raw[AREA : AREA + STATE * len(states)])
        return [data[at : at + STATE] for at in range(0, len(data), STATE)], vector


def differences(machine: Machine, case: Case, code: bytes, states: Sequence[bytes | bytearray]) -> Iterator[str]:
    """Where guest and host are not of one mind about a case."""
    theirs, stopped = on_host(code, states)
    ours, vector = machine.run(code, states)
    if stopped != -1 or vector is not None:
        yield f"{code.hex()} {case.text}: host {stopped:#x}, guest vector {vector}"
        return
    for before, host, guest in zip(states, theirs, ours, strict=True):
        right, wrong = result(host, case.flags), result(guest, case.flags)
        names = [name for name in right if right[name] != wrong[name]]
        if names:
            parts = result(before)
            detail = "; ".join(
                f"{n} {parts[n][::-1].hex()}: host {right[n][::-1].hex()}, guest {wrong[n][::-1].hex()}" for n in names
            )
            control, mxcsr = parts["control"][::-1].hex(), parts["mxcsr"][::-1].hex()
            yield f"{code.hex()} {case.text} cw {control} mxcsr {mxcsr}: {detail}"


def unmasked(seed: int, states: int) -> tuple[int, list[str]]:
    """The same for instructions that may raise #XM: the same ones do, and leave the same flags and nothing else."""
    chance = random.Random(seed)
    machine = Machine()
    count, found = 0, []
    for case in cases():
        if case.x87 or "mm" not in case.text:
            continue
        for _ in range(states):
            before = state(chance, x87=False, masked=False)
            code = with_immediate(case, chance.getrandbits(8))
            (theirs,), stopped = on_host(code, [before])
            (ours,), vector = machine.run(code, [before])
            count += 1
            if stopped == -1:
                same = vector is None and result(theirs) == result(ours)
            else:
                image = machine.guest.context.get_fpu()
                same = (
                    vector == 19
                    and struct.unpack_from("<I", image, MXCSR)[0] == stopped
                    and image[160:416] == before[160:416]
                    and (not AVX or machine.guest.context.get_ymm_high() == before[HIGH:])
                )
            if not same:
                mxcsr = before[MXCSR : MXCSR + 2][::-1].hex()
                found.append(f"{code.hex()} {case.text} mxcsr {mxcsr}: host {stopped:#x}, guest {vector}")
    return count, found


def unmasked_x87(seed: int, states: int) -> tuple[int, list[str]]:
    """x87 instructions whose exceptions are not masked: what they leave before the next one would raise #MF."""
    chance = random.Random(seed)
    machine = Machine()
    count, found = 0, []
    for case in cases():
        if not case.x87 or case.text.startswith("fldcw"):
            continue
        inputs = [state(chance, x87=True, masked=False) for _ in range(states)]
        for image in inputs:
            struct.pack_into("<I", image, MXCSR, 0x1F80)
        count += len(inputs)
        found += list(differences(machine, case, case.code, inputs))
    return count, found


def sweep(seed: int, states: int, *, x87: bool | None = None, immediates: int = 2) -> tuple[int, list[str]]:
    """Compare every instruction on this many random states each. Returns their number and what differs."""
    chance = random.Random(seed)
    machine = Machine()
    count, found = 0, []
    for case in cases():
        if x87 is not None and case.x87 != x87:
            continue
        mmx = "mm" in case.text.replace("xmm", "")
        variants = {with_immediate(case, chance.getrandbits(8)) for _ in range(immediates)}
        for code in sorted(variants):
            inputs = [state(chance, x87=case.x87 or mmx) for _ in range(states)]
            count += len(inputs)
            found += list(differences(machine, case, code, inputs))[:3]
    return count, found


@dataclass
class Result:
    """What a campaign came to."""

    comparisons: int
    failures: list[str]

    def lines(self) -> list[str]:
        return [f"{self.comparisons:,} comparisons of {len(cases()):,} instructions", *self.failures[:50]]


def campaign(number: int, seed: int, progress: Callable[[int], None] = lambda done: None) -> Result:
    """At least so many comparisons; the same seed gives the same ones."""
    result = Result(0, [])
    while result.comparisons < number:
        count, found = sweep(seed, min(16, 1 + number // len(cases())))
        more, also = unmasked(seed, 1)
        still_more, too = unmasked_x87(seed, 8)
        result.comparisons += count + more + still_more
        result.failures += found + also + too
        seed += 1
        progress(result.comparisons)
    return result
