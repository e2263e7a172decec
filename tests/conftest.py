# SPDX-License-Identifier: GPL-2.0-or-later
"""What all tests share: what this machine offers, said aloud, and the way to skip where it does not.

Nothing a test needs is looked for in silence. The banner says what is here; a test that needs what is not is skipped
through `skip_loudly`, and ``-ra`` (pyproject.toml) lists each skip with its sentence at the end of the run.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn
from uuid import UUID

import pytest
from hypothesis import settings

from testing import tally
from testing.places import firmware_image, measuring_firmware_image, reference_directory
from testing.published import facts
from tests.seam import status_coverage

KnownFirmware = tuple[bytes, dict[str, Any]]
"""An image, and its entry in the firmware of testing/published.json."""
_GLOBAL_VARIABLE = UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")  # EFI_GLOBAL_VARIABLE, UEFI 3.3


def why_no_host_kvm() -> str | None:
    """None where the real /dev/kvm opens for us, else the reason in the system's words."""
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return error.strerror or str(error)
    return None


settings.register_profile("repeatable", derandomize=True)


def pytest_configure(config: pytest.Config) -> None:
    """The same commit gets the same verdict: new cases are for script/fuzz and ``--hypothesis-profile=default``."""
    config.pluginmanager.register(tally, "tally")
    if not config.getoption("--hypothesis-profile", None):
        settings.load_profile("repeatable")
    # No test makes keys in the folder of the person who runs it.
    folder = tempfile.TemporaryDirectory(prefix="swtdx-test-pki-")
    config.add_cleanup(folder.cleanup)
    os.environ["SWTDX_PKI"] = str(Path(folder.name) / "pki")


def pytest_report_header(config: pytest.Config) -> list[str]:
    """The session's banner: which halves of the suite this machine can show."""
    refusal = why_no_host_kvm()
    reference = reference_directory()
    return [
        f"swtdx on Linux {platform.release()}, {os.cpu_count()} processors",
        f"real /dev/kvm: {'opens' if refusal is None else f'no ({refusal}): tests against the real host are skipped'}",
        f"firmware: {firmware_image() if firmware_image().is_file() else 'none: install the package ovmf'}",
        f"reference: {reference if reference.is_dir() else f'none at {reference}: -m published is empty'}",
    ]


