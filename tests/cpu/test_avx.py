# SPDX-License-Identifier: GPL-2.0-or-later
"""AVX and AVX2 beside what tests/cpu/test_instructions.py compares with the host: masks, gathers, faults, XSAVE."""

from __future__ import annotations

import importlib
import struct
from pathlib import Path

import pytest

from swtdx.cpu import cpuid
from swtdx.cpu.platform import HOST_FEATURES, Platform, host_features
from swtdx.cpu.processor import Processor
from swtdx.cpu.vmx import ExitReason
from testing.fuzzing import arithmetic
from tests.cpu.guest import PAGE_TABLES, Guest

UD, NM, GP, PF = 6, 7, 13, 14
RAX, RCX = 0, 1
TS, OSXSAVE = 1 << 3, 1 << 18
DATA = 0x30_0000
PAGE = 0x40_0000
"""The page behind it is not present."""
COMPACTED = 1 << 63

pytestmark = pytest.mark.skipif("avx2" not in host_features(), reason="the processor here has no AVX2")


def avx_guest(source: str, *, xcr0: int = 7) -> Guest:
    guest = Guest(source + "\n hlt")
    guest.context.cr4 |= OSXSAVE
    guest.context.xcr0 = xcr0
    guest.context.exception_bitmap = 0xFFFFFFFF
    guest.put64(PAGE_TABLES + 0x2000 + 8 * 2, 0x70_0003)  # 4 KiB pages from 0x400000 on
    guest.put64(0x70_0000, PAGE | 3)
    return guest


def outcome(guest: Guest) -> int | None:
    """The vector of the exception that ended it; None: it ran to its HLT."""
    reason = guest.run()
    return guest.context.interruption_info & 0xFF if reason == ExitReason.EXCEPTION_NMI else None


def ymm(guest: Guest, index: int) -> bytes:
    low, high = guest.context.get_fpu(), guest.context.get_ymm_high()
    return low[160 + 16 * index : 176 + 16 * index] + high[16 * index : 16 * index + 16]


def set_ymm(guest: Guest, index: int, value: bytes) -> None:
    low, high = bytearray(guest.context.get_fpu()), bytearray(guest.context.get_ymm_high())
    low[160 + 16 * index : 176 + 16 * index] = value[:16]
    high[16 * index : 16 * index + 16] = value[16:]
    guest.context.set_fpu(bytes(low))
    guest.context.set_ymm_high(bytes(high))


def test_the_table_of_instructions_is_what_its_generator_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "native"))
    module = importlib.import_module("vex_table")
    assert module.table() == module.TARGET.read_text()


def test_all_instructions_were_compared_with_the_host() -> None:
    names = {case.text.split()[0] for case in arithmetic.cases() if case.vex}
    table = Path(__file__).resolve().parents[2] / "native/engine/swtdx_vex_table.h"
    rows = {
        line.split("/* ")[1].removesuffix(" */") for line in table.read_text().splitlines() if line.startswith("  ")
    }
    missing = {name.removesuffix("64") for name in rows} - names
    assert missing == {
        "vmaskmovdqu", "vldmxcsr", "vstmxcsr",
        *(f"v{kind}gather{index}{element}" for kind, elements in (("p", "dq"), ("", ("ps", "pd")))
          for index in "dq" for element in elements),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("source", "vector"),
    [
        ("vmovaps ymm0, [rsi + 16]", GP),
        ("vmovdqa [rsi + 16], ymm0", GP),
        ("vmovaps xmm0, [rsi + 8]", GP),
        ("vmovntdq [rsi + 16], ymm0", GP),
        ("vmovntdqa ymm0, [rsi + 16]", GP),
        ("vmovaps ymm0, [rsi + 32]", None),
        ("vmovups ymm0, [rsi + 1]", None),
        ("vaddps ymm0, ymm1, [rsi + 1]", None),
        ("vpshufb xmm0, xmm1, [rsi + 1]", None),
    ],
)
def test_only_moves_of_aligned_memory_demand_an_alignment(source: str, vector: int | None) -> None:
    assert outcome(avx_guest(f"mov esi, {DATA:#x}\n {source}")) == vector


