# SPDX-License-Identifier: GPL-2.0-or-later
"""What vector instructions leave alone, how XSAVE's forms fault, and what is never offered.

What each instruction computes is compared with the host's processor elsewhere (tests/cpu/test_instructions.py).
"""

from __future__ import annotations

import struct

import pytest

from swtdx.cpu import cpuid
from swtdx.cpu.platform import HOST_FEATURES, Platform, host_features
from swtdx.cpu.vmx import ExitReason
from tests.cpu.guest import CODE, Guest
from tests.cpu.test_avx import DATA, GP, NM, OSXSAVE, PAGE, PF, TS, UD, area, avx_guest, outcome, set_ymm, ymm

needs_avx2 = pytest.mark.skipif("avx2" not in host_features(), reason="the processor here has no AVX2")

UPPER = bytes(range(256))
# Of each kind one or more: register, load, store, scalar, part, conversion, shift, shuffle, AES, with MMX, state.
LEGACY = (
    "paddd xmm0, xmm1", "movdqa xmm0, [rdi]", "movdqu xmm0, [rdi + 1]", "movups [rdi], xmm0", "movss xmm0, [rdi]",
    "movss xmm0, xmm1", "movsd xmm0, [rdi]", "movd xmm0, eax", "movq xmm0, rax", "movq xmm0, [rdi]",
    "movlps xmm0, [rdi]", "movhpd xmm0, [rdi]", "movhlps xmm0, xmm1", "movddup xmm0, [rdi]", "cvtsi2sd xmm0, rax",
    "cvtpd2ps xmm0, xmm1", "cvtdq2pd xmm0, [rdi]", "cvttps2dq xmm0, xmm1", "addps xmm0, [rdi]", "sqrtsd xmm0, xmm1",
    "cmppd xmm0, xmm1, 2", "pslldq xmm0, 3", "psrlq xmm0, xmm1", "pxor xmm0, xmm0", "xorps xmm0, xmm0",
    "pshufb xmm0, xmm1", "shufps xmm0, xmm1, 0x1b", "palignr xmm0, xmm1, 5", "pblendvb xmm1, xmm2",
    "blendvps xmm1, xmm2", "roundsd xmm0, xmm1, 1", "dpps xmm0, xmm1, 0xff", "insertps xmm0, [rdi], 0x10",
    "pinsrq xmm0, rax, 1", "pinsrw xmm0, eax, 7", "pmovzxbw xmm0, [rdi]", "movntdqa xmm0, [rdi]", "movntdq [rdi], xmm0",
    "movntps [rdi], xmm0", "lddqu xmm0, [rdi + 1]", "aesenc xmm0, xmm1", "aeskeygenassist xmm0, xmm1, 1",
    "pclmulqdq xmm0, xmm1, 0", "pcmpistrm xmm1, xmm2, 0", "movq2dq xmm0, mm0", "cvtpi2pd xmm0, mm0",
    "fxsave [rdi]\n fxrstor [rdi]", "maskmovdqu xmm0, xmm1", "unpcklpd xmm0, xmm1", "haddps xmm0, xmm1",
    "ldmxcsr [rdi + 0x800]",
)  # fmt: skip


@needs_avx2
@pytest.mark.parametrize("source", LEGACY)
def test_a_legacy_instruction_keeps_the_upper_halves(source: str) -> None:
    """SDM volume 1, 14.1.4 and 2A, 2.3.10.1: without a VEX prefix bits 255:128 stay."""
    guest = avx_guest(f"mov edi, {DATA:#x}\n {source}")
    guest.memory.write(DATA, bytes(range(64)))
    guest.memory.write(DATA + 0x800, struct.pack("<I", 0x1F80))
    guest.context.set_ymm_high(UPPER)
    assert outcome(guest) is None
    assert guest.context.get_ymm_high() == UPPER


VEX_128 = (
    "vpaddd xmm0, xmm1, xmm2", "vmovdqu xmm0, [rdi]", "vmovss xmm0, [rdi]", "vmovss xmm0, xmm1, xmm2",
    "vmovd xmm0, eax", "vcvtsi2sd xmm0, xmm1, rax", "vfmadd213sd xmm0, xmm1, xmm2", "vpxor xmm0, xmm0, xmm0",
    "vmaskmovps xmm0, xmm1, [rdi]", "vpgatherdd xmm0, [rdi + xmm1], xmm2", "vcvtph2ps xmm0, [rdi]",
    "vextracti128 xmm0, ymm1, 1", "vaesenc xmm0, xmm1, xmm2", "vpshufb xmm0, xmm1, xmm2",
)  # fmt: skip