SLOW = {
    "docs": 220,  # run commands, and build a site
    "pytest_plugin": 40,  # run sessions of pytest
    "exec": 150,  # run programs
    "cli/test_boot.py": 20,  # boot firmware
    "cli/test_linux.py": 200,  # boot Linux
    "cli/test_completion.py": 5,  # run shells
    "cli/test_gdb.py": 10,  # run gdb
    "cli/test_standard_streams.py": 15,  # run the command in processes of its own
    "cli/test_endless_inputs.py": 10,  # read inputs without an end
    "cpu/test_translator.py": 15,  # a fuzzing campaign
    "machine/test_bench.py": 5,  # run the benchmark
    "machine/test_failure_injection.py": 15,  # a machine for each call that can fail
    "machine/test_fuzzed_kvm.py": 15,  # a fuzzing campaign
    "machine/test_shim.py": 15,  # boot a kernel of our own many times
    "machine/test_shim_linux.py": 30,  # boot Linux
    "machine/test_snapshots_of_kvm.py": 5,
    "machine/test_snapshots.py": 25,  # boot machines of our own many times
    "machine/test_side_by_side.py": 15,  # run many machines
    "machine/test_virtio_firmware.py": 15,  # boot firmware
    "machine/test_virtio_linux.py": 40,  # boot Linux
    "seam/test_random_calls.py": 15,  # a fuzzing campaign
    # more than two seconds for other reasons, mostly for their number
    "architecture/test_function_length.py": 5,
    "architecture/test_layers.py": 5,
    "architecture/test_words.py": 6,
    "attest/test_attestation_formats.py": 3,
    "attest/test_direct_boot.py": 18,
    "attest/test_fuzzed_parsers.py": 4,
    "attest/test_secure_boot.py": 8,
    "cli/test_bad_input.py": 5,
    "cli/test_fw_cfg_dump.py": 3,
    "cli/test_guest_without_tdx.py": 3,
    "cli/test_interruption.py": 14,
    "cli/test_messages.py": 7,
    "cli/test_output.py": 10,
    "cli/test_plain.py": 2,
    "cli/test_quoting_commands.py": 5,
    "cli/test_run.py": 13,
    "cli/test_snapshots.py": 12,
    "cli/test_verifier.py": 3,
    "cpu/test_alignment.py": 3,
    "cpu/test_execution.py": 2,
    "cpu/test_float_isolation.py": 20,
    "cpu/test_instructions.py": 26,
    "cpu/test_interruptible.py": 6,
    "cpu/test_random_code.py": 4,
    "cpu/test_undefined.py": 13,
    "linux/arch/x86/kvm/test_pic_interrupts.py": 4,
    "linux/arch/x86/kvm/vmx/test_vmx.py": 11,
    "linux/arch/x86/kvm/x86/test_disable_exits.py": 4,
    "linux/arch/x86/kvm/x86/test_tsc_frequency.py": 4,
    "linux/test_calls_in_progress.py": 3,
    "linux/test_timers.py": 2,
    "linux/virt/kvm/test_memslots.py": 7,
    "linux/virt/kvm/test_mmu_notifier.py": 6,
    "machine/test_first_touch.py": 5,
    "machine/test_trace.py": 3,
    "machine/test_trust_domain.py": 7,
    "quoting/test_qgs.py": 5,
    "snapshot/test_fields.py": 3,
    "snapshot/test_values.py": 3,
    "seam/test_contention.py": 3,
    "seam/test_every_op_state.py": 3,
    "seam/test_every_sept_state.py": 3,
    "seam/test_failed_checks.py": 3,
    "seam/test_mem.py": 5,
    "seam/test_op_states.py": 4,
    "seam/test_operands.py": 5,
    "seam/test_version_1_0.py": 3,
    "test_tally.py": 3,
    "uapi/test_client_examples.py": 4,
    "uapi/test_refusals.py": 3,
    "vmm/test_fuzzed_board.py": 4,
    "vmm/test_gdb_stub.py": 26,
}
"""Folders and files whose tests are marked slow: ``script/test --quick`` omits them. With about how many seconds they
take: the slowest start first where pytest-xdist runs several at a time."""

ONE_BY_ONE = {"docs/test_howto.py", "cli/test_linux.py", "machine/test_shim_linux.py", "machine/test_virtio_linux.py"}
"""Files whose tests pytest-xdist may spread over its workers: each takes long and shares nothing with the others."""


def place(path: str) -> str:
    """What a node id or a path of a test is below ``tests``."""
    return path.partition("::")[0].removeprefix("tests/")


def seconds(path: str) -> int:
    """Return about how many seconds the tests of a file of `SLOW` take, 0 for one that is not there."""
    return SLOW.get(place(path), SLOW.get(place(path).partition("/")[0], 0))


TOGETHER = {
    "docs/test_howto.py": ("[tutorial]", "[inside]", "[first-touch]"),
    "cli/test_linux.py": ("_report_is_verified", "_the_same_report_and_time", "_an_rtmr_through_sysfs"),
}
"""Tests of such files that share what takes long, a traced run or a boot: ends of their names."""


