# SPDX-License-Identifier: GPL-2.0-or-later
"""The examples in the client's docstrings, each with a fresh VM, on every kernel; the other docstrings' once."""

from __future__ import annotations

import doctest
import importlib
import mmap
import types

import pytest

from swtdx.uapi import kvm as header
from swtdx.uapi.client import Kvm, KvmError, msi_route
from swtdx.uapi.kernel import Kernel

CLIENT = ["descriptor", "device", "vm", "vcpu"]
PLAIN = ["ioctl", "layout", "kvm", "tdx_upstream", "tdx_v10", "dialect", "host", "client.error"]


def module(name: str) -> types.ModuleType:
    return importlib.import_module(f"swtdx.uapi.{name}")


def examples(name: str) -> list[doctest.DocTest]:
    return [test for test in doctest.DocTestFinder().find(module(name)) if test.examples]


def run(test: doctest.DocTest) -> None:
    output: list[str] = []
    results = doctest.DocTestRunner(verbose=False).run(test, out=output.append)
    assert results.failed == 0, "".join(output)


@pytest.mark.parametrize(
    "test", [pytest.param(test, id=test.name) for name in CLIENT for test in examples(f"client.{name}")]
)
def test_example(test: doctest.DocTest, kernel: Kernel) -> None:
    fresh = doctest.DocTest(
        list(test.examples), {}, test.name, test.filename, test.lineno, test.docstring
    )  # a test's globals are used up by running it
    with Kvm(kernel) as kvm, kvm.create_vm() as vm:
        vm.set_user_memory_region(0, 0, 0x1000, mmap.mmap(-1, 0x1000))
        with vm.create_vcpu(0) as vcpu:
            names = {name: value for name, value in vars(header).items() if not name.startswith("_")}
            client_names = {"Kvm": Kvm, "KvmError": KvmError, "msi_route": msi_route, "mmap": mmap}
            fresh.globs = names | client_names | {"kernel": kernel, "kvm": kvm, "vm": vm, "vcpu": vcpu}
            run(fresh)


@pytest.mark.parametrize("test", [pytest.param(test, id=test.name) for name in PLAIN for test in examples(name)])
def test_example_that_needs_no_kernel(test: doctest.DocTest) -> None:
    run(test)
