# SPDX-License-Identifier: GPL-2.0-or-later
"""Bad input is one clear sentence on stderr, exit status 2, and nothing left behind."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from swtdx.cli.parameters import InputError, memory_size
from testing.tdvf_image import HOB, TEMP, image_with
from tests.cli.conftest import Command
from tests.vmm.fake_kernel import FakeKernel


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "--frob"], ["--frob"]),
        (["frob"], ["frob"]),
        (["run", "--cpus", "0"], ["--cpus"]),
        (["run", "--cpus", "many"], ["--cpus"]),
        (["run", "--dialect", "v11"], ["v11", "upstream", "v10"]),
        (["run", "--cpu-features", "avx9"], ["avx9", "avx2"]),
        (["run", "--cpu-features", "avx2"], ["avx2 has avx"]),
        (["run", "--cpu-features", "x86-64-v2", "--kvm", "host"], ["emulated processor"]),
        (["run", "--inject", "TDH.MEM.PAGE.AUGH: OPERAND_BUSY"], ["--inject", "did you mean TDH.MEM.PAGE.AUG?"]),
        (["run", "--inject", "KVM_RUN: EINTR", "--inject", "KVM_RUN: BUSY"], ["--inject", "no errno BUSY"]),
        (["run", "--inject", "KVM_RUN: EINTR", "--kvm", "host"], ["--inject", "embedded kernel"]),
        (["run", "--lint", "--kvm", "host"], ["--lint", "embedded kernel"]),
        (["run", "--lint", "--vm-type", "default"], ["--lint", "Trust Domains"]),
        (["run", "--symbols", "absent"], ["--symbols go with --lint"]),
        (["run", "--lint", "--symbols", "absent"], ["--symbols absent", "No such file"]),
        (["run", "--lint", "--symbols", "/dev/null"], ["/dev/null has no symbols"]),
        (["run", "--lie", "MapGAP: RETRY"], ["--lie", "did you mean MapGPA?"]),
        (["run", "--lie", "any: random", "--kvm", "host"], ["--lie", "embedded kernel"]),
        (["run", "--lies-from", "absent"], ["--lies-from absent", "No such file"]),
        (["run", "--lies-from", "/bin/true"], ["--lies-from /bin/true", "not text"]),
        (["run", "--lies-from", "/etc/passwd"], ["--lies-from /etc/passwd: line 1"]),
        (["run", "--lies-to", "lies"], ["--lies-to needs lies"]),
        (["run", "--module-version", "2"], ["1.5.06", "1.0"]),
        (["run", "--module-version", "1.0"], ["TDH.SYS.RD", "--kernel-release v10"]),
        (["run", "--module-version", "1.0", "--kvm", "host"], ["embedded kernel"]),
        (["run", "--kvm", "other"], ["other", "emulated", "host"]),
        (["run", "--kernel", "absent"], ["kernel", "absent", "No such file"]),
        (["run", "--kernel", "host", "--kvm", "emulated"], ["--kernel host", "contradict"]),
        (["run", "--firmware", "none"], ["--firmware none", "give --kernel"]),
        (["run", "--firmware", "none", "--kernel", "absent"], ["kernel", "absent", "No such file"]),
        (["run", "--initrd", "x"], ["--initrd", "--kernel"]),
        (["run", "--debug-exit", "some"], ["--debug-exit", "not a number"]),
        (["run", "--debug-exit", "0x10000"], ["--debug-exit", "0xf4"]),
        (["run", "--debug-exit", "0x3f8"], ["debug exit", "0x3f8"]),
        (["run", "--log", "absent-folder/x"], ["--log", "absent-folder"]),
        (["run", "--append", "x"], ["--append", "--kernel"]),
        (["run", "--memory", "much"], ["much", "512M"]),
        (["run", "--memory", "0"], ["out of range"]),
        (["run", "--memory", "4K"], ["out of range"]),
        (["run", "--memory", "999T"], ["out of range"]),
        (["run", "--mrconfigid", "xyz"], ["--mrconfigid", "hexadecimal"]),
        (["run", "--mrowner", "00" * 49], ["--mrowner", "49 bytes", "48"]),
        (["run", "--attributes", "some"], ["--attributes", "0x10000000"]),
        (["run", "--attributes", "0x10000000000000000"], ["--attributes", "64 bits"]),
        (["run", "--timeout", "-1"], ["--timeout"]),
        (["run", "--until", ""], ["--until"]),
        (["run", "--firmware", "absent.fd"], ["absent.fd", "No such file"]),
        (["run", "--json", "absent-folder/x.json"], ["--json", "absent-folder"]),
        (["run", "--disk", "absent.img"], ["disk image absent.img", "No such file"]),
        (["run", "--disk", "/"], ["disk image /", "folder"]),
        (["run", "--disk", "/dev/null,ro"], ["/dev/null", "neither a file nor a block device"]),
        (["run", "--disk", "disk.img,format=qcow2"], ["disk.img", "raw"]),
        (["run", "--disk", ""], ["--disk", "names no file"]),
        (["run", "--smbios", "product=x"], ["--smbios", "product=x", "type=1"]),
        (["run", "--smbios", "type=1,colour=red"], ["type 1", "colour", "manufacturer, product"]),
        (["run", "--firmware", "none", "--kernel", "x", "--smbios", "type=1"], ["--smbios", "--firmware none"]),
    ],
)
def test_one_sentence_and_status_2(arguments: list[str], words: list[str], command: Command, firmware: Path) -> None:
    if arguments[0] == "run" and "--firmware" not in arguments:
        arguments = [*arguments, "--firmware", str(firmware)]
    result = command(*arguments)
    assert result.status == 2
    assert result.out == ""
    complaint = result.err.splitlines()[-1]
    assert complaint.startswith("swtdx: ")
    assert "Traceback" not in result.err
    for word in words:
        assert word in complaint


@pytest.mark.parametrize(
    ("image", "memory", "words"),
    [
        (b"", "256M", ["is empty"]),
        (image_with()[:-4096], "256M", ["GUID table", "truncated"]),
        (bytes(32 << 20), "256M", ["16 MiB"]),
        (bytes(0x10000), "256M", ["no GUID table"]),
        (image_with(entry_guid=bytes(16)), "256M", ["no TDX metadata"]),
        (image_with(rows=(TEMP, HOB)), "256M", ["no BFV section"]),
        (image_with(), "8M", ["section 3 (TD_HOB)", "needs RAM"]),
    ],
)
def test_bad_firmware_is_named_with_its_rule(
    image: bytes, memory: str, words: list[str], command: Command, tmp_path: Path
) -> None:
    path = tmp_path / "bad.fd"
    path.write_bytes(image)
    result = command("run", "--firmware", path, "--memory", memory, "--json", tmp_path / "r.json")
    assert result.status == 2
    assert str(path) in result.err
    for word in words:
        assert word in result.err
    assert not (tmp_path / "r.json").exists()


def test_a_debug_log_is_not_emptied_by_a_run_that_never_was(command: Command, firmware: Path, tmp_path: Path) -> None:
    log = tmp_path / "debug.log"
    log.write_text("precious")
    assert command("run", "--firmware", firmware, "--memory", "8M", "--debugcon", log).status == 2
    assert log.read_text() == "precious"


def test_a_kernel_without_tdx_names_the_capability_and_the_default(
    command: Command, firmware: Path, scripted: Callable[[FakeKernel], FakeKernel]
) -> None:
    kernel = scripted(FakeKernel(tdx=False))
    result = command("run", "--firmware", firmware, "--kernel", "host")
    assert result.status == 2
    for word in ("KVM_CAP_VM_TYPES is 0x1", "bit 5", "default"):
        assert word in result.err
    assert not kernel.names


def test_a_host_without_kvm_says_so(
    command: Command, firmware: Path, scripted: Callable[[FakeKernel], FakeKernel]
) -> None:
    scripted(FakeKernel()).refuse["open"] = 2
    result = command("run", "--firmware", firmware, "--kernel", "host")
    assert result.status == 2
    assert "/dev/kvm cannot be used: No such file or directory" in result.err
    assert "default" in result.err


def test_attributes_that_are_not_offered(
    command: Command, firmware: Path, scripted: Callable[[FakeKernel], FakeKernel]
) -> None:
    kernel = scripted(FakeKernel())
    result = command("run", "--firmware", firmware, "--attributes", "1")
    assert result.status == 2
    assert "0x10000000" in result.err
    assert not kernel.names


def test_a_kernel_that_refuses_is_an_internal_error(
    command: Command, firmware: Path, scripted: Callable[[FakeKernel], FakeKernel]
) -> None:
    kernel = scripted(FakeKernel())
    kernel.refuse["KVM_TDX_FINALIZE_VM"] = 5
    result = command("run", "--firmware", firmware)
    assert result.status == 1
    assert "KVM_TDX_FINALIZE_VM: EIO" in result.err
    assert not kernel.names


def test_from_outside_it_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "bad.fd"
    path.write_bytes(b"x" * 5000)
    script = "from swtdx.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script, "run", "--firmware", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "size"),
    [("512M", 512 << 20), ("2g", 2 << 30), ("1GiB", 1 << 30), ("1048576", 1 << 20), ("64 MB", 64 << 20)],
)
def test_sizes_that_people_type(text: str, size: int) -> None:
    assert memory_size(text) == size


@pytest.mark.parametrize("text", ["", "-1M", "0", "M", "0x100000", "١M"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(InputError):
        memory_size(text)


def test_a_truncated_disk_leaves_everything_as_it_was(command: Command, firmware: Path, tmp_path: Path) -> None:
    good, short, log = tmp_path / "good.img", tmp_path / "short.img", tmp_path / "debug.log"
    good.write_bytes(bytes(1024))
    short.write_bytes(bytes(1000))
    log.write_text("from before")
    result = command("run", "--firmware", firmware, "--disk", good, "--disk", short, "--debugcon", log)
    assert result.status == 2
    assert result.err.splitlines()[-1] == (
        f"swtdx: the disk image {short} is truncated: 1000 bytes is not a multiple of 512"
    )
    assert log.read_text() == "from before"


def test_one_image_is_not_two_disks(command: Command, firmware: Path, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1024))
    result = command("run", "--firmware", firmware, "--disk", image, "--disk", image)
    assert result.status == 2
    assert "in use by another machine" in result.err
