# SPDX-License-Identifier: GPL-2.0-or-later
"""The public names are a promise: this list changes on purpose only, with an entry in CHANGELOG.md."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import swtdx
import swtdx.attest

PUBLIC = {
    "__version__",
    # kernels and machines
    *{"Kernel", "KernelConfig", "MachineKernel", "Platform", "Dialect", "boot", "open_kernel"},
    # the client of KVM
    *{"Kvm", "KvmError", "TdCapabilities", "Vcpu", "Vm"},
    # building and running a guest
    *{"BareTd", "Firmware", "FirmwareError", "LaunchError", "Machine", "Plan", "TdParameters", "find_firmware"},
    *{"End", "Outcome", "Run", "launch"},
}
ATTEST = {
    *{"Agreement", "BootPrediction", "Build", "CollateralError", "Comparison", "Divergence", "Event", "EventLogError"},
    *{"Inspection", "MeasureError", "Measurement", "Policy", "PredictionError", "Quote", "QuoteError", "RecordError"},
    *{"ReportError", "TdReport", "VerificationError", "Verified", "agreement", "compare", "inspect_image", "leads_to"},
    *{"measure_image", "parse_event_log", "parse_quote", "parse_report", "predict_direct_boot", "predict_from_log"},
    *{"DiskBoot", "MachineFiles", "predict_disk_boot", "predict_disk_from_log", "predict_td_shim"},
    *{"Appraisal", "AppraisalPolicy", "PolicyError", "appraise", "parse_policy"},
    *{"predicted_build", "recorded_build", "svg_picture", "text_picture", "verify_quote", "violations"},
}


def names_for_type_checkers(module: ModuleType) -> set[str]:
    """What ``if TYPE_CHECKING`` imports."""
    assert module.__file__ is not None
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    return {alias.asname or "" for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}


def test_the_public_names_are_those_of_the_promise() -> None:
    assert set(swtdx.__all__) == PUBLIC
    assert set(swtdx.attest._HOMES) == ATTEST


@pytest.mark.parametrize("module", [swtdx, swtdx.attest], ids=lambda module: str(module.__name__))
def test_each_name_can_be_imported_and_type_checkers_see_the_same(module: ModuleType) -> None:
    homes = module._HOMES
    assert names_for_type_checkers(module) == set(homes)
    for name in homes:
        assert getattr(module, name).__name__ == name
        assert name in dir(module)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = swtdx.Nothing


def test_importing_the_package_loads_nothing_of_it() -> None:
    script = "import sys, swtdx; print([name for name in sys.modules if name.startswith('swtdx.')])"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
