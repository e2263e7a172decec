# SPDX-License-Identifier: GPL-2.0-or-later
"""A pytest plugin: fixtures for testing against TDX, found by pytest wherever swtdx is installed.

================  ====================================================================================================
``tdx_kernel``    a kernel that makes TDs: a freshly booted embedded one, or this machine's (``--tdx-kernel=host``)
``kvm``           its /dev/kvm, open, as the typed client (`swtdx.uapi.client.Kvm`)
``td``            a TD that is built and measured, taken down afterwards: `BareTd` around a few bytes of code, or with
                  ``@pytest.mark.td(firmware=...)`` or ``(kernel=...)`` a `BootedTd`
``make_td``       as many more as one likes: ``make_td(code)``, ``make_td(firmware=path)``, ``make_td(kernel=path)``
``tdx_quote``     ``tdx_quote(reportdata)``: a quote of a TD that ran, under a test root
``tdx_pki``       the test root and the keys below it, one for the session (``--tdx-pki=FOLDER``: kept there)
``tdx_pccs``      a service of collateral for such quotes: ``tdx_pccs.url``, ``tdx_pccs.service.status = "OutOfDate"``
================  ====================================================================================================

A test that fails with a refused ioctl shows the kernel's reason, the rule that was broken, and what to do about it.

Markers: ``@pytest.mark.td(code=b"...", memory=2 << 20)`` or ``@pytest.mark.td(firmware="OVMF.fd", memory=256 << 20,
cpus=1)`` choose what ``td`` is (``firmware=True``: the one that ``swtdx run`` would take), and ``@pytest.mark.td(
kernel="bzImage", initrd="initrd.img", append="console=ttyS0")`` has it boot Linux: without firmware, or through the one
that ``firmware`` names. ``@pytest.mark.tdx(
kernel_release="v10", no_rbp_mod=False, processors=4, module_version="1.0", module_updated=False)`` says which kernel,
on a machine with how many processors and which TDX module, updated since the TD's launch or not; its ``inject`` makes
SEAMCALLs and ioctls fail (``inject="TDH.MEM.PAGE.AUG: OPERAND_BUSY @3"``, or a list). A firmware wants as
many processors as it gets vCPUs (one from before edk2-stable202405 waits for the others), so with
``td(firmware=...)`` and ``td(kernel=...)`` that is the default.

Nothing is imported before a fixture is asked for, so that the plugin costs a session without TDs nothing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from swtdx.image.firmware import Firmware
    from swtdx.image.linux_image import LinuxBoot
    from swtdx.quoting.pccs import PccsServer
    from swtdx.quoting.pki import Pki
    from swtdx.uapi.client import Kvm
    from swtdx.uapi.kernel import Kernel
    from swtdx.vmm.bare_td import BareTd
    from swtdx.vmm.launch import Plan
    from swtdx.vmm.outcome import Outcome

DEFAULT_TIMEOUT = 120.0
"""Seconds that a firmware gets to show the awaited text, unless told otherwise."""

_TDX_PARAMETERS = (
    *("kernel_release", "dialect", "no_rbp_mod", "processors", "module_version", "module_updated"),
    "inject",
)
_TD_PARAMETERS = ("code", "firmware", "memory", "cpus", "kernel", "initrd", "append")
DEFAULT_APPEND = "console=ttyS0"
"""The command line of a kernel that is given without one: what it prints, `BootedTd.console` has."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Which kernel, for the whole session."""
    group = parser.getgroup("swtdx", "Trust Domains")
    group.addoption(
        "--tdx-kernel",
        choices=("emulated", "host"),
        default="emulated",
        help="whose /dev/kvm the TDX fixtures use: the embedded kernel's (default), or this machine's",
    )
    group.addoption(
        "--tdx-dialect",
        choices=("upstream", "v10"),
        default="upstream",
        help="short for --tdx-kernel-release: the newest released Linux (default), or the series of November 2022",
    )
    group.addoption(
        "--tdx-kernel-release",
        metavar="RELEASE",
        default=None,
        help="which Linux the embedded kernel is, where a test does not say: 6.16, 6.18, 6.19, 7.1, 7.2, "
        "7.3 (default), next, v10",
    )
    group.addoption(
        "--tdx-inject",
        metavar="'CALL: ANSWER [WHEN]'",
        action="append",
        default=[],
        help="make a SEAMCALL or an ioctl of the embedded kernel fail, as in 'TDH.MEM.PAGE.AUG: OPERAND_BUSY every 10'",
    )
    group.addoption("--tdx-pki", metavar="FOLDER", help="where the test keys of quotes are kept; not given: nowhere")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers."""
    config.addinivalue_line("markers", f"td({', '.join(_TD_PARAMETERS)}): what the fixture td is made of (swtdx)")
    kernel = f"tdx({', '.join(_TDX_PARAMETERS)}): which kernel the fixture tdx_kernel boots (swtdx)"
    config.addinivalue_line("markers", kernel)


@pytest.hookimpl(hookwrapper=True)  # older versions of pytest know no other kind
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, None]:
    """Add to a test that failed with an ioctl what the refusal means, and what to do about it."""
    made = yield
    client = sys.modules.get("swtdx.uapi.client.error")  # not loaded: no ioctl has failed
    if client is None or call.excinfo is None or not isinstance(call.excinfo.value, client.KvmError):
        return
    from swtdx.explain.notes import failure_lines
    from swtdx.uapi.abilities import last_refusal, stated_dialect
    from swtdx.uapi.dialect import Dialect

    error = call.excinfo.value
    kernel = getattr(item, "funcargs", {}).get("tdx_kernel")
    reason = None if kernel is None else last_refusal(kernel)
    dialect = (None if kernel is None else stated_dialect(kernel)) or Dialect.UPSTREAM
    lines = failure_lines(error, dialect, reason)
    made.get_result().sections.append((f"KVM refused {error.ioctl}", "\n".join(lines)))


@pytest.fixture
def tdx_kernel(request: pytest.FixtureRequest) -> Iterator[Kernel]:
    """A kernel that makes TDs. On the host's, a test is skipped where it does not make them, with the reason."""
    from swtdx.uapi.dialect import Dialect

    options = _marker(request, "tdx", _TDX_PARAMETERS)
    try:
        dialect = Dialect(options.get("dialect", request.config.getoption("--tdx-dialect")))
    except ValueError:
        known = " or ".join(each.value for each in Dialect)
        raise pytest.UsageError(f"{request.node.nodeid}: dialect={options['dialect']!r}: it is {known}") from None
    release = options.get("kernel_release")
    if release is None and "dialect" not in options:  # the marker of a test goes before the options of the session
        release = request.config.getoption("--tdx-kernel-release")
    if request.config.getoption("--tdx-kernel") == "host":
        yield _host_kernel(dialect if "dialect" in options else None)
        return
    from swtdx.cpu.platform import Platform
    from swtdx.machine import boot

    planned = _marker(request, "td", _TD_PARAMETERS)
    boots = planned.get("firmware") or planned.get("kernel")
    processors = options.get("processors") or (planned.get("cpus", 1) if boots else 4)
    platform = Platform(logical_processors=processors)
    if "module_version" in options:
        platform = replace(platform, module_version=options["module_version"])
    if options.get("module_updated"):
        platform = replace(platform, module_updated=True)
    kernel = boot(
        dialect if release is None or "dialect" in options else None,
        platform,
        kernel_release=release,
        no_rbp_mod=options.get("no_rbp_mod", False),
        inject=_injections(options.get("inject", ()), request),
    )
    try:
        yield kernel
    finally:
        kernel.shutdown()


