# SPDX-License-Identifier: GPL-2.0-or-later
"""``script/fuzz parsers``: whatever is given to a verifier ends in a result or in the documented exception.

TDVF images, kernels, boot loaders and their configuration, event logs, CCEL tables, quotes, collateral, TDREPORTs and
records of launches, damaged.  A case fails if another exception comes out, if what comes out cannot be written as JSON
or shown on a terminal, or if it takes longer than `PATIENCE`; the process may not grow by more than `MEMORY`.  Seeds
are made here from the specifications; real firmware and the reference vectors are taken too where they are at hand.
"""

from __future__ import annotations

import json
import resource
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from swtdx.attest.appraisal import appraise, claims
from swtdx.attest.authenticode import PeError, authenticode_digest
from swtdx.attest.board_log import predict_from_log
from swtdx.attest.build_calls import RecordError, recorded_build
from swtdx.attest.direct_boot import predict_direct_boot
from swtdx.attest.disk_boot import DiskBoot, Image, gpt_event, predict_disk_boot
from swtdx.attest.divergence import compare
from swtdx.attest.event_log import EventLogError, parse_event_log, parse_table
from swtdx.attest.evidence import EvidenceError, compare_evidence, evidence_of
from swtdx.attest.grub_boot import carry_out
from swtdx.attest.grub_image import parse_grub
from swtdx.attest.hcl_report import is_hcl_report, parse_hcl_report
from swtdx.attest.ima_log import parse_ima_log
from swtdx.attest.inspection import inspect_image
from swtdx.attest.machine_files import MachineFiles, read_variables
from swtdx.attest.measure import MeasureError, complete, measure_image
from swtdx.attest.memory_picture import svg_picture, text_picture
from swtdx.attest.pck import pck_of
from swtdx.attest.policy import Policy, violations
from swtdx.attest.policy_file import PolicyError, parse_policy
from swtdx.attest.quote import QuoteError, parse_quote
from swtdx.attest.replay import replay
from swtdx.attest.report import ReportError, parse_report
from swtdx.attest.secure_boot import allowing_signature, entries
from swtdx.attest.tcb_facts import TcbFacts
from swtdx.attest.td_shim import measured_hob, predict_td_shim, with_payload
from swtdx.attest.variable_store import VariableStoreError, parse_variables
from swtdx.attest.verify import CollateralError, VerificationError, Verified, verify_quote
from swtdx.image.linux_image import LinuxBoot, LinuxImageError
from swtdx.image.linux_image import parse as parse_linux
from swtdx.image.tdvf import TdvfError
from swtdx.image.tdvf import parse as parse_tdvf
from testing import uefi_image
from testing.fuzzing import parser_seeds
from testing.fuzzing.mutation import Seed, mutated

PATIENCE = 30.0
"""Seconds that a case may take."""
MEMORY = 2 << 30
"""Bytes that the process may grow by."""
VALID_AT = 1750377600


@dataclass(frozen=True)
class Kind:
    """One kind of input: what damaged ones are fed to, what may be raised, and how many of 100 cases it gets."""

    name: str
    share: int
    seeds: Callable[[], tuple[Seed, ...]]
    feed: Callable[[bytes], object]
    documented: tuple[type[Exception], ...]


@dataclass
class Result:
    """What a campaign found: of each kind the inputs accepted and refused, and a sentence for each case that failed."""

    accepted: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")

    def lines(self) -> Iterator[str]:
        """For a person: what was fed, and each failure."""
        for kind in KINDS:
            accepted, refused = self.accepted[kind.name], self.refused[kind.name]
            yield f"{kind.name:<12}{accepted:>8,} accepted{refused:>9,} refused"
        yield f"slowest: {self.slowest[0]:.2f} s ({self.slowest[1]})"
        yield from self.failures


class TooSlow(Exception):
    """A case has taken longer than `PATIENCE`."""


def campaign(cases: int, seed: int, progress: Callable[[int], object] = lambda done: None) -> Result:
    """Feed ``cases`` damaged inputs; ``progress`` is told how many are done. The same seed gives the same cases."""
    result = Result()
    dealt = [kind for kind in KINDS for _ in range(kind.share)]
    with _bounded():
        for number in range(cases):
            random = Random(f"{seed}:{number}")
            kind = random.choice(dealt)
            _case(kind, random, f"{kind.name}, seed {seed}, case {number}", result)
            progress(number + 1)
    return result


