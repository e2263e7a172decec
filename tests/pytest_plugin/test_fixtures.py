# SPDX-License-Identifier: GPL-2.0-or-later
"""The plugin as the tests of another project use it: found by its entry point, in a session of its own."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path

import pytest

from swtdx.uapi.host import survey
from swtdx.vmm.bare_guest import io_out
from tests.image.test_linux_image import bzimage


def run(pytester: pytest.Pytester, text: str, *arguments: str) -> pytest.RunResult:
    pytester.makepyfile(text)
    return pytester.runpytest_subprocess("--strict-markers", "-W", "error", "-rs", *arguments)


def test_pytest_finds_it_by_its_entry_point() -> None:
    assert "swtdx.pytest_plugin" in {point.value for point in entry_points(group="pytest11")}


def test_the_td_that_one_gets_without_asking(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
        from swtdx.uapi.kvm import Exit

        def test_it_runs(td):
            for _ in range(3):
                assert td.run() is Exit.IO
                assert td.vcpu.kvm_run.io.port == 0x80

        def test_and_is_measured(td, tdx_kernel):
            assert int(tdx_kernel.inspect_td(td.vm.fd)["mrtd"], 16)
        """,
    )
    result.assert_outcomes(passed=2)


def test_calls_that_are_made_to_fail(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
        import pytest
        from swtdx.uapi.client import KvmError

        @pytest.mark.tdx(inject="KVM_TDX_FINALIZE_VM: EBUSY")
        def test_of_one_test(make_td, tdx_kernel):
            with pytest.raises(KvmError, match="EBUSY"):
                make_td()
            assert [each.struck for each in tdx_kernel.faults.armed] == [1, 1]

        def test_of_the_session(td, tdx_kernel):
            (armed,) = tdx_kernel.faults.armed
            assert armed.calls > armed.struck == 1

        @pytest.mark.tdx(inject="KVM_RUNN: EINTR")
        def test_what_is_none(tdx_kernel):
            pass
        """,
        *("--tdx-inject", "TDH.MEM.SEPT.ADD: OPERAND_BUSY @2"),
    )
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*did you mean KVM_RUN?*"])


def test_a_td_of_a_few_bytes(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
        import pytest
        from swtdx.uapi.kvm import Exit
        from swtdx.vmm.bare_guest import io_in, io_out

        @pytest.mark.td(code=io_out(0x99, 0x1234, size=2) + b"\\x0f\\x0b")
        def test_port_then_crash(td):
            assert td.run() is Exit.IO
            assert td.vcpu.io_data() == b"\\x34\\x12"
            assert td.run() is Exit.SHUTDOWN  # UD2 and no IDT

        def test_two_tds(make_td):
            one, other = make_td(io_in(1)), make_td(io_in(2))
            assert [td.run() and td.vcpu.kvm_run.io.port for td in (one, other)] == [1, 2]

        @pytest.mark.td(b"\\xeb\\xfe")
        def test_a_loop_is_called_out(td):
            with pytest.raises(TimeoutError, match="after 0.2 s"):
                td.run(timeout=0.2)
        """,
    )
    result.assert_outcomes(passed=3)


def test_kernel_and_client(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
        import pytest

        def test_upstream(kvm):
            assert kvm.dialect.value == "upstream"
            with kvm.create_td() as td:
                assert td.tdx_capabilities().attributes_allowed

        @pytest.mark.tdx(dialect="v10")
        def test_v10(kvm, td):
            assert kvm.dialect.value == "v10"
            assert td.run()

        @pytest.mark.tdx(processors=2)
        def test_processors(tdx_kernel):
            assert tdx_kernel.processor.platform.logical_processors == 2
        """,
    )
    result.assert_outcomes(passed=3)


def test_each_test_has_a_kernel_of_its_own_and_leaves_nothing(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
        import threading
        seen = []

        def test_one(td, tdx_kernel):
            seen.append(tdx_kernel)

        def test_other(tdx_kernel):
            assert tdx_kernel is not seen[0]
            assert not seen[0].module.tds
            assert not seen[0].files.by_fd
        """,
    )
    result.assert_outcomes(passed=2)


def test_the_dialect_of_a_session(pytester: pytest.Pytester) -> None:
    result = run(pytester, "def test(kvm): assert kvm.dialect.value == 'v10'", "--tdx-dialect=v10")
    result.assert_outcomes(passed=1)