def _injections(of_test: str | list[str], request: pytest.FixtureRequest) -> list[str]:
    """Return the faults that the session and the test ask for. Raises UsageError for one that is not valid."""
    texts = [*request.config.getoption("--tdx-inject"), *([of_test] if isinstance(of_test, str) else of_test)]
    if not texts:
        return []
    from swtdx.inject import InjectionError
    from swtdx.inject.parse import parse_all

    try:
        parse_all(texts)
    except InjectionError as error:
        raise pytest.UsageError(f"inject: {error}") from None
    return texts


def _host_kernel(dialect: Any) -> Kernel:
    from swtdx.uapi.host import HostKernel, survey

    offer = survey()
    if not offer.tdx:
        pytest.skip(str(offer))
    if dialect not in (None, offer.dialect):
        pytest.skip(f"the test is for the {dialect.value} dialect: {offer}")
    return HostKernel()


@pytest.fixture
def kvm(tdx_kernel: Kernel) -> Iterator[Kvm]:
    """/dev/kvm of ``tdx_kernel``."""
    from swtdx.uapi.client import Kvm

    with Kvm(tdx_kernel) as device:
        yield device


@pytest.fixture
def make_td(kvm: Kvm) -> Iterator[Callable[..., Any]]:
    """``make_td(code)``, ``make_td(firmware=path)`` or ``make_td(kernel=path)``: a TD, taken down after the test."""
    with ExitStack() as undo:

        def make(
            code: bytes | None = None,
            *,
            firmware: str | Path | bool | None = None,
            kernel: str | Path | None = None,
            initrd: str | Path | None = None,
            append: str | None = None,
            memory: int | None = None,
            cpus: int = 1,
        ) -> BareTd | BootedTd:
            from swtdx.vmm.bare_td import DEFAULT_CODE, DEFAULT_MEMORY, BareTd

            if kernel is None and (initrd is not None or append is not None):
                raise pytest.UsageError("initrd and append go with a kernel: give kernel=")
            if kernel is None and not firmware:
                if cpus != 1:
                    raise pytest.UsageError(
                        "a TD of a few bytes of code has one vCPU: cpus goes with firmware or kernel"
                    )
                bare = BareTd(kvm, DEFAULT_CODE if code is None else code, memory or DEFAULT_MEMORY)
                return undo.enter_context(bare)
            if code is not None:
                raise pytest.UsageError("a TD is made of code or of a firmware or kernel, not of both")
            _check_processors(kvm.kernel, cpus)
            size = memory or (256 << 20 if kernel is None else 512 << 20)
            linux = None if kernel is None else _linux(kernel, initrd, append, size)
            return undo.enter_context(BootedTd(kvm, _plan(firmware, linux, size, cpus)))

        yield make


