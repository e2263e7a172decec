# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_GET_XSAVE and KVM_SET_XSAVE (copy_uabi_to_xstate): AVX and PKRU state, and what a component's absence means."""

from __future__ import annotations

import ctypes
import errno
import struct
from collections.abc import Iterator

import pytest

from swtdx.uapi import kvm as k
from swtdx.uapi.client import Kvm
from swtdx.uapi.client.vcpu import Vcpu

BV, COMPACTED = 512, 1 << 63
X87, SSE, YMM, PKRU = 1, 2, 4, 1 << 9
XMM_AT, YMM_AT, FCW, MXCSR = 160, 576, 0, 24


@pytest.fixture
def vcpu(kvm: Kvm) -> Iterator[Vcpu]:
    vm = kvm.create_vm()
    try:
        made = vm.create_vcpu(0)
        made.set_cpuid2(kvm.supported_cpuid())  # components that it lacks are not shown
        yield made
    finally:
        vm.close()


def supported(kvm: Kvm) -> int:
    (entry,) = (e for e in kvm.supported_cpuid() if (e.function, e.index) == (0xD, 0))
    return int(entry.eax) | int(entry.edx) << 32


def area(components: int) -> bytearray:
    """An XSAVE area of these components: all x87 and SSE bytes are 0x11, YMM's 0x22."""
    image = bytearray(4096)
    image[:BV] = bytes([0x11]) * BV
    struct.pack_into("<HHH", image, FCW, 0x27F, 0, 0)
    struct.pack_into("<II", image, MXCSR, 0x3F80, 0xFFFF)
    struct.pack_into("<Q", image, BV, components)
    image[YMM_AT : YMM_AT + 256] = bytes([0x22]) * 256
    return image


def put(vcpu: Vcpu, image: bytearray) -> None:
    vcpu.set_xsave(k.kvm_xsave.from_buffer_copy(bytes(image).ljust(ctypes.sizeof(k.kvm_xsave), b"\0")))


def get(vcpu: Vcpu) -> bytes:
    return bytes(vcpu.get_xsave())


def test_all_components_come_back(kvm: Kvm, vcpu: Vcpu) -> None:
    have = supported(kvm)
    (pkru,) = (e for e in kvm.supported_cpuid() if (e.function, e.index) == (0xD, 9))
    image = area(have)
    struct.pack_into("<Q", image, pkru.ebx, 0x5555)
    put(vcpu, image)
    back = get(vcpu)
    assert struct.unpack_from("<Q", back, BV) == (have,)
    assert back[XMM_AT : XMM_AT + 256] == bytes([0x11]) * 256
    assert struct.unpack_from("<Q", back, pkru.ebx) == (0x5555,)
    if have & YMM:
        assert back[YMM_AT : YMM_AT + 256] == bytes([0x22]) * 256


def test_components_that_are_left_out_get_their_initial_state(kvm: Kvm, vcpu: Vcpu) -> None:
    put(vcpu, area(supported(kvm)))
    put(vcpu, area(X87))
    back = get(vcpu)
    assert struct.unpack_from("<Q", back, BV) == (X87,)
    assert struct.unpack_from("<H", back, FCW) == (0x27F,)
    assert struct.unpack_from("<I", back, MXCSR) == (0x1F80,)
    assert back[XMM_AT : XMM_AT + 256] == bytes(256)
    assert back[YMM_AT : YMM_AT + 256] == bytes(256)
    put(vcpu, area(SSE))
    back = get(vcpu)
    assert struct.unpack_from("<H", back, FCW) == (0x37F,)
    assert struct.unpack_from("<I", back, MXCSR) == (0x3F80,)
    assert back[XMM_AT : XMM_AT + 256] == bytes([0x11]) * 256


@pytest.mark.parametrize(("components", "at", "value"), [(1 << 5, None, 0), (3, BV + 8, COMPACTED | 3)])
def test_what_the_processor_lacks_is_refused(vcpu: Vcpu, components: int, at: int | None, value: int) -> None:
    image = area(components)
    if at is not None:
        struct.pack_into("<Q", image, at, value)
    with pytest.raises(OSError) as raised:
        put(vcpu, image)
    assert raised.value.errno == errno.EINVAL


def test_reserved_bits_of_mxcsr_are_refused(vcpu: Vcpu) -> None:
    image = area(SSE)
    struct.pack_into("<I", image, MXCSR, 0x1_1F80)
    with pytest.raises(OSError) as raised:
        put(vcpu, image)
    assert raised.value.errno == errno.EINVAL
