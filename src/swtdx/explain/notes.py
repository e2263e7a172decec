# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``swtdx run`` prints when a launch or a run fails: the explanation, and how to ask for more.

`add_notes` puts it on the exception, as notes, where the command line finds it when it has said its sentence. A kernel
that tells its reason (the embedded one) makes a list of all rules that could be meant superfluous.
"""

from __future__ import annotations

import errno as errnos
from typing import TYPE_CHECKING, Any

from swtdx.cpu.vmx import reason_name
from swtdx.explain import words
from swtdx.uapi import kvm
from swtdx.uapi.abilities import last_refusal
from swtdx.uapi.client import KvmError
from swtdx.uapi.client.error import errno_name
from swtdx.uapi.dialect import Dialect
from swtdx.uapi.kernel import Kernel
from swtdx.uapi.reason import NO_REASON, Reason
from swtdx.vmm.outcome import End, Outcome

if TYPE_CHECKING:
    from swtdx.explain.failure import Failed

SHOWN_RULES = 3
"""With more rules than these, and a reason, the rules are left to ``swtdx explain``."""
VP_ENTER = "TDH.VP.ENTER"


def add_notes(error: Exception, kernel: Kernel, dialect: Dialect | None) -> None:
    """Put the explanation of a failed ioctl on an error that comes of one; on no other."""
    cause = error if isinstance(error, KvmError) else error.__cause__
    if isinstance(cause, KvmError):
        for line in failure_lines(cause, dialect or Dialect.UPSTREAM, last_refusal(kernel)):
            error.add_note(line)


def failure_lines(error: KvmError, dialect: Dialect, reason: Reason | None = None) -> list[str]:
    """Explain a refused ioctl in lines for a person, without the sentence of the error itself."""
    from swtdx.explain.failure import Failed, explain_failure

    ioctl = error.ioctl.partition(" ")[0]  # "open /dev/kvm"
    failed = Failed(errno_name(error.errno or 0), ioctl, error.hw_error, reason=reason or NO_REASON)
    found = explain_failure(failed, dialect)
    if reason and len(found.get("rules", ())) > SHOWN_RULES:
        del found["rules"]
    rows = list(words.lines(found))
    left_out = {"failed"} | ({"class", "meaning", "operand"} if "rule" in dict(rows) else set())
    rows = [row for row in rows if row[0] not in left_out]
    return words.aligned([*rows, ("more", _command(failed, dialect))])


def outcome_explained(outcome: Outcome, dialect: Dialect | None, *, td: bool) -> list[str]:
    """The end of a run that KVM itself caused, in lines for a person; none for other ends."""
    if outcome.end is not End.INTERNAL_ERROR and not outcome.reason.by_guest:
        return []
    details: dict[str, Any] = outcome.details
    if "errno" in details:
        error = KvmError(getattr(errnos, details["errno"]), "KVM_RUN")
        lines = failure_lines(error, dialect or Dialect.UPSTREAM, outcome.reason)
        return [line for line in lines if not line.startswith("reason ")]  # the outcome's own sentence has it
    if td and details.get("suberror") == kvm.KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON and details["data"]:
        from swtdx.explain.status import explain_status

        return words.text(explain_status(details["data"][0], VP_ENTER))
    return []


def unread_ve(reasons: list[int]) -> list[str]:
    """Explain a crash of a TD whose guest has not fetched what its last #VE was about, in lines for a person."""
    if not reasons:
        return []
    name = reason_name(reasons[0])
    return words.aligned(
        [
            ("reason", f"the guest got a #VE ({name}) and did not handle it: it never called TDG.VP.VEINFO.GET"),
            ("do", "Use a guest kernel with TDX support (CONFIG_INTEL_TDX_GUEST=y, Linux 5.19 or later), or run this "
             "one with --vm-type default."),
        ]
    )  # fmt: skip


def refused_rbp() -> list[str]:
    """Explain a crash of a TD with NO_RBP_MOD whose guest passes RBP in TDVMCALLs, in lines for a person."""
    return words.aligned(
        [
            ("reason", "the guest passes RBP in its TDVMCALLs, which the TDX module refuses in a TD with NO_RBP_MOD"),
            ("rule", "TDG.VP.VMCALL: bit 5 of RCX, RBP, must be 0 if CONFIG_FLAGS.NO_RBP_MOD is 1; else "
             "OPERAND_INVALID (RCX), and the call does not leave the TD"),
            ("do", "Use firmware from edk2-stable202405 or later, or run this one without --no-rbp-mod."),
        ]
    )  # fmt: skip


def _command(failed: Failed, dialect: Dialect) -> str:
    import shlex

    words_of = ["swtdx", "explain", failed.errno, "--command", failed.ioctl]
    if failed.hw_error:
        words_of += ["--hw-error", f"{failed.hw_error:#x}"]
    if dialect is not Dialect.UPSTREAM:
        words_of += ["--dialect", dialect.value]
    return shlex.join(words_of)