def _case(kind: Kind, random: Random, name: str, result: Result) -> None:
    """Make one case and feed it."""
    seeds = kind.seeds()
    data = mutated(random.choice(seeds), seeds, random)
    started = time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        kind.feed(data)
        result.accepted[kind.name] += 1
    except kind.documented as refusal:
        result.refused[kind.name] += 1
        if not str(refusal) or "\n" in str(refusal):
            result.failures.append(f"{name}: no sentence: {refusal!r}")
    except BaseException as error:  # a panic of a library below is not an Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        result.failures.append(f"{name}: {error!r}")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    taken = time.monotonic() - started
    if taken > PATIENCE:  # in a library that signals do not interrupt
        result.failures.append(f"{name}: took {taken:.1f} s")
    result.slowest = max(result.slowest, (taken, name))


@contextmanager
def _bounded() -> Iterator[None]:
    """Address space and time are limited while the campaign runs."""

    def too_slow(number: int, frame: object) -> None:
        raise TooSlow(f"after {PATIENCE:g} s")

    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, too_slow)
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.signal(signal.SIGALRM, handler)


# --- what is fed ------------------------------------------------------------------------------------------------------


def _image(data: bytes) -> None:
    inspection = inspect_image(data)
    json.dumps(inspection.as_json())
    text_picture(inspection)
    svg_picture(inspection)
    json.dumps(measure_image(data).as_json())


def _boot(data: bytes) -> None:
    kernel = parse_linux(uefi_image.efi_kernel(), "vmlinuz")
    json.dumps(predict_direct_boot(data, LinuxBoot(kernel, b"initrd", "quiet"), 64 << 20).as_json())


def _loader(data: bytes) -> None:
    chain = (Image("first", data), Image("second", parser_seeds.loaders()[-1].data))
    for boot in (DiskBoot(chain, _files), DiskBoot(chain[:1], _files)):
        with suppress(MeasureError):  # not a loader that is known, or one that nothing can follow
            json.dumps(predict_disk_boot(parser_seeds.bootable_images()[0].data, boot, 64 << 20).as_json())
    kernel = LinuxBoot(parse_linux(data, "linux.efi"), b"initrd", "quiet")
    json.dumps(predict_direct_boot(parser_seeds.bootable_images()[0].data, kernel, 64 << 20).as_json())


def _files(device: str, path: str) -> bytes | None:
    return parser_seeds.scripts()[0].data if path.endswith("grub.cfg") else parser_seeds.kernels()[0].data


def _script(data: bytes) -> None:
    grub = parse_grub(parser_seeds.loaders()[-1].data)
    assert grub is not None
    kernel = parser_seeds.kernels()[0].data
    files = {"/EFI/debian/grub.cfg": data, "/grub/grub.cfg": parser_seeds.scripts()[0].data, "/vmlinuz": kernel}
    boot = carry_out(grub, lambda device, path: files.get(path), ("hd0,gpt1",))
    assert all(event.words.isprintable() for event in boot.events)


def _shim(data: bytes) -> None:
    tdvf = complete(with_payload(parse_tdvf(data, "shim"), b"kernel", "quiet"))
    json.dumps(predict_td_shim(tdvf, parser_seeds.hobs()[0].data).as_json())


def _store(data: bytes) -> None:
    kernel = parse_linux(uefi_image.efi_kernel(), "vmlinuz")
    machine = MachineFiles(variables=read_variables(data))
    with suppress(MeasureError):  # options in another order, or Secure Boot that refuses the kernel
        image = parser_seeds.bootable_images()[0].data
        json.dumps(predict_direct_boot(image, LinuxBoot(kernel), 64 << 20, machine=machine).as_json())


def _variables(data: bytes) -> None:
    assert parse_variables(data).secure_boot in (True, False)


def _kernel(data: bytes) -> None:
    image = parse_linux(data, "vmlinuz").image
    assert len(authenticode_digest(image)) == 48
    allowing_signature(image, parser_seeds.database(), data)
    list(entries(data, parser_seeds.X509))