@needs_avx2
@pytest.mark.parametrize("source", VEX_128)
def test_a_vex_prefix_of_128_bits_clears_the_upper_half_of_its_destination(source: str) -> None:
    guest = avx_guest(f"mov edi, {DATA:#x}\n {source}")
    guest.context.set_ymm_high(UPPER)
    assert outcome(guest) is None
    mask = slice(32, 48) if "gather" in source else slice(0)  # XMM2 of a gather is a destination too
    expected = bytearray(UPPER)
    expected[:16], expected[mask] = bytes(16), bytes(len(expected[mask]))
    assert guest.context.get_ymm_high() == expected


@needs_avx2
@pytest.mark.parametrize(
    ("source", "size"),
    [
        ("movntdq [rdi], xmm0", 16),
        ("movntps [rdi], xmm0", 16),
        ("movntpd [rdi], xmm0", 16),
        ("vmovntdq [rdi], xmm0", 16),
        ("vmovntdq [rdi], ymm0", 32),
        ("vmovntps [rdi], ymm0", 32),
        ("vmovntpd [rdi], ymm0", 32),
        ("movnti [rdi], rax", 8),
        ("movntq [rdi], mm0", 8),
    ],
)
def test_a_non_temporal_store_is_a_store(source: str, size: int) -> None:
    """The bytes arrive; in the last bytes of a page too, and a page that is not there is #PF for the address."""
    value = bytes(range(1, 33))

    def store(at: int) -> Guest:
        guest = avx_guest(
            f"mov edi, {at:#x}\n movabs rax, {int.from_bytes(value[:8], 'little'):#x}\n movq mm0, rax\n {source}"
        )
        set_ymm(guest, 0, value)
        return guest

    last = PAGE + 0x1000 - size
    guest = store(last)
    assert outcome(guest) is None
    assert bytes(guest.memory.raw[last : PAGE + 0x1000]) == value[:size]
    guest = store(PAGE + 0x1000)
    assert outcome(guest) == PF
    assert guest.context.exit_qualification == PAGE + 0x1000