@pytest.mark.skipif(survey().tdx, reason="this machine makes TDs")
def test_a_host_without_tdx_skips_with_the_reason(pytester: pytest.Pytester) -> None:
    result = run(pytester, "def test(td): raise AssertionError", "--tdx-kernel=host")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*SKIPPED*/dev/kvm*"])


def test_markers_that_say_nonsense_are_errors(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
        import pytest

        @pytest.mark.td(size=3)
        def test_unknown(td): ...

        @pytest.mark.td(code=b"1", firmware=True)
        def test_both(td): ...

        def test_processors(make_td):
            make_td(firmware=True)

        @pytest.mark.td(append="quiet")
        def test_no_kernel(td): ...

        @pytest.mark.td(code=b"1", kernel="bzImage")
        def test_code_and_kernel(td): ...

        @pytest.mark.td(kernel="absent")
        def test_no_file(td): ...
        """,
    )
    result.assert_outcomes(errors=5, failed=1)
    words = ["*takes code, firmware, memory, cpus, kernel, initrd, append, not size*", "*not of both*"]
    words += ["*append go with a kernel*", "*not of both*", "*kernel: *absent*", "*processors=1*"]
    result.stdout.fnmatch_lines(words)


def test_a_kernel_is_booted_without_firmware(pytester: pytest.Pytester) -> None:
    code = b"".join(io_out(0x3F8, each) for each in b"up\n") + b"\xeb\xfe"
    pytester.path.joinpath("bzImage").write_bytes(bzimage(kernel=bytes(0x200) + code))
    result = run(
        pytester,
        """
        import pytest

        @pytest.mark.td(kernel="bzImage", memory=96 << 20)
        def test_it_prints(td, tdx_kernel):
            assert td.run(until="up").end.label == "until"
            assert td.console == "up\\n"
            assert tdx_kernel.inspect_td(td.machine.vm.fd)["mrtd"] == td.mrtd

        @pytest.mark.tdx(processors=2)
        def test_each_its_own_parameters(make_td):
            one, other = (
                make_td(kernel="bzImage", initrd="bzImage", append=line, memory=96 << 20, cpus=2) for line in ("a", "b")
            )
            assert one.mrtd != other.mrtd
        """,
    )
    result.assert_outcomes(passed=2)


def test_a_refused_ioctl_is_explained_beside_the_test(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
        import pytest

        @pytest.mark.tdx(dialect="v10")
        def test_it(kvm):
            with kvm.create_td() as td:
                td.split_irqchip()
                capabilities = td.tdx_capabilities()
                td.tdx_init(1 << 29 | 1, 3, capabilities.configure(kvm.supported_cpuid()))
        """,
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*KVM refused KVM_TDX_INIT_VM*",
            "reason  TDH.MNG.INIT: 0xc000010000000040, rcx 0x0",
            "status  OPERAND_INVALID|ATTRIBUTES (0xc000010000000040)",
            "from    TDH.MNG.INIT",
            "rule    *ATTRIBUTES*",
            "do      *",
            "more    swtdx explain EIO --command KVM_TDX_INIT_VM --hw-error 0xc000010000000040 --dialect v10",
        ]
    )


def test_a_session_without_tds_imports_nothing(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
        import sys

        def test_it():
            assert not {"swtdx.machine", "swtdx.cpu._engine", "typer"} & set(sys.modules)
        """,
    )
    result.assert_outcomes(passed=1)


def test_a_firmware(pytester: pytest.Pytester, ovmf_image: Path) -> None:
    result = run(
        pytester,
        f"""
        import pytest

        @pytest.mark.td(firmware={str(ovmf_image)!r})
        def test_it_reaches_the_shell(td, tdx_kernel):
            outcome = td.run(until="UEFI Interactive Shell", timeout=200)
            assert outcome.end.label == "until"
            assert "UEFI Interactive Shell" in td.console
            assert tdx_kernel.inspect_td(td.machine.vm.fd)["mrtd"] == td.mrtd
        """,
    )
    result.assert_outcomes(passed=1)


def test_time_is_up_and_the_console_is_shown(pytester: pytest.Pytester, ovmf_image: Path) -> None:
    result = run(
        pytester,
        f"""
        import pytest

        @pytest.mark.td(firmware={str(ovmf_image)!r})
        def test_it(td):
            with pytest.raises(TimeoutError, match="after 0.1 s; the console ends with"):
                td.run(until="never", timeout=0.1)
        """,
    )
    result.assert_outcomes(passed=1)