@pytest.fixture
def td(request: pytest.FixtureRequest, make_td: Callable[..., Any]) -> Any:
    """The TD that ``@pytest.mark.td(...)`` describes; without the marker one that writes to port 0x80 in a loop."""
    return make_td(**_marker(request, "td", _TD_PARAMETERS))


@pytest.fixture(scope="session")
def tdx_pki(request: pytest.FixtureRequest) -> Pki:
    """The test keys of the session: a root that no verifier trusts unless it is told to."""
    from swtdx.quoting.pki import Pki, open_pki

    folder = request.config.getoption("--tdx-pki")
    return Pki.new() if folder is None else open_pki(Path(folder))


@pytest.fixture
def tdx_quote(tdx_kernel: Kernel, kvm: Kvm, tdx_pki: Pki) -> Iterator[Callable[..., bytes]]:
    """``tdx_quote(reportdata)``: a TD asks for a quote; it is built at the first call. On the embedded kernel only."""
    from swtdx.quoting.enclave import QuoteVersion, QuotingEnclave
    from swtdx.quoting.quote_sources import EnclaveQuotes
    from swtdx.quoting.quoting_td import QuotingTd
    from swtdx.uapi.abilities import verifying_reports

    machine = verifying_reports(tdx_kernel)
    if machine is None:
        pytest.skip("the keys of this machine's own quoting enclave are not test keys: use the embedded kernel")
    with ExitStack() as undo:
        tds: dict[str, QuotingTd] = {}

        def quote(reportdata: bytes = b"", *, version: str = "default") -> bytes:
            if version not in tds:
                enclave = QuotingEnclave(tdx_pki, machine.everifyreport2, QuoteVersion(version))
                tds[version] = undo.enter_context(QuotingTd(kvm, EnclaveQuotes(enclave)))
            return tds[version].quote(reportdata)

        yield quote


@pytest.fixture
def tdx_pccs(tdx_pki: Pki) -> Iterator[PccsServer]:
    """A service of collateral on a free port of this machine."""
    from swtdx.quoting.pccs import CollateralService, PccsServer

    with PccsServer(CollateralService(tdx_pki)) as server:
        yield server


