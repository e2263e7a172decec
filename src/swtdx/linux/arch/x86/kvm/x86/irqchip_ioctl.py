# SPDX-License-Identifier: GPL-2.0-or-later
"""ioctls of the PICs, the I/O APIC and the PIT on a VM's fd. Without them in the kernel they are ENXIO."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING

from swtdx.linux.arch.x86.kvm import i8254
from swtdx.linux.err import err
from swtdx.linux.uaccess import copy_from_user, copy_to_user, struct_from_user
from swtdx.uapi.kvm import (
    KVM_IRQCHIP_IOAPIC,
    KVM_PIT_SPEAKER_DUMMY,
    kvm_ioapic_state,
    kvm_irqchip,
    kvm_pic_state,
    kvm_pit_config,
    kvm_pit_state,
    kvm_pit_state2,
)

if TYPE_CHECKING:
    from swtdx.linux.arch.x86.kvm.i8254 import Pit
    from swtdx.linux.arch.x86.kvm.i8259 import Pic
    from swtdx.linux.arch.x86.kvm.ioapic import IoApic
    from swtdx.linux.virt.kvm.kvm_main import Kvm


REINJECT_CONTROL_SIZE = 32
"""Bytes of struct kvm_reinject_control."""


def _create_irqchip(kvm: Kvm, arg: int) -> int:
    # upstream: kvm->lock, so that no vCPU is created with the other interrupt mode meanwhile.
    with kvm.lock:
        kvm.create_irqchip()
    return 0


def _create_pit2(kvm: Kvm, arg: int) -> int:
    config = struct_from_user(kvm_pit_config, arg)
    with kvm.lock:
        kvm.create_pit(i8254.PORTS if config.flags & KVM_PIT_SPEAKER_DUMMY else i8254.PORTS[:4])
    return 0


def _create_pit(kvm: Kvm, arg: int) -> int:
    with kvm.lock:
        kvm.create_pit(i8254.PORTS)
    return 0


def _named_chip(kvm: Kvm, arg: int) -> tuple[kvm_irqchip, Pic, IoApic]:
    """Return the structure at ``arg``, which names a chip, and the chips. Raises ENXIO, EINVAL."""
    chip = struct_from_user(kvm_irqchip, arg)
    if kvm.pic is None or kvm.ioapic is None:
        raise err(errno.ENXIO, "no PIC and I/O APIC in the kernel")
    if chip.chip_id > KVM_IRQCHIP_IOAPIC:
        raise err(errno.EINVAL, f"chip {chip.chip_id}")
    return chip, kvm.pic, kvm.ioapic


def kvm_vm_ioctl_get_irqchip(kvm: Kvm, arg: int) -> int:
    chip, pic, ioapic = _named_chip(kvm, arg)
    if chip.chip_id == KVM_IRQCHIP_IOAPIC:
        chip.chip.ioapic = ioapic.state
    else:
        chip.chip.pic = pic.chips[chip.chip_id]
    copy_to_user(arg, chip)
    return 0


def kvm_vm_ioctl_set_irqchip(kvm: Kvm, arg: int) -> int:
    chip, pic, ioapic = _named_chip(kvm, arg)
    if chip.chip_id == KVM_IRQCHIP_IOAPIC:
        ioapic.state = kvm_ioapic_state.from_buffer_copy(chip.chip.ioapic)
    else:
        chips = list(pic.chips)
        chips[chip.chip_id] = kvm_pic_state.from_buffer_copy(chip.chip.pic)
        pic.chips = (chips[0], chips[1])
        pic.update()
    return 0


def _pit(kvm: Kvm) -> Pit:
    if kvm.pit is None:
        raise err(errno.ENXIO, "no PIT in the kernel")
    return kvm.pit


def kvm_vm_ioctl_get_pit(kvm: Kvm, arg: int) -> int:
    struct_from_user(kvm_pit_state, arg)  # this one is copied in before anything is asked; KVM_GET_PIT2 is not
    copy_to_user(arg, kvm_pit_state.from_buffer_copy(_pit(kvm).state))
    return 0


def kvm_vm_ioctl_get_pit2(kvm: Kvm, arg: int) -> int:
    copy_to_user(arg, _pit(kvm).state)
    return 0


def kvm_vm_ioctl_set_pit(kvm: Kvm, arg: int) -> int:
    state = kvm_pit_state2(channels=struct_from_user(kvm_pit_state, arg).channels, flags=_pit(kvm).state.flags)
    _pit(kvm).set_state(state)
    return 0


def kvm_vm_ioctl_set_pit2(kvm: Kvm, arg: int) -> int:
    state = struct_from_user(kvm_pit_state2, arg)
    _pit(kvm).set_state(state)
    return 0


def kvm_vm_ioctl_reinject(kvm: Kvm, arg: int) -> int:
    copy_from_user(arg, REINJECT_CONTROL_SIZE)
    _pit(kvm)  # ticks are never reinjected here: a guest that is late misses them
    return 0


HANDLERS: dict[str, Callable[[Kvm, int], int]] = {
    "KVM_CREATE_IRQCHIP": _create_irqchip,
    "KVM_GET_IRQCHIP": kvm_vm_ioctl_get_irqchip,
    "KVM_SET_IRQCHIP": kvm_vm_ioctl_set_irqchip,
    "KVM_CREATE_PIT": _create_pit,
    "KVM_CREATE_PIT2": _create_pit2,
    "KVM_GET_PIT": kvm_vm_ioctl_get_pit,
    "KVM_SET_PIT": kvm_vm_ioctl_set_pit,
    "KVM_GET_PIT2": kvm_vm_ioctl_get_pit2,
    "KVM_SET_PIT2": kvm_vm_ioctl_set_pit2,
    "KVM_REINJECT_CONTROL": kvm_vm_ioctl_reinject,
}
"""By the name of the request."""
