# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel entered without firmware, as a TD by the shim and as an ordinary VM by its registers, on the whole machine.

The kernel is a few instructions (``direct_kernel.S``) that use what the boot protocol promises: parameters, command
line, initrd, all RAM of the memory map, and processors that come when they are called.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from swtdx.cpu.platform import Platform
from swtdx.image.boot_protocol import COME_BACK, MAILBOX
from swtdx.image.initial_memory import td_hob
from swtdx.image.linux_image import LinuxBoot, parse
from swtdx.image.mrtd import Order, predict_mrtd
from swtdx.machine import boot
from swtdx.uapi.client import Kvm
from swtdx.uapi.dialect import Dialect
from swtdx.vmm.launch import Plan, TdParameters, check_plan, direct_boot, launch
from swtdx.vmm.outcome import End
from swtdx.vmm.run import Run
from tests.image.test_linux_image import bzimage

MIB = 1 << 20
SOURCE = Path(__file__).with_name("direct_kernel.S")
COMMAND_LINE, INITRD = "console=ttyS0 quiet", b"an initrd"
Assembler = Callable[..., bytes]


@pytest.fixture
def kernel_code(tmp_path: Path, skip_loudly: Callable[[str], NoReturn]) -> Assembler:
    def assemble(*, td: bool, cpus: int) -> bytes:
        compiled, linked = tmp_path / "kernel.o", tmp_path / "kernel.bin"
        definitions = [
            f"-DCPUS={cpus}",
            f"-DMAILBOX={MAILBOX if td else 0:#x}",
            f"-DCOME_BACK={COME_BACK:#x}",
            *(["-DTD"] if td else []),
        ]
        try:
            subprocess.run(["gcc", "-m64", *definitions, "-c", "-o", compiled, SOURCE], check=True)
            subprocess.run(["objcopy", "-O", "binary", "-j", ".text", compiled, linked], check=True)
        except FileNotFoundError as error:
            skip_loudly(f"no {error.filename}: entering a kernel without firmware is not shown")
        return linked.read_bytes()

    return assemble


def run_directly(
    code: bytes, td: TdParameters | None, dialect: Dialect, *, cpus: int = 1, huge_pages: bool = True, memory: int = 96
) -> tuple[str, dict[str, str]]:
    """What it printed until it powered off; MRTD as predicted and as the TDX module has it."""
    linux = LinuxBoot(parse(bzimage(kernel=bytes(0x200) + code), "a test's kernel"), INITRD, COMMAND_LINE)
    direct, firmware = direct_boot(linux, memory * MIB, cpus, td=td is not None)
    printed = bytearray()
    plan = Plan(firmware, memory * MIB, cpus, td, direct=direct, serial=printed.extend)
    kernel = boot(dialect, Platform(memory_size=1 << 30, logical_processors=cpus), tdx_huge_page=huge_pages)
    digests: dict[str, str] = {}
    before = dict(kernel.pages.in_use)
    with Kvm(kernel, dialect) as device, launch(device, plan) as machine:
        if td is not None:
            digests["module"] = kernel.inspect_td(machine.vm.fd)["mrtd"]
            tdvf = check_plan(plan)
            assert tdvf is not None
            ram = plan.layout.ram
            digests["predicted"] = predict_mrtd(tdvf, Order.PER_PAGE, lambda section: td_hob(tdvf, section, ram)).hex()
        run = Run(machine)
        run.start()
        try:
            deadline = time.monotonic() + 120
            while run.wait(0.05) is None:
                assert time.monotonic() < deadline, printed
        finally:
            run.stop()
    assert run.outcome is not None
    assert run.outcome.end is End.POWER_OFF, run.outcome
    assert dict(kernel.pages.in_use) == before
    return printed.decode(), digests


@pytest.mark.parametrize("dialect", Dialect)
@pytest.mark.parametrize("gpa_width", [48, 52])
def test_a_td_comes_from_its_reset_vector_into_the_kernel(
    dialect: Dialect, gpa_width: int, kernel_code: Assembler
) -> None:
    printed, mrtd = run_directly(kernel_code(td=True, cpus=1), TdParameters(gpa_width=gpa_width), dialect)
    # Two ranges of RAM: below 640 KiB, and from the parameters to the end.
    assert printed == "console=ttyS0 quiet|an initrd|rr|"
    assert mrtd["module"] == mrtd["predicted"]


def test_pages_of_4_kib_are_accepted_where_the_kernel_maps_no_larger_ones(kernel_code: Assembler) -> None:
    code = kernel_code(td=True, cpus=1)
    printed, _ = run_directly(code, TdParameters(), Dialect.UPSTREAM, huge_pages=False)
    assert printed == "console=ttyS0 quiet|an initrd|rr|"


@pytest.mark.parametrize("gpa_width", [48, 52])
def test_the_other_vcpus_wait_at_the_mailbox_come_when_called_and_go_back(
    gpa_width: int, kernel_code: Assembler
) -> None:
    td = TdParameters(gpa_width=gpa_width)
    printed, _ = run_directly(kernel_code(td=True, cpus=4), td, Dialect.UPSTREAM, cpus=4)
    assert printed == "console=ttyS0 quiet|an initrd|rr|bcdtttbcd"


def test_an_ordinary_vm_starts_at_the_entry_point(kernel_code: Assembler) -> None:
    printed, _ = run_directly(kernel_code(td=False, cpus=1), None, Dialect.UPSTREAM)
    assert printed == "console=ttyS0 quiet|an initrd|rr|"