@needs_avx2
@pytest.mark.parametrize(
    ("load", "element", "width"),
    [
        ("vmaskmovps", 4, 16), ("vmaskmovps", 4, 32), ("vmaskmovpd", 8, 16), ("vmaskmovpd", 8, 32),
        ("vpmaskmovd", 4, 16), ("vpmaskmovd", 4, 32), ("vpmaskmovq", 8, 16), ("vpmaskmovq", 8, 32),
    ],
)  # fmt: skip
def test_masked_moves_fault_for_elements_of_their_mask_alone(load: str, element: int, width: int) -> None:
    """SDM volume 2, VMASKMOV: no exception for what the mask leaves out; elements of a load are zero there."""
    name, at = "xmm" if width == 16 else "ymm", PAGE + 0x1000 - element
    for moved in (f"{load} {name}1, {name}2, [rsi]", f"{load} [rsi], {name}2, {name}3"):
        for taken, fault in ((1, None), (0, None), (3, PF)):
            guest = avx_guest(f"mov esi, {at:#x}\n {moved}")
            guest.memory.write(at, b"\x11" * element)
            mask = b"".join((b"\xff" if taken >> n & 1 else b"\x7f") * element for n in range(width // element))
            set_ymm(guest, 1, b"\x22" * 32)
            set_ymm(guest, 2, mask.ljust(32, b"\xff"))
            set_ymm(guest, 3, b"\x33" * 32)
            assert outcome(guest) == fault
            if fault is not None:
                assert guest.context.exit_qualification == PAGE + 0x1000
            if fault is not None or "[rsi]," in moved:
                assert ymm(guest, 1) == b"\x22" * 32
            else:
                assert ymm(guest, 1) == (b"\x11" * element if taken else b"").ljust(32, b"\0")
            stored = "[rsi]," in moved and taken == 1
            assert bytes(guest.memory.raw[at : PAGE + 0x1000]) == (b"\x33" if stored else b"\x11") * element


@needs_avx2
@pytest.mark.parametrize(
    ("source", "element", "indices"),
    [
        ("vpgatherdd ymm1, [rsi + ymm2], ymm3", 4, "<2i"),
        ("vpgatherdq ymm1, [rsi + xmm2], ymm3", 8, "<2i"),
        ("vpgatherqd xmm1, [rsi + ymm2], xmm3", 4, "<2q"),
        ("vpgatherqq ymm1, [rsi + ymm2], ymm3", 8, "<2q"),
        ("vgatherdps ymm1, [rsi + ymm2], ymm3", 4, "<2i"),
        ("vgatherdpd ymm1, [rsi + xmm2], ymm3", 8, "<2i"),
        ("vgatherqps xmm1, [rsi + ymm2], xmm3", 4, "<2q"),
        ("vgatherqpd ymm1, [rsi + ymm2], ymm3", 8, "<2q"),
    ],
)
def test_gathers_fault_for_elements_of_their_mask_alone(source: str, element: int, indices: str) -> None:
    at = PAGE + 0x1000 - element
    for taken, fault in ((1, None), (0, None), (3, PF)):
        guest = avx_guest(f"mov esi, {at:#x}\n {source}")
        guest.memory.write(at, b"\x11" * element)
        set_ymm(guest, 1, b"\x22" * 32)
        set_ymm(guest, 2, struct.pack(indices, 0, element).ljust(32, b"\0"))
        set_ymm(guest, 3, b"".join((b"\xff" if taken >> n & 1 else b"\0") * element for n in range(2)).ljust(32, b"\0"))
        assert outcome(guest) == fault
        assert ymm(guest, 1)[:element] == (b"\x11" if taken else b"\x22") * element
        assert ymm(guest, 1)[element : 2 * element] == b"\x22" * element
        assert ymm(guest, 3)[: 2 * element] == (bytes(element) + b"\xff" * element if fault else bytes(2 * element))


# --- XSAVE ------------------------------------------------------------------------------------------------------------

FORMS = ("xsave", "xsaveopt", "xsavec", "xsaves", "xrstor", "xrstors")
FORMS_64 = tuple(f"{form}64" for form in FORMS)


def form_guest(form: str, at: int = DATA) -> Guest:
    guest = avx_guest(f"mov edi, {at:#x}\n mov eax, 7\n xor edx, edx\n {form} [rdi]")
    if DATA <= at < DATA + 0x1000:
        guest.memory.write(DATA, bytes(4096))
        guest.memory.write(DATA + 520, struct.pack("<Q", 1 << 63 | 7 if "rstors" in form else 0))
    return guest


@needs_avx2
@pytest.mark.parametrize("form", [*FORMS, *FORMS_64])
def test_every_form_of_xsave_has_the_faults_of_its_page(form: str) -> None:
    """SDM volume 1, 13.7 to 13.12: #UD without CR4.OSXSAVE, #NM with CR0.TS, #GP unless aligned, and then #PF."""
    assert outcome(form_guest(form)) is None
    guest = form_guest(form)
    guest.context.cr4 &= ~OSXSAVE
    assert outcome(guest) == UD
    guest = form_guest(form)
    guest.context.cr0 |= TS
    assert outcome(guest) == NM
    assert outcome(form_guest(form, DATA + 32)) == GP
    guest = form_guest(form, PAGE + 0x1000)
    assert outcome(guest) == PF
    assert guest.context.exit_qualification >> 12 == (PAGE + 0x1000) >> 12, "which byte of the area is not said"


@needs_avx2
@pytest.mark.parametrize("form", ["xsave", "xsavec", "xsaves"])
def test_an_area_that_ends_in_a_page_that_is_not_there_is_a_fault(form: str) -> None:
    guest = form_guest(form, PAGE + 0x1000 - 576)
    set_ymm(guest, 0, b"\x11" * 32)
    guest.memory.write(PAGE + 0x1000 - 576, bytes(576))
    assert outcome(guest) == PF
    assert guest.context.exit_qualification == PAGE + 0x1000


@needs_avx2
def test_xgetbv_gives_xcr0_and_what_of_it_is_in_use() -> None:
    """SDM volume 1, 13.6 and volume 2, XGETBV: ECX 0 and 1; any other is #GP."""
    guest = avx_guest("vzeroall\n mov ecx, 1\n xgetbv")
    assert outcome(guest) is None
    assert guest.context.gpr[0] & 4 == 0
    guest = avx_guest("mov ecx, 1\n xgetbv")
    set_ymm(guest, 9, b"\x11" * 32)
    assert outcome(guest) is None
    assert guest.context.gpr[0] & 4
    guest = avx_guest("xor ecx, ecx\n xgetbv")
    assert outcome(guest) is None
    assert guest.context.gpr[0] == 7
    assert outcome(avx_guest("mov ecx, 2\n xgetbv")) == GP


@needs_avx2
def test_saving_leaves_the_registers() -> None:
    for form in ("xsave", "xsaveopt", "xsavec", "xsaves"):
        guest = form_guest(form)
        guest.context.set_ymm_high(UPPER)
        assert outcome(guest) is None
        assert guest.context.get_ymm_high() == UPPER
        assert area(guest)[576:832] == UPPER


# --- what is never offered --------------------------------------------------------------------------------------------

# SDM volume 2, CPUID: leaf 7 (subleaf, register, bit) of GFNI, of AVX-512 in all its parts, AMX, AVX-VNNI, AVX-IFMA.
NEVER = {
    "avx512f": (0, 1, 16), "avx512dq": (0, 1, 17), "avx512_ifma": (0, 1, 21), "avx512pf": (0, 1, 26),
    "avx512er": (0, 1, 27), "avx512cd": (0, 1, 28), "avx512bw": (0, 1, 30), "avx512vl": (0, 1, 31),
    "avx512_vbmi": (0, 2, 1), "avx512_vbmi2": (0, 2, 6), "gfni": (0, 2, 8), "avx512_vnni": (0, 2, 11),
    "avx512_bitalg": (0, 2, 12), "avx512_vpopcntdq": (0, 2, 14), "avx512_4vnniw": (0, 3, 2), "avx512_4fmaps": (0, 3, 3),
    "avx512_vp2intersect": (0, 3, 8), "amx_bf16": (0, 3, 22), "avx512_fp16": (0, 3, 23), "amx_tile": (0, 3, 24),
    "amx_int8": (0, 3, 25), "avx_vnni": (1, 0, 4), "avx512_bf16": (1, 0, 5), "avx_ifma": (1, 0, 23),
}  # fmt: skip


@pytest.mark.parametrize("name", NEVER)
def test_what_the_engine_has_not_is_never_offered(name: str) -> None:
    """Whatever the processor here has: the engine's own list decides."""
    subleaf, register, bit = NEVER[name]
    assert name not in HOST_FEATURES
    assert not cpuid.native(Platform(), 7, subleaf)[register] >> bit & 1
    with pytest.raises(ValueError, match=f"there is no feature '{name}'"):
        Platform(cpu_features=frozenset({name}))


def test_states_of_avx_512_and_amx_are_not_offered() -> None:
    """XCR0 bits 7:5 and 18:17, and their subleaves of leaf 0xD."""
    assert not cpuid.native(Platform(), 0xD, 0)[0] & (0b111 << 5 | 0b11 << 17)
    for number in (5, 6, 7, 17, 18):
        assert cpuid.native(Platform(), 0xD, number) == (0, 0, 0, 0)


@needs_avx2
def test_every_evex_instruction_is_undefined() -> None:
    """All opcodes of all maps, with all of W, L'L and pp, masked and not, in registers and memory."""
    guest = avx_guest("nop")
    executed = []
    for number in range(1, 8):
        for second in (0x7C, 0x7D, 0x7E, 0x7F, 0xFD):
            for third in (0x08, 0x28, 0x49):
                for opcode in range(256):
                    for modrm in (0xC1, 0x07):
                        code = bytes([0x62, 0xF0 | number, second, third, opcode, modrm, 0]) + b"\xf4" * 9
                        guest.memory.write(CODE, code)
                        guest.context.rip = CODE
                        if not (
                            guest.run() == ExitReason.EXCEPTION_NMI and guest.context.interruption_info & 0xFF == UD
                        ):
                            executed.append(code[:7].hex())
                        if guest.context.event_pending:
                            guest.context.cancel_event()
    assert executed == []
