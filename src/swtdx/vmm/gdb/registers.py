# SPDX-License-Identifier: GPL-2.0-or-later
"""The registers that gdb is told of: i386:x86-64 with the system registers, named and ordered as QEMU does it.

A register's number is its place in the table of a machine.  gdb itself knows all features but ``system`` (gdb manual,
G.5.5), which is shown as it is described; it joins ``xmm0`` and ``ymm0h`` to ``ymm0``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

_ORG = "org.gnu.gdb.i386"
CORE, SSE, SEGMENTS, SYSTEM = f"{_ORG}.core", f"{_ORG}.sse", f"{_ORG}.segments", "org.swtdx.i386.system"
AVX, PKEYS = f"{_ORG}.avx", f"{_ORG}.pkeys"
EXTENSIONS = (AVX, PKEYS)
"""Features that only some machines have."""

GENERAL = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16)))
SELECTORS = ("cs", "ss", "ds", "es", "fs", "gs")
CONTROL = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "xcr0")
X87_STACK = tuple(f"st{n}" for n in range(8))
X87_CONTROL = ("fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop")
XMM = tuple(f"xmm{n}" for n in range(16))
YMM_HIGH = tuple(f"ymm{n}h" for n in range(16))

_FLAGS: dict[str, tuple[int, tuple[tuple[str, int], ...]]] = {
    "i386_eflags": (4, (
        ("CF", 0), ("", 1), ("PF", 2), ("AF", 4), ("ZF", 6), ("SF", 7), ("TF", 8), ("IF", 9), ("DF", 10), ("OF", 11),
        ("NT", 14), ("RF", 16), ("VM", 17), ("AC", 18), ("VIF", 19), ("VIP", 20), ("ID", 21),
    )),
    "i386_cr0": (8, (
        ("PE", 0), ("MP", 1), ("EM", 2), ("TS", 3), ("ET", 4), ("NE", 5), ("WP", 16), ("AM", 18), ("NW", 29),
        ("CD", 30), ("PG", 31),
    )),
    "i386_cr4": (8, (
        ("VME", 0), ("PVI", 1), ("TSD", 2), ("DE", 3), ("PSE", 4), ("PAE", 5), ("MCE", 6), ("PGE", 7), ("PCE", 8),
        ("OSFXSR", 9), ("OSXMMEXCPT", 10), ("UMIP", 11), ("LA57", 12), ("VMXE", 13), ("SMXE", 14), ("FSGSBASE", 16),
        ("PCIDE", 17), ("OSXSAVE", 18), ("KL", 19), ("SMEP", 20), ("SMAP", 21), ("PKE", 22), ("CET", 23), ("PKS", 24),
    )),
    "i386_efer": (8, (("SCE", 0), ("LME", 8), ("LMA", 10), ("NXE", 11), ("SVME", 12), ("FFXSR", 14))),
    "i386_mxcsr": (4, (
        ("IE", 0), ("DE", 1), ("ZE", 2), ("OE", 3), ("UE", 4), ("PE", 5), ("DAZ", 6), ("IM", 7), ("DM", 8), ("ZM", 9),
        ("OM", 10), ("UM", 11), ("PM", 12), ("FZ", 15),
    )),
    "i386_xcr0": (8, (("X87", 0), ("SSE", 1), ("AVX", 2), ("PKRU", 9))),
}  # fmt: skip
_FLAGS_OF = {CORE: ("i386_eflags",), SSE: ("i386_mxcsr",), SYSTEM: ("i386_cr0", "i386_cr4", "i386_efer", "i386_xcr0")}
_VECTORS = (  # id, element, count; the members of vec128, named as gdb names them
    ("v4f", "ieee_single", 4, "v4_float"), ("v2d", "ieee_double", 2, "v2_double"), ("v16i8", "int8", 16, "v16_int8"),
    ("v8i16", "int16", 8, "v8_int16"), ("v4i32", "int32", 4, "v4_int32"), ("v2i64", "int64", 2, "v2_int64"),
)  # fmt: skip


@dataclass(frozen=True)
class Register:
    """One register as gdb knows it."""

    name: str
    bits: int
    type: str
    feature: str

    @property
    def size(self) -> int:
        """Bytes in a packet."""
        return self.bits // 8


REGISTERS: tuple[Register, ...] = (
    *(Register(name, 64, "data_ptr" if name in ("rbp", "rsp") else "int64", CORE) for name in GENERAL),
    Register("rip", 64, "code_ptr", CORE),
    Register("eflags", 32, "i386_eflags", CORE),
    *(Register(name, 32, "int32", CORE) for name in SELECTORS),
    *(Register(name, 80, "i387_ext", CORE) for name in X87_STACK),
    *(Register(name, 32, "int", CORE) for name in X87_CONTROL),
    *(Register(name, 128, "vec128", SSE) for name in XMM),
    Register("mxcsr", 32, "i386_mxcsr", SSE),
    Register("fs_base", 64, "int64", SEGMENTS),
    Register("gs_base", 64, "int64", SEGMENTS),
    Register("k_gs_base", 64, "int64", SYSTEM),
    *(Register(name, 64, f"i386_{name}" if f"i386_{name}" in _FLAGS else "int64", SYSTEM) for name in CONTROL),
    *(Register(name, 128, "uint128", AVX) for name in YMM_HIGH),
    Register("pkru", 32, "uint32", PKEYS),
)
RIP = next(number for number, register in enumerate(REGISTERS) if register.name == "rip")


@cache
def registers_with(extensions: frozenset[str]) -> tuple[Register, ...]:
    """Those of a machine with some of `EXTENSIONS`."""
    return tuple(each for each in REGISTERS if each.feature not in EXTENSIONS or each.feature in extensions)


@cache
def target_xml(extensions: frozenset[str]) -> bytes:
    """The target description of a machine with some of `EXTENSIONS`."""
    lines = ['<?xml version="1.0"?>', '<!DOCTYPE target SYSTEM "gdb-target.dtd">', "<target>"]
    lines.append("  <architecture>i386:x86-64</architecture>")
    for feature in (CORE, SSE, SEGMENTS, SYSTEM, *(each for each in EXTENSIONS if each in extensions)):
        lines.append(f'  <feature name="{feature}">')
        if feature == SSE:
            lines += [f'    <vector id="{name}" type="{kind}" count="{count}"/>' for name, kind, count, _ in _VECTORS]
            members = [f'<field name="{member}" type="{name}"/>' for name, _, _, member in _VECTORS]
            members.append('<field name="uint128" type="uint128"/>')
            lines.append(f'    <union id="vec128">{"".join(members)}</union>')
        for name in _FLAGS_OF.get(feature, ()):
            size, fields = _FLAGS[name]
            members = [f'<field name="{flag}" start="{bit}" end="{bit}"/>' for flag, bit in fields]
            lines.append(f'    <flags id="{name}" size="{size}">{"".join(members)}</flags>')
        lines += [
            f'    <reg name="{register.name}" bitsize="{register.bits}" type="{register.type}"/>'
            for register in REGISTERS
            if register.feature == feature
        ]
        lines.append("  </feature>")
    lines.append("</target>")
    return "\n".join(lines).encode()


def full_tag_word(abridged: int, status: int, stack: tuple[int, ...]) -> int:
    """FXSAVE's one bit per register made FSAVE's two (SDM volume 1, table 10-2); ``stack``: ST0 up to ST7."""
    top = status >> 11 & 7
    word = 0
    for number in range(8):
        if not abridged >> number & 1:
            tag = 3  # empty
        else:
            value = stack[(number - top) & 7]
            exponent, mantissa = value >> 64 & 0x7FFF, value & (1 << 64) - 1
            if exponent == 0x7FFF or (exponent and not mantissa >> 63):
                tag = 2  # special
            elif exponent:
                tag = 0
            else:
                tag = 2 if mantissa else 1  # denormal, or zero
        word |= tag << 2 * number
    return word
