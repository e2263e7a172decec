# SPDX-License-Identifier: GPL-2.0-or-later
"""What programs read to find out whether a machine has KVM and TDX, beside /dev/kvm itself.

libvirt and test suites read the module parameter ``tdx`` of kvm_intel, many tools the flags in /proc/cpuinfo. The
emulated machine is Intel's whatever the host is, so both are shown to a program under ``swtdx exec``. Since 7.2 Linux
shows the version of the TDX module (drivers/virt/coco/tdx-host), too; seamldr_version and num_remaining_updates beside
it are for modules that can be updated at run time, which the emulated one cannot.
"""

from __future__ import annotations

import re
from pathlib import Path

from swtdx.linux.release import RELEASES
from swtdx.uapi.release import NEWEST_RELEASE, KernelRelease

_PARAMETERS = "/sys/module/kvm_intel/parameters"
_MODULE = "/sys/devices/faux/tdx_host/version"
_FLAGS = re.compile(r"^(flags\s*:.*)$", re.MULTILINE)


def files(*, tdx: bool, release: KernelRelease = NEWEST_RELEASE, module_version: str = "1.5.06") -> dict[str, str]:
    """Return the contents by path."""
    found = {f"{_PARAMETERS}/tdx": "Y\n" if tdx else "N\n", f"{_PARAMETERS}/nested": "N\n"}
    if tdx and RELEASES[release].shows_module_in_sysfs:
        major, minor, update = (*(int(part) for part in module_version.split(".")), 0)[:3]  # "1.0" has no update
        found[_MODULE] = f"{major}.{minor}.{update:02}\n"
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return found
    flags = ["vmx", "tdx_host_platform"] if tdx else ["vmx"]
    return {**found, "/proc/cpuinfo": _FLAGS.sub(lambda line: _with(line[1], flags), text)}


def _with(line: str, flags: list[str]) -> str:
    words = line.split()
    return " ".join([line.rstrip(), *(flag for flag in flags if flag not in words)])