def unit(nodeid: str) -> str:
    """What pytest-xdist gives to a worker at once: tests with the same answer run in one process."""
    if nodeid.endswith(TOGETHER.get(place(nodeid), ())):
        return f"{place(nodeid)}, together"
    return nodeid if place(nodeid) in ONE_BY_ONE else nodeid.partition("::")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A worker gets the tests of a whole file, or one test of `ONE_BY_ONE`, in the order of `SLOW`."""
    config.option.loadscopereorder = False  # it would put files of many tests first
    scheduler = import_module("xdist.scheduler").LoadScopeScheduling(config, log)
    scheduler._split_scope = unit
    return scheduler


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Compare what the run met with published lists, in the one process that knows all of it."""
    if not hasattr(session.config, "workerinput"):
        status_coverage.compare(session)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what is slow, and what needs published material; without the material the latter is not selected."""
    published = [item for item in items if place(item.nodeid).startswith("published/")]
    for item in published:
        item.add_marker(pytest.mark.published)
    if published and not reference_directory().is_dir():
        config.hook.pytest_deselected(items=published)
        dropped = set(published)
        items[:] = [item for item in items if item not in dropped]
    for item in items:
        if seconds(item.nodeid):
            item.add_marker(pytest.mark.slow)
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: -seconds(item.nodeid))


def skip(sentence: str) -> NoReturn:
    """Skip the test that runs; ``sentence`` names what is missing, and what is therefore not shown."""
    pytest.skip(" ".join(sentence.split()))


@pytest.fixture
def skip_loudly() -> Callable[[str], NoReturn]:
    """``skip_loudly("what is missing, and what is therefore not shown")`` skips the test with that one sentence."""
    return skip


@pytest.fixture(scope="session")
def ovmf_image() -> Path:
    """The path of the distribution's TDX-capable OVMF; tests that boot it skip without it."""
    image = firmware_image()
    if not image.is_file():
        pytest.skip(f"no firmware at {image}: install the package ovmf")
    return image


@pytest.fixture(scope="session")
def known_firmware(ovmf_image: Path) -> KnownFirmware:
    """The distribution's OVMF, if it is a build whose sections and MRTD are published."""
    image = ovmf_image.read_bytes()
    known = facts()["firmware"].get(hashlib.sha256(image).hexdigest())
    if known is None:
        pytest.skip(f"{ovmf_image} is another build than the published ones: its MRTD is not compared")
    return image, known


@pytest.fixture(scope="session")
def host_kvm() -> Path:
    """The real /dev/kvm; tests that use it skip where it does not open."""
    refusal = why_no_host_kvm()
    if refusal is not None:
        pytest.skip(f"the real /dev/kvm does not open ({refusal}): only the emulated half is shown")
    return Path("/dev/kvm")


@pytest.fixture(autouse=True)
def machines_go_off(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Emulated machines that a test booted are switched off after it: descriptors and threads do not pile up."""
    kernel = sys.modules.get("swtdx.linux.kernel")
    if kernel is None:
        yield
        return
    booted: list[Any] = []
    boot = kernel.EmulatedKernel.__init__

    def noted(self: Any, *arguments: Any, **options: Any) -> None:
        boot(self, *arguments, **options)
        booted.append(self)

    monkeypatch.setattr(kernel.EmulatedKernel, "__init__", noted)
    yield
    for machine in booted:
        machine.shutdown()


@pytest.fixture(scope="session")
def measuring_firmware_as_built() -> bytes:
    """edk2's TDX build with Secure Boot's platform key, as Debian's ovmf-inteltdx has it."""
    try:
        return measuring_firmware_image()
    except FileNotFoundError as error:
        pytest.skip(f"{error}; not shown: predicted RTMRs are those of a launch")


@pytest.fixture(scope="session")
def measuring_firmware(measuring_firmware_as_built: bytes) -> bytes:
    """The same with its platform key deleted: with it no kernel starts but a signed one."""
    image = bytearray(measuring_firmware_as_built)
    name = "PK\0".encode("utf-16-le")
    at = image.find(_GLOBAL_VARIABLE.bytes_le + name)
    if at >= 0 and image[at - 44 : at - 41] == b"\xaa\x55\x3f":
        image[at - 42] = 0x3C  # the state of a deleted variable
    return bytes(image)
