# SPDX-License-Identifier: GPL-2.0-or-later
"""What a verifier of Trust Domains needs: measurements predicted, images and launches explained and compared.

Nothing here starts a TD or calls a kernel.  The names below are the public ones; each is loaded when it is first used,
so that who hashes a firmware image does not wait for the rest.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same names for type checkers; at run time __getattr__ finds them
    from swtdx.attest.appraisal import Appraisal as Appraisal
    from swtdx.attest.appraisal import appraise as appraise
    from swtdx.attest.board_log import predict_disk_from_log as predict_disk_from_log
    from swtdx.attest.board_log import predict_from_log as predict_from_log
    from swtdx.attest.boot_agreement import Agreement as Agreement
    from swtdx.attest.boot_agreement import agreement as agreement
    from swtdx.attest.boot_prediction import BootPrediction as BootPrediction
    from swtdx.attest.boot_prediction import PredictionError as PredictionError
    from swtdx.attest.build_calls import Build as Build
    from swtdx.attest.build_calls import RecordError as RecordError
    from swtdx.attest.build_calls import predicted_build as predicted_build
    from swtdx.attest.build_calls import recorded_build as recorded_build
    from swtdx.attest.direct_boot import predict_direct_boot as predict_direct_boot
    from swtdx.attest.disk_boot import DiskBoot as DiskBoot
    from swtdx.attest.disk_boot import predict_disk_boot as predict_disk_boot
    from swtdx.attest.divergence import Comparison as Comparison
    from swtdx.attest.divergence import Divergence as Divergence
    from swtdx.attest.divergence import compare as compare
    from swtdx.attest.event_log import Event as Event
    from swtdx.attest.event_log import EventLogError as EventLogError
    from swtdx.attest.event_log import parse_event_log as parse_event_log
    from swtdx.attest.inspection import Inspection as Inspection
    from swtdx.attest.inspection import inspect_image as inspect_image
    from swtdx.attest.machine_files import MachineFiles as MachineFiles
    from swtdx.attest.measure import MeasureError as MeasureError
    from swtdx.attest.measure import Measurement as Measurement
    from swtdx.attest.measure import measure_image as measure_image
    from swtdx.attest.memory_picture import svg_picture as svg_picture
    from swtdx.attest.memory_picture import text_picture as text_picture
    from swtdx.attest.policy import Policy as Policy
    from swtdx.attest.policy import violations as violations
    from swtdx.attest.policy_file import AppraisalPolicy as AppraisalPolicy
    from swtdx.attest.policy_file import PolicyError as PolicyError
    from swtdx.attest.policy_file import parse_policy as parse_policy
    from swtdx.attest.quote import Quote as Quote
    from swtdx.attest.quote import QuoteError as QuoteError
    from swtdx.attest.quote import parse_quote as parse_quote
    from swtdx.attest.replay import leads_to as leads_to
    from swtdx.attest.report import ReportError as ReportError
    from swtdx.attest.report import TdReport as TdReport
    from swtdx.attest.report import parse_report as parse_report
    from swtdx.attest.td_shim import predict_td_shim as predict_td_shim
    from swtdx.attest.verify import CollateralError as CollateralError
    from swtdx.attest.verify import VerificationError as VerificationError
    from swtdx.attest.verify import Verified as Verified
    from swtdx.attest.verify import verify_quote as verify_quote


_HOMES = {
    "Agreement": "boot_agreement",
    "Appraisal": "appraisal",
    "AppraisalPolicy": "policy_file",
    "BootPrediction": "boot_prediction",
    "Build": "build_calls",
    "Comparison": "divergence",
    "DiskBoot": "disk_boot",
    "Divergence": "divergence",
    "Inspection": "inspection",
    "MachineFiles": "machine_files",
    "MeasureError": "measure",
    "Measurement": "measure",
    "PolicyError": "policy_file",
    "PredictionError": "boot_prediction",
    "RecordError": "build_calls",
    "agreement": "boot_agreement",
    "appraise": "appraisal",
    "compare": "divergence",
    "inspect_image": "inspection",
    "measure_image": "measure",
    "predict_direct_boot": "direct_boot",
    "predict_disk_boot": "disk_boot",
    "predict_disk_from_log": "board_log",
    "predict_td_shim": "td_shim",
    "predict_from_log": "board_log",
    "predicted_build": "build_calls",
    "recorded_build": "build_calls",
    "svg_picture": "memory_picture",
    "CollateralError": "verify",
    "Event": "event_log",
    "EventLogError": "event_log",
    "Policy": "policy",
    "Quote": "quote",
    "QuoteError": "quote",
    "ReportError": "report",
    "TdReport": "report",
    "VerificationError": "verify",
    "Verified": "verify",
    "leads_to": "replay",
    "parse_event_log": "event_log",
    "parse_policy": "policy_file",
    "parse_quote": "quote",
    "parse_report": "report",
    "verify_quote": "verify",
    "violations": "policy",
    "text_picture": "memory_picture",
}
"""Public name -> the module of this package that has it."""


__all__ = sorted(_HOMES)  # noqa: PLE0605 - each name is found by __getattr__


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