def _log(data: bytes) -> None:
    events = parse_event_log(data)
    json.dumps([event.as_json() for event in events])
    assert all(event.words.isprintable() for event in events)
    replay(events)
    kernel = parse_linux(uefi_image.efi_kernel(), "vmlinuz")
    with suppress(MeasureError):  # it is the log of another machine, of another firmware, or of no direct boot
        predict_from_log(parser_seeds.bootable_images()[0].data, LinuxBoot(kernel), events)


def _ima(data: bytes) -> None:
    events = parse_ima_log(data)
    json.dumps([event.as_json() for event in events])
    assert all(event.words.isprintable() for event in events)


def _quote(data: bytes) -> None:
    quote = parse_quote(data)
    json.dumps(quote.as_json())
    pck_of(quote)
    violations(Policy(), quote.body)


def _verified(data: bytes) -> None:
    verify_quote(parse_quote(data), parser_seeds.collateral()[-1].data, VALID_AT)


def _collateral(data: bytes) -> None:
    verify_quote(parse_quote(parser_seeds.genuine_quotes()[0].data), data, VALID_AT)


def _report(data: bytes) -> None:
    read = parse_hcl_report if is_hcl_report(data) else parse_report
    json.dumps(read(data).as_json())


def _policy(data: bytes) -> None:
    policy = parse_policy(data)
    quote = parse_quote(parser_seeds.made_quote(4))
    verified, facts = Verified("OutOfDate", ("X",), "", VALID_AT), TcbFacts(0, 1)
    judged = appraise(policy, quote, verified, facts, parse_event_log(parser_seeds.logs()[0].data))
    json.dumps(claims(quote, data, VALID_AT, judged, verified))


def _evidence(data: bytes) -> None:
    one = evidence_of(data, "a")
    json.dumps(compare_evidence(one, evidence_of(parser_seeds.logs()[0].data, "b")).as_json())
    compare_evidence(evidence_of(parser_seeds.made_quote(4), "b"), one)


def _record(data: bytes) -> None:
    build = recorded_build(data)
    json.dumps(compare(build, recorded_build(parser_seeds.records()[0].data)).as_json())


_IMAGE_ERRORS = (TdvfError, MeasureError)
KINDS = (
    Kind("image", 14, parser_seeds.images, _image, _IMAGE_ERRORS),
    Kind("firmware", 1, parser_seeds.firmware, _image, _IMAGE_ERRORS),
    Kind("boot", 8, parser_seeds.bootable_images, _boot, _IMAGE_ERRORS),
    Kind("variables", 8, parser_seeds.variables, _variables, (VariableStoreError,)),
    Kind("kernel", 8, parser_seeds.kernels, _kernel, (LinuxImageError, PeError)),
    Kind("loader", 8, parser_seeds.loaders, _loader, (LinuxImageError, *_IMAGE_ERRORS)),
    Kind("script", 6, parser_seeds.scripts, _script, (MeasureError,)),
    Kind("disk", 2, parser_seeds.disks, gpt_event, (MeasureError,)),
    Kind("store", 3, parser_seeds.stores, _store, (VariableStoreError,)),
    Kind("td-shim", 4, parser_seeds.shims, _shim, _IMAGE_ERRORS),
    Kind("hob", 2, parser_seeds.hobs, measured_hob, (MeasureError,)),
    Kind("log", 12, parser_seeds.logs, _log, (EventLogError,)),
    Kind("ima", 3, parser_seeds.ima_logs, _ima, (EventLogError,)),
    Kind("table", 4, parser_seeds.tables, parse_table, (EventLogError,)),
    Kind("quote", 14, parser_seeds.quotes, _quote, (QuoteError,)),
    Kind("verify", 4, parser_seeds.genuine_quotes, _verified, (QuoteError, CollateralError, VerificationError)),
    Kind("collateral", 2, parser_seeds.collateral, _collateral, (CollateralError, VerificationError)),
    Kind("report", 6, parser_seeds.reports, _report, (ReportError,)),
    Kind("policy", 4, parser_seeds.policies, _policy, (PolicyError,)),
    Kind("evidence", 6, parser_seeds.evidence, _evidence, (EvidenceError,)),
    Kind("record", 6, parser_seeds.records, _record, (RecordError,)),
)
