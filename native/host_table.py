# SPDX-License-Identifier: GPL-2.0-or-later
"""Write ``native/engine/swtdx_host_table.h``: the SSE instructions that the host's processor executes for a guest.

One row for each opcode and mandatory prefix: what its operands are, how much memory it reads, whether that must be
aligned, whether MXCSR matters, and which feature it needs. All of it comes from iced-x86, but for the few facts that it
does not know. ``python native/host_table.py`` rewrites the file; a test compares the two.
"""

from __future__ import annotations

from pathlib import Path

from iced_x86 import Code, CpuidFeature, Decoder, EncodingKind, Instruction, MemorySizeExt, OpCodeOperandKind

TARGET = Path(__file__).resolve().parent / "engine" / "swtdx_host_table.h"
MAPS = (b"\x0f", b"\x0f\x38", b"\x0f\x3a")
PREFIXES = (b"", b"\x66", b"\xf3", b"\xf2")
FEATURES = ("SSE", "SSE2", "SSE3", "SSSE3", "SSE4_1", "SSE4_2", "AES", "PCLMULQDQ", "SHA")

Kind = OpCodeOperandKind
GENERAL = (Kind.R32_OR_MEM, Kind.R64_OR_MEM)
FORMS = {
    (Kind.XMM_REG, Kind.XMM_OR_MEM): "VECTOR",
    (Kind.XMM_REG, Kind.XMM_OR_MEM, Kind.IMM8): "VECTOR",
    (Kind.MM_REG, Kind.MM_OR_MEM): "MMX",
    (Kind.MM_REG, Kind.MM_OR_MEM, Kind.IMM8): "MMX",
    (Kind.XMM_REG, Kind.MM_OR_MEM): "FROM_MMX",
    (Kind.MM_REG, Kind.XMM_OR_MEM): "TO_MMX",
    (Kind.XMM_REG, Kind.R32_OR_MEM): "FROM_GENERAL",
    (Kind.R32_REG, Kind.XMM_OR_MEM): "TO_GENERAL",
}
# What iced does not say in its operands: results in RFLAGS or ECX, a third operand in XMM0.
SPECIAL = {
    **dict.fromkeys(("UCOMISS", "UCOMISD", "COMISS", "COMISD", "PTEST"), "FLAGS"),
    **dict.fromkeys(("PBLENDVB", "BLENDVPS", "BLENDVPD", "SHA256RNDS2"), "XMM0"),
    **dict.fromkeys(("PCMPESTRM", "PCMPISTRM"), "MASK"),
    **dict.fromkeys(("PCMPESTRI", "PCMPISTRI"), "INDEX"),
}
# Copies, which the translator does inline, and transfers from general registers that are no conversions.
COPIES = ("MOVUPS", "MOVUPD", "MOVSS", "MOVSD", "MOVAPS", "MOVAPD", "MOVDQA", "MOVDQU", "MOVQ", "MOVD")
# The single-precision and double-precision ones among these move or combine bits only.
BITWISE = ("AND", "OR", "XOR", "UNPCK", "SHUF", "MOV", "BLEND", "INSERT", "EXTRACT")
UNALIGNED = ("LDDQU", "PCMPESTRM", "PCMPESTRI", "PCMPISTRM", "PCMPISTRI")


def names(enumeration: object) -> dict[int, str]:
    return {value: name for name, value in vars(enumeration).items() if isinstance(value, int)}


FEATURE_NAMES, CODE_NAMES = names(CpuidFeature), names(Code)


def decode(number: int, opcode: int, prefix: bytes) -> Instruction:
    """The instruction with a memory operand and all else zero."""
    return Decoder(64, prefix + MAPS[number] + bytes([opcode, 0x08]) + bytes(4)).decode()


def row(number: int, opcode: int, prefix: bytes) -> str | None:
    """The table's row for an opcode, or None where the translator executes it or nothing does."""
    instruction = decode(number, opcode, prefix)
    code = instruction.op_code()
    if instruction.is_invalid or code.encoding != EncodingKind.LEGACY or (not number and opcode in (0x38, 0x3A)):
        return None
    name = CODE_NAMES[instruction.code].partition("_")[0]
    features = {FEATURE_NAMES[feature] for feature in instruction.cpuid_features()}
    form = FORMS.get(tuple(code.op_kind(index) for index in range(code.op_count)))
    if form is None or name in COPIES or not features <= set(FEATURES) or not any(b == prefix[:1] for b in PREFIXES):
        return None
    if form == "MMX" and (not number or prefix):
        return None  # TCG computes the older ones
    form = SPECIAL.get(name, form)
    element = MemorySizeExt.element_type(instruction.memory_size)
    floats = "FLOAT" in MEMORY_NAMES[element] and not any(name.startswith(word) for word in BITWISE)
    flags = ["FLOAT"] if floats or name.startswith("CVT") else []
    size = MemorySizeExt.size(instruction.memory_size)
    if size == 16 and name not in UNALIGNED:
        flags.append("ALIGNED")
    if code.op_count == 3 and code.op_kind(2) == Kind.IMM8:
        flags.append("IMMEDIATE")
    joined = " | ".join(f"HOST_{flag}" for flag in flags) or "0"
    feature = max(features, key=FEATURES.index)
    index = PREFIXES.index(prefix)
    fields = f"{number}, {opcode:#04x}, {index}, HOST_{form}, {size}, {joined}, HOST_{feature}"
    return f"    {{ {fields} }}, /* {name.lower()} */"


def names_of_memory() -> dict[int, str]:
    from iced_x86 import MemorySize

    return names(MemorySize)


MEMORY_NAMES = names_of_memory()


def table() -> str:
    """The header's text."""
    rows = [
        text
        for number in range(len(MAPS))
        for opcode in range(256)
        for prefix in PREFIXES
        if (text := row(number, opcode, prefix))
    ]
    return "\n".join(
        [
            "/* SPDX-License-Identifier: GPL-2.0-or-later */",
            "/* By native/host_table.py: map, opcode, prefix (none, 66, F3, F2), form, bytes, flags, feature */",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    TARGET.write_text(table())
