# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's spellings of what ``swtdx run`` takes: ``-smp 4``, ``-bios FILE``, ``-kernel FILE``, ``-drive file=...``.

Fingers type them. Those that mean the same here are taken; the others are answered with what there is in their place.
"""

from __future__ import annotations

from collections.abc import Sequence

from swtdx.cli.parameters import InputError

_TAKEN = {
    **dict.fromkeys(("-smp", "--smp"), "--cpus"),
    **dict.fromkeys(("-bios", "--bios", "-fw", "--fw"), "--firmware"),
    **dict.fromkeys(("-drive", "--drive", "-hda", "--hda"), "--disk"),
    **{f"-{name}": f"--{name}" for name in ("kernel", "initrd", "append", "smbios", "gdb", "firmware", "cpus", "disk")},
    **{f"-{name}": f"--{name}" for name in ("memory", "trace", "timeout", "until", "debugcon")},
}
_CONSOLE = "the guest's console is on the terminal: omit it"
_MACHINE = "there is one machine, a q35 board under the emulated KVM: omit it"
_DEVICES = "the devices are --disk, --virtio-console and --rng"
_ANSWERED = {
    **dict.fromkeys(("nographic", "display", "serial", "monitor", "vga", "chardev", "mon"), _CONSOLE),
    **dict.fromkeys(("machine", "M", "accel", "enable-kvm", "object", "nodefaults", "global"), _MACHINE),
    **dict.fromkeys(("device", "netdev", "nic", "net", "blockdev", "cdrom", "fw_cfg"), _DEVICES),
    "cpu": "--cpu-features narrows the processor that a guest sees",
    "no-reboot": "a guest that resets ends the run anyway: omit it",
    "pflash": "--firmware FILE takes one image with code and variables",
    "daemonize": "a shell's & does that",
}
"""For these QEMU under `swtdx qemu` is another answer."""


def as_here(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of ``swtdx run`` with QEMU's spellings replaced.

    Raises `InputError` for those that are not taken.

    >>> as_here(["run", "-smp", "4,sockets=1", "-s", "--bios=x.fd"])
    ['run', '--cpus', '4', '--gdb', ':1234', '--firmware=x.fd']
    """
    made: list[str] = []
    rest = iter(arguments)
    for each in rest:
        option, equals, value = each.partition("=")
        if each in ("-s", "-S"):
            made += ["--gdb", ":1234"] if each == "-s" else ["--gdb-wait"]
        elif option in _TAKEN:
            known = _TAKEN[option]
            if not equals:
                made.append(known)
                made += [_value(known, each) for each in (next(rest, None),) if each is not None]
            else:
                made.append(f"{known}={_value(known, value)}")
        elif option.startswith("-") and option.lstrip("-") in _ANSWERED:
            raise InputError(f"{option}: {_ANSWERED[option.lstrip('-')]} (QEMU itself: swtdx qemu)")
        else:
            made.append(each)
            if each in _WITH_VALUE:  # whatever it looks like
                made += [each for each in (next(rest, None),) if each is not None]
    return made


_WITH_VALUE = ("--append", "--until", "--smbios", "--json", "--log", "--html")
"""Options whose values may begin with a hyphen or be words of QEMU's."""


def _value(option: str, value: str) -> str:
    if option == "--cpus":
        parts = value.split(",")
        return next((part.partition("=")[2] for part in parts if part.startswith("cpus=")), parts[0])
    if option == "--gdb" and value.startswith("tcp:"):
        return value.removeprefix("tcp:").partition(",")[0]
    if option == "--disk" and "if=pflash" in value.split(","):
        raise InputError(f"-drive {value}: {_ANSWERED['pflash']}")
    return value
