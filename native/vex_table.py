# SPDX-License-Identifier: GPL-2.0-or-later
"""Write ``native/engine/swtdx_vex_table.h``: the VEX instructions that the host's processor executes for a guest.

One row for each form of an instruction, as iced-x86 tells them apart: where its operands are, how much memory it
accesses, whether that must be aligned, whether MXCSR matters, and which feature it needs. The instructions on general
registers (BMI1, BMI2) are not here: TCG executes them. ``python native/vex_table.py`` rewrites the file; a test
compares the two.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from host_table import CODE_NAMES, FEATURE_NAMES, MEMORY_NAMES, names
from iced_x86 import (
    Decoder,
    EncodingKind,
    Instruction,
    InstructionInfoFactory,
    MemorySizeExt,
    OpAccess,
    OpCodeOperandKind,
)

TARGET = Path(__file__).resolve().parent / "engine" / "swtdx_vex_table.h"
FEATURES = ("AVX", "AVX2", "FMA", "F16C", "AES", "PCLMULQDQ", "VAES", "VPCLMULQDQ")
KIND_NAMES = names(OpCodeOperandKind)
ACCESS_NAMES = names(OpAccess)
BITWISE = ("AND", "OR", "XOR", "UNPCK", "SHUF", "MOV", "BLEND", "INSERT", "EXTRACT", "BROADCAST", "PERM", "MASKMOV",
           "GATHER", "TEST")  # fmt: skip
# What its operands do not tell: results in RFLAGS, RCX or XMM0, and what TCG's side does by itself.
SPECIAL = {
    **dict.fromkeys(("VUCOMISS", "VUCOMISD", "VCOMISS", "VCOMISD", "VPTEST", "VTESTPS", "VTESTPD"), "FLAGS"),
    **dict.fromkeys(("VPCMPESTRM", "VPCMPISTRM"), "MASK"),
    **dict.fromkeys(("VPCMPESTRI", "VPCMPISTRI"), "INDEX"),
    **dict.fromkeys(("VMOVUPS", "VMOVUPD", "VMOVAPS", "VMOVAPD", "VMOVDQA", "VMOVDQU", "VLDDQU", "VMOVNTDQA"), "MOVE"),
    **dict.fromkeys(("VMOVNTPS", "VMOVNTPD", "VMOVNTDQ"), "MOVE"),
    **dict.fromkeys(("VMASKMOVPS", "VMASKMOVPD", "VPMASKMOVD", "VPMASKMOVQ"), "MASKED"),
    "VMASKMOVDQU": "MASKED_BYTES",
    "VZEROUPPER": "ZERO_UPPER",
    "VZEROALL": "ZERO_ALL",
    "VLDMXCSR": "LOAD_MXCSR",
    "VSTMXCSR": "STORE_MXCSR",
}
ALIGNED = ("VMOVAPS", "VMOVAPD", "VMOVDQA", "VMOVNTDQA", "VMOVNTPS", "VMOVNTPD", "VMOVNTDQ")


@dataclass(frozen=True, order=True)
class Row:
    map: int
    opcode: int
    prefix: int
    group: int
    form: str
    memory: bool
    register: bool
    bytes: int
    flags: tuple[str, ...]
    feature: str
    name: str


def decode(number: int, opcode: int, prefix: int, wide: int, long: int, modrm: int, vvvv: int) -> Instruction:
    """The instruction with this ModRM, an SIB byte that names register 4 twice, and zeros behind."""
    payload = bytes([0xC4, 0xE0 | number, wide << 7 | (15 - vvvv) << 3 | long << 2 | prefix, opcode, modrm])
    return Decoder(64, payload + bytes([0x25] + [0] * 8 if modrm & 7 == 4 and modrm < 0xC0 else 9)).decode()


def place(instruction: Instruction) -> str | None:
    """The form of an instruction's operands, or None where it is none of ours."""
    code = instruction.op_code()
    kinds = [KIND_NAMES[code.op_kind(index)] for index in range(code.op_count)]
    if not kinds:
        return ""
    if any(kind.startswith("MEM_VSIB") for kind in kinds):
        return "GATHER"
    if any(kind.partition("_")[0] not in ("XMM", "YMM", "R32", "R64", "MEM", "IMM8", "SEG") for kind in kinds):
        return None
    first, last = kinds[0], [kind for kind in kinds if kind != "IMM8"][-1]
    if first.endswith("VVVV"):
        return "SHIFT" if first[0] in "XY" else None
    if first == "MEM" or first.endswith("_OR_MEM") or (first.endswith("_RM") and len(kinds) > 2):
        return "STORE_GENERAL" if first[0] == "R" else "STORE"
    if first[0] == "R":
        return "TO_GENERAL" if last[0] in "XY" else None
    return "FROM_GENERAL" if last[0] == "R" else "OPERATION"