@pytest.mark.parametrize("source", ["vaddps ymm0, ymm1, ymm2", "vzeroupper", "vmovd eax, xmm0", "vmovdqu ymm0, [rsi]"])
def test_control_registers_take_avx_away(source: str) -> None:
    source = f"mov esi, {DATA:#x}\n {source}"
    for cr0, cr4, xcr0, vector in (
        (0, OSXSAVE, 7, None),
        (TS, OSXSAVE, 7, NM),
        (TS, OSXSAVE, 3, UD),
        (0, 0, 7, UD),
        (0, OSXSAVE, 3, UD),
        (1 << 2, OSXSAVE, 7, None),  # CR0.EM does not count
    ):
        guest = avx_guest(source, xcr0=xcr0)
        guest.context.cr0 |= cr0
        guest.context.cr4 = guest.context.cr4 & ~OSXSAVE | cr4
        assert outcome(guest) == vector, (cr0, cr4, xcr0)


@pytest.mark.parametrize(
    "source", ["vmovups [rdi], ymm1", "vextracti128 [rdi + 16], ymm1, 0", "vmovdqu [rdi + 24], xmm1"]
)
def test_a_store_over_two_pages_writes_all_or_nothing(source: str) -> None:
    guest = avx_guest(f"mov edi, {PAGE + 0x1000 - 31:#x}\n {source}")
    guest.memory.write(PAGE + 0xF00, b"\xaa" * 0x100)
    set_ymm(guest, 1, bytes(range(32)))
    assert outcome(guest) == PF
    assert bytes(guest.memory.raw[PAGE + 0xF00 : PAGE + 0x1000]) == b"\xaa" * 0x100


def test_a_load_that_faults_leaves_its_register() -> None:
    guest = avx_guest(f"mov esi, {PAGE + 0x1000 - 16:#x}\n vmovups ymm1, [rsi]")
    set_ymm(guest, 1, bytes(range(32)))
    assert outcome(guest) == PF
    assert ymm(guest, 1) == bytes(range(32))


def test_a_conversion_that_cannot_be_stored_leaves_mxcsr() -> None:
    guest = avx_guest(f"mov edi, {PAGE + 0x1000:#x}\n vcvtps2ph [rdi], xmm1, 0")
    set_ymm(guest, 1, struct.pack("<8f", *[1.0000001] * 8))
    assert outcome(guest) == PF
    assert struct.unpack_from("<I", guest.context.get_fpu(), 24)[0] == 0x1F80


@pytest.mark.parametrize(("load", "store"), [("vmaskmovps", "vmaskmovps"), ("vpmaskmovd", "vpmaskmovd")])
def test_elements_that_a_mask_leaves_out_are_not_touched(load: str, store: str) -> None:
    """The first four are in the page, the others are not, and the mask has only the second and the third."""
    start = PAGE + 0x1000 - 16
    mask = struct.pack("<8I", 0, 0x80000000, 0xFFFFFFFF, 0x7FFFFFFF, 0, 0, 0, 0)
    guest = avx_guest(f"mov esi, {start:#x}\n {load} ymm1, ymm2, [rsi]\n {store} [rsi], ymm2, ymm3")
    guest.memory.write(start, struct.pack("<4I", 1, 2, 3, 4))
    set_ymm(guest, 1, b"\xff" * 32)
    set_ymm(guest, 2, mask)
    set_ymm(guest, 3, struct.pack("<8I", *range(11, 19)))
    assert outcome(guest) is None
    assert struct.unpack("<8I", ymm(guest, 1)) == (0, 2, 3, 0, 0, 0, 0, 0)
    assert struct.unpack("<4I", bytes(guest.memory.raw[start : start + 16])) == (1, 12, 13, 4)


def test_a_masked_store_that_faults_writes_nothing() -> None:
    start = PAGE + 0x1000 - 16
    guest = avx_guest(f"mov esi, {start:#x}\n vpmaskmovq [rsi], ymm2, ymm3")
    guest.memory.write(start, bytes(16))
    set_ymm(guest, 2, b"\xff" * 32)
    set_ymm(guest, 3, b"\x11" * 32)
    assert outcome(guest) == PF
    assert bytes(guest.memory.raw[start : start + 16]) == bytes(16)