def _check_processors(kernel: Kernel, cpus: int) -> None:
    """Refuse a machine on which a firmware would wait for vCPUs that never come: see the top of this module.

    The processors of the host's kernel are not checked.
    """
    from swtdx.uapi.abilities import logical_processors

    if logical_processors(kernel) not in (None, cpus):
        raise pytest.UsageError(
            f"a firmware with {cpus} vCPU needs a machine with as many processors: @pytest.mark.tdx(processors={cpus})"
        )


def _firmware(named: str | Path | bool) -> Firmware:
    from swtdx.image.firmware import FirmwareError, find_firmware

    if named is not True:
        return find_firmware(Path(str(named)))
    try:
        return find_firmware()
    except FirmwareError as error:
        pytest.skip(str(error))


def _linux(kernel: str | Path, initrd: str | Path | None, append: str | None, memory: int) -> LinuxBoot:
    """Raises UsageError for files that are no Linux kernel and initrd, or do not fit."""
    from swtdx.image.linux_image import LinuxImageError, load

    files = Path(kernel), None if initrd is None else Path(initrd)
    try:
        return load(*files, DEFAULT_APPEND if append is None else append, memory)
    except LinuxImageError as error:
        raise pytest.UsageError(f"kernel: {error}") from None


def _plan(firmware: str | Path | bool | None, linux: LinuxBoot | None, memory: int, cpus: int) -> Plan:
    from swtdx.vmm.launch import Plan, direct_boot

    if firmware:
        return Plan(_firmware(firmware), memory, cpus, linux=linux)
    assert linux is not None
    direct, shim = direct_boot(linux, memory, cpus, td=True)
    return Plan(shim, memory, cpus, direct=direct)


def _marker(request: pytest.FixtureRequest, name: str, parameters: tuple[str, ...]) -> dict[str, Any]:
    """The marker's arguments by name, the first one also by position. Raises UsageError for what it does not know."""
    marker = request.node.get_closest_marker(name)
    if marker is None:
        return {}
    given: dict[str, Any] = dict(zip(parameters, marker.args, strict=False)) | marker.kwargs
    unknown = sorted(set(given) - set(parameters))
    if unknown or len(marker.args) > len(parameters):
        raise pytest.UsageError(
            f"@pytest.mark.{name} takes {', '.join(parameters)}, not {', '.join(unknown) or 'more'}"
        )
    return given


class BootedTd:
    """A TD that boots a firmware, or Linux, on the q35 board. ``machine`` is the whole of it, `run` starts it, once."""

    def __init__(self, device: Kvm, plan: Plan) -> None:
        from swtdx.vmm.launch import launch

        self._console = bytearray()
        self.machine = launch(device, replace(plan, serial=self._console.extend))

    @property
    def console(self) -> str:
        """What the guest has written to its serial port so far."""
        return self._console.decode("utf-8", "replace")

    @property
    def mrtd(self) -> str:
        """MRTD as the calls of this launch predict it, in hex."""
        from swtdx.image.mrtd import Order

        return self.machine.mrtd[Order.PER_PAGE].hex()

    def run(self, until: str | None = None, timeout: float = DEFAULT_TIMEOUT) -> Outcome:
        """Run it to its end, or until the console shows ``until``. Raises TimeoutError with the end of the console."""
        from swtdx.vmm.console import TextWatch
        from swtdx.vmm.outcome import End, Outcome
        from swtdx.vmm.run import Run

        run = Run(self.machine)
        watch, seen = TextWatch(until) if until is not None else None, 0
        deadline = time.monotonic() + timeout
        run.start()
        try:
            while run.wait(0.05) is None:
                if watch is not None:
                    fresh = bytes(self._console[seen:])
                    seen += len(fresh)
                    if watch.feed(fresh):
                        run.finish(Outcome(End.UNTIL, f"the console showed {until!r}"))
                if time.monotonic() > deadline:
                    run.finish(Outcome(End.TIMEOUT, f"time was up after {timeout:g} s"))
        finally:
            run.stop()
        assert run.outcome is not None
        if run.outcome.end is End.TIMEOUT:
            raise TimeoutError(f"{run.outcome.text}; the console ends with {self.console[-200:]!r}")
        return run.outcome

    def __enter__(self) -> BootedTd:
        return self

    def __exit__(self, *exception: object) -> None:
        self.machine.close()