def memory_forms(instruction: Instruction) -> tuple[bool, bool]:
    """Whether ModRM may name memory, and a register."""
    code = instruction.op_code()
    kinds = [KIND_NAMES[code.op_kind(index)] for index in range(code.op_count)]
    memory = any(kind.endswith("OR_MEM") or kind.startswith("MEM") for kind in kinds)
    return memory, any(kind.endswith(("OR_MEM", "_RM")) for kind in kinds) or not kinds


def row(number: int, instruction: Instruction, group: int) -> Row | None:
    code = instruction.op_code()
    name = CODE_NAMES[instruction.code].split("_")[1]
    features = {FEATURE_NAMES[feature] for feature in instruction.cpuid_features()}
    form = place(instruction)
    if form is None or not features <= set(FEATURES):
        return None
    kinds = [KIND_NAMES[code.op_kind(index)] for index in range(code.op_count)]
    form = SPECIAL.get(name.removesuffix("64"), form)
    element = MemorySizeExt.element_type(instruction.memory_size)
    floats = "FLOAT" in MEMORY_NAMES[element] and not any(name[1:].startswith(word) for word in BITWISE)
    access = InstructionInfoFactory().info(instruction).op_access(0) if kinds else OpAccess.NONE
    flags = [
        flag
        for flag, holds in (
            ("FLOAT", floats or name.startswith(("VCVT", "VUCOMI", "VCOMI"))),
            ("ALIGNED", name in ALIGNED),
            ("IMMEDIATE", "IMM8" in kinds),
            ("VVVV", any(kind.endswith("VVVV") for kind in kinds)),
            ("IS4", any(kind.endswith("IS4") for kind in kinds)),
            ("READS", access in (OpAccess.READ_WRITE, OpAccess.READ_COND_WRITE, OpAccess.COND_WRITE)),
            ("STORES", form in ("MOVE", "MASKED") and (kinds[0] == "MEM" or kinds[0].endswith("OR_MEM"))),
            ("LONG", bool(code.l)),
            ("SHORT", not code.l and not code.is_lig),
            ("WIDE", code.w == 1 and not code.is_wig),
            ("NARROW", code.w == 0 and not code.is_wig),
        )
        if holds
    ]
    memory, register = memory_forms(instruction)
    size = MemorySizeExt.size(instruction.memory_size)
    feature = max(features, key=FEATURES.index)
    return Row(number - 1, 0, 0, group, form, memory, register, size, tuple(flags), feature, name.lower())


def rows() -> Iterator[Row]:
    """All forms, each once."""
    seen = set()
    for number in (1, 2, 3):
        for opcode in range(256):
            grouped = number == 1 and opcode in (0x71, 0x72, 0x73, 0xAE)
            for prefix in range(4):
                for wide, long, modrm, vvvv in variants():
                    instruction = decode(number, opcode, prefix, wide, long, modrm, vvvv)
                    if instruction.is_invalid or instruction.op_code().encoding != EncodingKind.VEX:
                        continue
                    if instruction.code in seen:
                        continue
                    found = row(number, instruction, modrm >> 3 & 7 if grouped else 8)
                    if found:
                        seen.add(instruction.code)
                        yield Row(**{**vars(found), "opcode": opcode, "prefix": prefix, "bytes": found.bytes})


def variants() -> Iterator[tuple[int, int, int, int]]:
    """VEX.W, VEX.L, ModRM and VEX.vvvv: memory before registers; a gather wants three registers that differ."""
    for wide in (0, 1):
        for long in (0, 1):
            for modrm in (*range(0, 0x40, 8), *range(0xC0, 0x100, 8)):
                yield wide, long, modrm, 0
            yield wide, long, 0x0C, 2


def table() -> str:
    """The header's text."""
    lines = [
        "/* SPDX-License-Identifier: GPL-2.0-or-later */",
        "/* By native/vex_table.py: map, opcode, prefix, /digit or 8, form, memory, register, bytes, flags, feature */",
    ]
    for found in rows():
        flags = " | ".join(f"VEX_{flag}" for flag in found.flags) or "0"
        lines.append(
            f"    {{ {found.map}, {found.opcode:#04x}, {found.prefix}, {found.group}, VEX_{found.form}, "
            f"{int(found.memory)}, {int(found.register)}, {found.bytes}, {flags}, VEX_{found.feature} }}, "
            f"/* {found.name} */"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    TARGET.write_text(table())