def test_maskmovdqu_stores_the_bytes_of_its_mask() -> None:
    guest = avx_guest(f"mov edi, {DATA:#x}\n vmaskmovdqu xmm1, xmm2")
    guest.memory.write(DATA, bytes(16))
    set_ymm(guest, 1, bytes(range(1, 33)))
    set_ymm(guest, 2, bytes([0x80, 0x7F, 0xFF, *[0] * 13]) + bytes(16))
    assert outcome(guest) is None
    assert bytes(guest.memory.raw[DATA : DATA + 16]) == bytes([1, 0, 3, *[0] * 13])


_TABLE = list(range(1000, 1064))


@pytest.mark.parametrize(
    ("source", "indices", "scale", "element", "count"),
    [
        ("vpgatherdd ymm1, [rsi + ymm2 * 4], ymm3", "<8i", 4, 4, 8),
        ("vpgatherdd xmm1, [rsi + xmm2 * 4], xmm3", "<4i", 4, 4, 4),
        ("vpgatherdq ymm1, [rsi + xmm2 * 4], ymm3", "<4i", 4, 8, 4),
        ("vpgatherdq xmm1, [rsi + xmm2 * 4], xmm3", "<2i", 4, 8, 2),
        ("vpgatherqd xmm1, [rsi + ymm2 * 4], xmm3", "<4q", 4, 4, 4),
        ("vpgatherqd xmm1, [rsi + xmm2 * 8], xmm3", "<2q", 8, 4, 2),
        ("vpgatherqq ymm1, [rsi + ymm2 * 8], ymm3", "<4q", 8, 8, 4),
        ("vgatherdps ymm1, [rsi + ymm2 * 1], ymm3", "<8i", 1, 4, 8),
        ("vgatherqpd ymm1, [rsi + ymm2 * 2], ymm3", "<4q", 2, 8, 4),
        ("vgatherdpd ymm1, fs:[rsi + xmm2 * 2], ymm3", "<4i", 2, 8, 4),
        ("vgatherqps xmm1, [esi + ymm2 * 2], xmm3", "<4q", 2, 4, 4),
    ],
)
def test_a_gather_loads_what_its_mask_selects(source: str, indices: str, scale: int, element: int, count: int) -> None:
    numbers = [3, -2, 0, 5, 9, 1, -7, 4][:count]
    chosen = [True, False, True, True, True, False, True, True][:count]
    guest = avx_guest(f"mov rsi, {DATA + 256:#x}\n {source}")
    memory = struct.pack("<64Q", *_TABLE)
    guest.memory.write(DATA, memory)
    before = bytes(range(100, 132))
    set_ymm(guest, 1, before)
    set_ymm(guest, 2, struct.pack(indices, *numbers).ljust(32, b"\0"))
    mask = b"".join((b"\xff" if taken else b"\x7f") * element for taken in chosen)
    set_ymm(guest, 3, mask.ljust(32, b"\xff"))
    assert outcome(guest) is None
    expected = b"".join(
        memory[at : at + element] if taken else before[element * i : element * i + element]
        for i, (number, taken) in enumerate(zip(numbers, chosen, strict=True))
        for at in [256 + number * scale]
    )
    assert ymm(guest, 1) == expected.ljust(32, b"\0")
    assert ymm(guest, 3) == bytes(32)


def test_a_gather_that_faults_keeps_what_has_arrived() -> None:
    guest = avx_guest(f"mov esi, {PAGE + 0x1000 - 8:#x}\n vpgatherdd ymm1, [rsi + ymm2 * 4], ymm3")
    guest.memory.write(PAGE + 0x1000 - 8, struct.pack("<2I", 7, 8))
    set_ymm(guest, 2, struct.pack("<8i", 0, 1, 2, 0, 0, 0, 0, 0))
    set_ymm(guest, 3, b"\xff" * 32)
    assert outcome(guest) == PF
    assert struct.unpack("<8I", ymm(guest, 1)) == (7, 8, 0, 0, 0, 0, 0, 0)
    assert struct.unpack("<8I", ymm(guest, 3)) == (0, 0, *[0xFFFFFFFF] * 6)


