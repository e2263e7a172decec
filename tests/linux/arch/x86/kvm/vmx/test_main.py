# SPDX-License-Identifier: GPL-2.0-or-later
"""The one table of callbacks: plain VMX without TDX; with TDX the same but for the entries that must differ."""

from __future__ import annotations

from dataclasses import fields

from swtdx.linux.arch.x86.kvm.vmx import vmx, vmx_exit
from swtdx.linux.arch.x86.kvm.vmx.main import KvmX86Ops, vt_x86_ops
from swtdx.uapi.dialect import Dialect
from tests.linux.conftest import boot

NOT_WRAPPED = {
    "vcpu_deliver_sipi_vector",
    "set_cr8",  # not without a local APIC in the kernel, which a TD has always
    "post_run_state",  # not asked where the state is protected
}


def test_without_tdx_the_entries_are_the_vmx_callbacks_themselves() -> None:
    table = vt_x86_ops(enable_tdx=False)
    assert table.vcpu_run is vmx.vmx_vcpu_run
    assert table.handle_exit is vmx_exit.vmx_handle_exit
    assert boot(Dialect.UPSTREAM, enable_tdx=False).kernel.kvm_x86_ops is table
    for field in fields(KvmX86Ops):
        assert not getattr(table, field.name).__name__.startswith(("vt_", "tdx_")), field.name


def test_with_tdx_they_are_wrappers_where_the_two_differ() -> None:
    plain, wrapped = vt_x86_ops(enable_tdx=False), vt_x86_ops(enable_tdx=True)
    same = {field.name for field in fields(KvmX86Ops) if getattr(plain, field.name) is getattr(wrapped, field.name)}
    assert same == NOT_WRAPPED


def test_a_wrapper_picks_by_vm() -> None:
    bench = boot(Dialect.UPSTREAM)
    bench.vm(0)
    plain = bench.vm_object()
    bench.vm()
    td = bench.vm_object()
    table = bench.kernel.kvm_x86_ops
    assert table.has_emulated_msr(td, 0xC0000103) is False
    assert table.has_emulated_msr(plain, 0xC0000103) is True
    assert table.has_emulated_msr(None, 0xC0000103) is True
