# SPDX-License-Identifier: GPL-2.0-or-later
"""``swtdx run`` whose machine is taken down and looked at: ``python -m testing.forced_run RESULT OPTIONS...``.

The command itself leaves its TD to the end of the process. Here it is taken down page by page as by another VMM, and
RESULT, a file of JSON, says what the host has lost, how often each injection was called, and what KVM knows of the TSC.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from swtdx import cli, machine
from swtdx.cli import session
from swtdx.linux.virt.kvm.kvm_main import Kvm
from swtdx.machine import MachineKernel
from swtdx.seam.lifecycle import HkidState
from swtdx.seam.pamt import PageType
from swtdx.uapi.kernel import Kernel
from testing.invariants import Violation, check_ownership


class Watcher:
    """Holds the machine that a command boots, as it was before the command used it."""

    def __init__(self) -> None:
        self.kernel: MachineKernel | None = None
        self._no_tsc = False
        self._pages = dict[int, str]()
        self._keyids = 0
        self._boot = machine.boot

    def boot(self, *arguments: Any, **options: Any) -> MachineKernel:
        """As `swtdx.machine.boot`."""
        kernel = self.kernel = self._boot(*arguments, **options)
        self._pages = kernel.pages.booked()
        self._keyids = kernel.tdx.free_hkids if kernel.tdx is not None else 0
        return kernel

    def at_the_end(self, kernel: Kernel) -> None:
        """As `swtdx.uapi.abilities.powers_off`, which is asked while the VM is still there: no kernel is."""
        if self.kernel is not None:
            self._no_tsc = any(_has_no_tsc(vm) for vm in self.kernel.vms)

    def found(self) -> dict[str, Any]:
        """Return what came of the machine, after the command."""
        kernel = self.kernel
        if kernel is None:
            return {"calls": {}, "struck": {}, "lost": {}, "trouble": "there was no machine"}
        trouble, lost = "", Counter[str]()
        if kernel.tdx is not None:
            lost, trouble = self._lost(kernel, self._keyids - kernel.tdx.free_hkids)
        return {
            "calls": {armed.injection.target: armed.calls for armed in kernel.faults.armed},
            "struck": {armed.injection.target: armed.struck for armed in kernel.faults.armed},
            "lost": lost,
            "trouble": trouble,
            "no_tsc": self._no_tsc,
        }

    def _lost(self, kernel: MachineKernel, keyids: int) -> tuple[Counter[str], str]:
        """Return what the host has less than before, and what of that must not be."""
        pages = {page: use for page, use in kernel.pages.booked().items() if page not in self._pages}
        lost = Counter(pages.values())
        if keyids:
            lost["KeyID"] = keyids
        try:
            check_ownership(kernel, "after the run")
        except Violation as error:
            return lost, str(error)
        pamt, kot = kernel.module.pamt, kernel.module.kot
        needless = Counter(
            use for page, use in pages.items() if pamt.type_at(pamt.index_of(page)[0]) in (PageType.NDA, PageType.RSVD)
        )
        free = set(kernel.tdx._free_hkids) if kernel.tdx is not None else set[int]()
        first = kernel.tdx.global_keyid + 1 if kernel.tdx is not None else 0
        needless["KeyID"] = sum(
            kot.state(hkid) is HkidState.FREE
            for hkid in range(first, first + kernel.processor.platform.tdx_keyids - 1)
            if hkid not in free
        )
        needless += Counter()
        return lost, f"lost, and the module does not hold it: {dict(needless)}" if needless else ""


def _has_no_tsc(vm: Kvm) -> bool:
    return vm.tdx is not None and not (vm.tdx.tsc_offset and vm.tdx.tsc_multiplier)


def main(result: str, arguments: list[str]) -> None:
    """Exits with the command's status."""
    watcher = Watcher()
    machine.boot = watcher.boot
    vars(session)["powers_off"] = watcher.at_the_end
    sys.argv = ["swtdx", "run", *arguments]
    try:
        cli.main()
    finally:
        Path(result).write_text(json.dumps(watcher.found()), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