@pytest.mark.parametrize("code", ["c4e26d900c15", "c4e271900c15", "c4e26d901415"])
def test_a_gather_wants_three_registers_that_differ(code: str) -> None:
    """Index and mask; destination and mask; destination and index (ModRM.rm = 4: an SIB byte names the index)."""
    guest = avx_guest(".byte " + ", ".join(f"0x{code[i : i + 2]}" for i in range(0, len(code), 2)) + ", 0, 0, 0, 0")
    assert outcome(guest) == UD


def test_zeroing_takes_all_registers() -> None:
    for source, kept in (("vzeroupper", 16), ("vzeroall", 0)):
        guest = avx_guest(source)
        for index in (0, 15):
            set_ymm(guest, index, b"\x55" * 32)
        assert outcome(guest) is None
        assert ymm(guest, 15) == (b"\x55" * kept).ljust(32, b"\0")


# --- XSAVE ------------------------------------------------------------------------------------------------------------

STATES = 0x207


def xsave_guest(source: str, rfbm: int = STATES, *, xcr0: int = STATES) -> Guest:
    guest = avx_guest(f"mov edi, {DATA:#x}\n mov eax, {rfbm:#x}\n xor edx, edx\n {source}", xcr0=xcr0)
    guest.memory.write(DATA, b"\xcc" * 4096)
    guest.memory.write(DATA + 512, bytes(64))
    for index in range(16):
        set_ymm(guest, index, bytes([index + 1]) * 16 + bytes([index + 101]) * 16)
    guest.context.pkru = 0x1234
    return guest


def area(guest: Guest) -> bytes:
    return bytes(guest.memory.raw[DATA : DATA + 4096])


HIGH = b"".join(bytes([index + 101]) * 16 for index in range(16))


@pytest.mark.parametrize("source", ["xsave [rdi]", "xsaveopt [rdi]", "xsave64 [rdi]"])
def test_the_standard_form_has_each_component_at_its_offset(source: str) -> None:
    guest = xsave_guest(source)
    assert outcome(guest) is None
    data = area(guest)
    assert struct.unpack_from("<QQ", data, 512) == (STATES, 0)
    assert data[576:832] == HIGH
    assert data[832:2688] == b"\xcc" * (2688 - 832)
    assert struct.unpack_from("<Q", data, 2688) == (0x1234,)


@pytest.mark.parametrize("source", ["xsavec [rdi]", "xsaves [rdi]", "xsaves64 [rdi]"])
@pytest.mark.parametrize(("rfbm", "at"), [(STATES, 832), (0x203, 576)])
def test_the_compacted_form_has_them_behind_each_other(source: str, rfbm: int, at: int) -> None:
    guest = xsave_guest(source, rfbm)
    assert outcome(guest) is None
    data = area(guest)
    assert struct.unpack_from("<QQ", data, 512) == (rfbm, COMPACTED | rfbm)
    assert struct.unpack_from("<Q", data, at) == (0x1234,)
    assert data[at + 8 : at + 16] == b"\xcc" * 8
    if rfbm & 4:
        assert data[576:832] == HIGH


def test_components_in_their_initial_state_are_not_saved() -> None:
    guest = xsave_guest("vzeroupper\n xsavec [rdi]")
    guest.context.pkru = 0
    assert outcome(guest) is None
    data = area(guest)
    assert struct.unpack_from("<QQ", data, 512) == (3, COMPACTED | STATES)
    assert data[576:832] == b"\xcc" * 256


@pytest.mark.parametrize(("save", "restore"), [("xsave", "xrstor"), ("xsavec", "xrstor"), ("xsaves", "xrstors")])
def test_what_was_saved_comes_back(save: str, restore: str) -> None:
    guest = xsave_guest(
        f"{save} [rdi]\n vzeroall\n xor ecx, ecx\n xor eax, eax\n wrpkru\n mov eax, {STATES}\n {restore} [rdi]"
    )
    guest.context.cr4 |= 1 << 22
    assert outcome(guest) is None
    assert guest.context.get_ymm_high() == HIGH
    assert ymm(guest, 15)[:16] == bytes([16]) * 16
    assert guest.context.pkru == 0x1234


