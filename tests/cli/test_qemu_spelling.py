# SPDX-License-Identifier: GPL-2.0-or-later
"""What fingers type that know QEMU is taken by ``swtdx run``, or answered with what there is in its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from swtdx.cli.parameters import InputError, memory_size, seconds
from swtdx.cli.qemu_spelling import as_here
from swtdx.cli.usage_sentence import usage_sentence
from swtdx.vmm.disk_image import DiskError, DiskSpec, parse_disk
from tests.cli.conftest import Command

MIB = 1 << 20
MINE = Path("mine.fd")


@pytest.mark.parametrize(
    ("typed", "here"),
    [
        ("-m 2G", "-m 2G"), ("-smp 4", "--cpus 4"), ("--smp=4", "--cpus=4"), ("-smp 4,sockets=1", "--cpus 4"),
        ("-smp cores=2,cpus=8", "--cpus 8"), ("-bios x.fd", "--firmware x.fd"), ("--bios=x.fd", "--firmware=x.fd"),
        ("--fw x.fd", "--firmware x.fd"), ("-kernel k -initrd i -append -smp", "--kernel k --initrd i --append -smp"),
        ("--append -nographic", "--append -nographic"), ("-drive file=d.img,if=virtio", "--disk file=d.img,if=virtio"),
        ("-hda d.img", "--disk d.img"), ("-s -S", "--gdb :1234 --gdb-wait"), ("-gdb tcp::1234", "--gdb :1234"),
        ("-q -v", "-q -v"), ("-smp", "--cpus"),
    ],
)  # fmt: skip
def test_spellings_of_qemu(typed: str, here: str) -> None:
    assert as_here(typed.split()) == here.split()


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("-nographic", "omit it"), ("-display none", "omit it"), ("-machine q35", "omit it"), ("-M q35", "omit it"),
        ("-accel kvm", "omit it"), ("-enable-kvm", "omit it"), ("-cpu host", "--cpu-features"), ("-nic user", "--disk"),
        ("-device virtio-rng-pci", "--rng"), ("-pflash x.fd", "--firmware"), ("-no-reboot", "omit it"),
        ("-drive if=pflash,file=x.fd", "--firmware"),
    ],
)  # fmt: skip
def test_what_is_only_qemus_is_answered(command: Command, typed: str, words: str) -> None:
    done = command("run", *typed.split())
    assert (done.status, done.out) == (2, "")
    assert words in done.err
    assert done.err.startswith(f"swtdx: {typed.split()[0]}")


@pytest.mark.parametrize(
    ("text", "size"),
    [("2048", 2048 * MIB), ("512", 512 * MIB), ("1.5G", 1536 * MIB), ("0.5g", 512 * MIB), ("268435456", 256 * MIB)],
)
def test_sizes_as_qemu_takes_them(text: str, size: int) -> None:
    assert memory_size(text) == size


@pytest.mark.parametrize("text", ["1.0001M", "1.5", "G", "1..5G", "2048.5", "-1", "1e3M", ""])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match="--memory"):
        memory_size(text)


@pytest.mark.parametrize(("text", "hint"), [("5s", "--timeout 5"), ("2 s", "--timeout 2"), ("soon", "--timeout 60")])
def test_a_time_with_a_unit(text: str, hint: str) -> None:
    with pytest.raises(InputError, match=f"write it as in {hint}"):
        seconds("--timeout", text)


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("file=mine.fd,format=raw", DiskSpec(MINE, raw=True)),
        ("file=mine.fd,if=virtio", DiskSpec(MINE)), ("mine.fd,readonly=on", DiskSpec(MINE, read_only=True)),
        ("format=raw,file=mine.fd,ro", DiskSpec(MINE, read_only=True, raw=True)),
    ],
)  # fmt: skip
def test_disks_as_qemu_spells_them(text: str, spec: DiskSpec) -> None:
    assert parse_disk(text) == spec


def test_a_word_of_a_disk_that_is_not_known() -> None:
    with pytest.raises(DiskError, match="neither ro, format=raw, serial=TEXT, nor file=FILE"):
        parse_disk("mine.fd,cache=none")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "mine.fd"], "did you mean --firmware mine.fd?"), (["run", "vmlinuz"], "--kernel vmlinuz?"),
        (["run", "disk.img"], "--disk disk.img?"), (["run", "--cpus", "0"], "at least 1"),
        (["run", "--cpus", "x"], "not a number"), (["quote", "verify", "x"], "swtdx quote verify --help"),
        (["run", "--gdb", "1234"], "'1234' is not a valid address"), (["explain", "x", "--gpu", "1"], "--gpa"),
    ],
)  # fmt: skip
def test_mistakes_are_answered_in_words_of_ours(command: Command, arguments: list[str], words: str) -> None:
    done = command(*arguments)
    assert done.status in (1, 2)
    assert words in done.err
    assert "Input should be" not in done.err


@pytest.mark.parametrize("text", ["Value error, x is wrong", "Invalid value for '--x': Value error, x is wrong"])
def test_words_of_pydantic_are_left_out(text: str) -> None:
    assert "Value error" not in usage_sentence(text, "swtdx run")


@pytest.mark.parametrize("typed", [["--version"], ["-V"], ["version"]])
def test_the_version_in_each_spelling(command: Command, typed: list[str]) -> None:
    assert command(*typed).out.startswith("swtdx 0.")


def test_an_errno_as_a_system_call_returns_it(command: Command) -> None:
    done = command("explain", "-16", "--command", "KVM_TDX_INIT_VM")
    assert (done.status, "EBUSY" in done.out) == (0, True)
    assert "22 is also EINVAL: swtdx explain EINVAL" in command("explain", "22").out


@pytest.mark.parametrize(
    ("option", "typed", "meant"),
    [
        ("--command", "KVM_TDX_INITVM", "KVM_TDX_INIT_VM"), ("--leaf", "tdh.mng.initt", "TDH.MNG.INIT"),
        ("--leaf", "tdh_mem_page_addd", "TDH.MEM.PAGE.ADD"), ("--errno", "EINVALL", "EINVAL"),
    ],
)  # fmt: skip
def test_a_name_that_is_nearly_right(command: Command, option: str, typed: str, meant: str) -> None:
    done = command("explain", "EINVAL", option, typed)
    assert (done.status, f"did you mean {meant}?" in done.err) == (1, True)