@pytest.mark.parametrize("restore", ["xrstor", "xrstors"])
def test_a_component_that_the_header_leaves_out_is_initialised(restore: str) -> None:
    guest = xsave_guest(f"{restore} [rdi]", 6)
    guest.memory.write(DATA + 512, struct.pack("<QQ", 0, COMPACTED | STATES))
    assert outcome(guest) is None
    assert guest.context.get_ymm_high() == bytes(256)
    assert ymm(guest, 3) == bytes(32)
    assert guest.context.pkru == 0x1234  # not asked for


@pytest.mark.parametrize(
    ("restore", "bv", "comp", "reserved"),
    [
        ("xrstors", 3, 0, 0),  # the standard form
        ("xrstors", 7, COMPACTED | 3, 0),  # a component that is not in the area
        ("xrstors", 3, COMPACTED | 0x403, 0),  # one that XCR0 does not have
        ("xrstors", 3, COMPACTED | 7, 1),
        ("xrstor", 3, COMPACTED | 7, 1),
        ("xrstor", 3, 7, 0),  # neither form
        ("xrstor", 0x403, 0, 0),
        ("xrstor", 3, 0, 1),
    ],
)
def test_a_header_that_is_not_valid_is_refused(restore: str, bv: int, comp: int, reserved: int) -> None:
    guest = xsave_guest(f"{restore} [rdi]")
    guest.memory.write(DATA + 512, struct.pack("<QQQ", bv, comp, reserved))
    assert outcome(guest) == GP


def test_mxcsr_follows_avx_state_in_the_standard_form() -> None:
    guest = xsave_guest("xsave [rdi]", 4)
    assert outcome(guest) is None
    assert struct.unpack_from("<II", area(guest), 24) == (0x1F80, 0xFFFF)
    guest = xsave_guest("xrstor [rdi]", 4)
    guest.memory.write(DATA + 24, struct.pack("<I", 0x3F80))
    assert outcome(guest) is None
    assert struct.unpack_from("<I", guest.context.get_fpu(), 24)[0] == 0x3F80


def test_cpuid_tells_the_size_of_the_compacted_form() -> None:
    leaf = cpuid.native(Platform(), 0xD, 1)
    assert leaf[0] & 0xF == 0xF
    assert leaf[1] == 576 + 256 + 8


def test_pkru_is_where_the_platform_says() -> None:
    guest = Guest(f"mov edi, {DATA:#x}\n mov eax, {STATES}\n xor edx, edx\n xsave [rdi]\n hlt",
                  processor=Processor(Platform(memory_size=1 << 30, pkru_offset=832)))  # fmt: skip
    guest.context.cr4 |= OSXSAVE
    guest.context.xcr0 = STATES
    guest.context.pkru = 5
    assert outcome(guest) is None
    assert struct.unpack_from("<Q", area(guest), 832) == (5,)
    assert not any(area(guest)[840:])


# --- what is offered --------------------------------------------------------------------------------------------------


def test_features_that_a_platform_leaves_out_are_not_in_cpuid() -> None:
    all_of_them, none = Platform(), Platform(cpu_features=frozenset())
    assert cpuid.native(all_of_them, 1)[2] >> 28 & 1
    assert not cpuid.native(none, 1)[2] >> 28 & 1
    assert cpuid.native(none, 0xD, 0)[0] == 0x203
    assert cpuid.native(none, 0xD, 2) == (0, 0, 0, 0)
    assert cpuid.native(none, 0xD, 1)[0] == 5


@pytest.mark.parametrize(
    ("features", "sentence"),
    [
        ({"avx3"}, "there is no feature 'avx3': the features are avx, avx2"),
        ({"avx2"}, "a processor with avx2 has avx, too"),
        ({"xsaves"}, "a processor with xsaves has xsavec, too"),
    ],
)
def test_features_that_cannot_be_are_refused(features: set[str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Platform(cpu_features=frozenset(features))


def test_a_feature_that_the_processor_here_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swtdx.cpu.platform.host_features", lambda: host_features() - {"sha"})
    assert "sha" in HOST_FEATURES
    with pytest.raises(ValueError, match="the processor here has no sha"):
        Platform(cpu_features=frozenset({"sha"}))
