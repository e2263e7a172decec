# SPDX-License-Identifier: GPL-2.0-or-later
"""RTMRs of boots from a disk, after the sources of edk2, shim, GRUB and Linux; compared with launches."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NoReturn
from uuid import UUID

import pytest

from swtdx.attest.authenticode import authenticode_digest
from swtdx.attest.board_log import predict_disk_from_log
from swtdx.attest.boot_prediction import BootPrediction, PredictionError
from swtdx.attest.disk_boot import DiskBoot, DiskError, Image, gpt_event, predict_disk_boot
from swtdx.attest.variable_store import IMAGE_SECURITY
from swtdx.vmm.board.virtio.blk import VirtioBlk
from swtdx.vmm.disk_image import open_disk, parse_disk
from testing.loader_image import grub, partitioned, shim
from testing.rtmr_launch import seen_rtmrs
from testing.uefi_image import UI_APP, driver, edk2_like, efi_kernel, executable, unified_image

MEMORY = 64 << 20
CC_MEASUREMENT_PROTOCOL = bytes.fromhex("3d1a7596f472a641a794ed5d0e67ae6b")
SHIM_LOCK = UUID("605dab50-e046-4300-abb6-3dd810dd8b23")
SHELL = UUID("7c04a583-9e3e-4f1c-ad65-e05268d0b4d1")
KERNEL = efi_kernel(CC_MEASUREMENT_PROTOCOL)
FIRMWARE = edk2_like()
DISK = partitioned(UUID(int=3))
CONFIG = "/EFI/debian/grub.cfg"
IPL, APPLICATION, BLOB2, AUTHORITY = 0xD, 0x80000003, 0x8000000A, 0x800000E0


def sha384(data: bytes) -> bytes:
    return hashlib.sha384(data).digest()


def booted(
    *chain: bytes, files: Mapping[str, bytes] | None = None, firmware: bytes | None = None, disk: bytes | None = DISK,
    devices: tuple[str, ...] = ("hd0,gpt1",),
) -> BootPrediction:  # fmt: skip
    return predict_disk_boot(firmware or FIRMWARE, boot(*chain, files=files, disk=disk, devices=devices), MEMORY)


def boot(
    *chain: bytes, files: Mapping[str, bytes] | None = None, disk: bytes | None = DISK,
    devices: tuple[str, ...] = ("hd0,gpt1",),
) -> DiskBoot:  # fmt: skip
    read = (
        None if files is None else lambda device, path: (files or {}).get(path if len(devices) == 1 else device + path)
    )
    return DiskBoot(tuple(Image(f"image{at}", each) for at, each in enumerate(chain)), read, devices, disk)


def told(prediction: BootPrediction, rtmr: int = 2) -> list[tuple[bytes, str]]:
    """(digest, description) of what a register was extended with."""
    return [
        (each.digest, each.data.rstrip(b"\0").decode("latin-1"))
        for each in prediction.events
        if each.rtmr == rtmr and each.event_type == IPL
    ]


def measured(config: str, **more: bytes) -> list[str]:
    """What GRUB measures of a configuration, as texts; the digests are checked to be of them."""
    files = {CONFIG: config.encode(), "/vmlinuz": KERNEL, "/initrd": b"initrd"}
    files |= {"/" + name.replace("__", "/"): contents for name, contents in more.items()}
    found = told(booted(grub(), files=files))
    for digest, text in found:
        for label in ("grub_cmd: ", "kernel_cmdline: "):
            if text.startswith(label):
                assert digest == sha384(text.removeprefix(label).encode("latin-1"))
        if text.startswith(("/", "(")):
            assert digest == sha384(files[text.removeprefix("(hd0,gpt1)")])
    assert [text for _, text in found[:2]] == [f"(hd0,gpt1){CONFIG}"] * 2
    return [text.removeprefix("grub_cmd: ") for _, text in found[2:]]


# --- firmware and shim ------------------------------------------------------------------------------------------------


def test_the_firmware_calls_then_measures_the_partition_table_and_the_loader() -> None:
    shell = driver(SHELL, "Shell")
    image = unified_image((".linux", KERNEL), (".cmdline", b"x"), protocol=CC_MEASUREMENT_PROTOCOL)
    prediction = booted(image, firmware=edk2_like(beside=[shell]))
    header = DISK[512 : 512 + 92]
    table = header + struct.pack("<Q", 1) + DISK[1024 : 1024 + 128]
    texts = [b"Calling EFI Application from Boot Option", bytes(4), table]
    end = [
        b"Exit Boot Services " + each for each in (b"Returned with Failure", b"Invocation", b"Returned with Success")
    ]
    found = [each.digest for each in prediction.events if each.rtmr == 1]
    assert found == [*map(sha384, texts), authenticode_digest(image), *map(sha384, end)]
    options = [each.data for each in prediction.events if each.event_type == 0x80000002]
    assert options[0].endswith(bytes([0, 0, 1, 0, 2, 0]))
    assert "UEFI Misc Device".encode("utf-16-le") in options[2]
    assert "EFI Internal Shell".encode("utf-16-le") in options[3]


def test_an_older_build_does_not_refuse_the_first_end_of_boot_services() -> None:
    prediction = booted(KERNEL, firmware=edk2_like(menu=UI_APP, sec=b"TdxTable"))
    assert sha384(b"Exit Boot Services Returned with Failure") not in [each.digest for each in prediction.events]


def test_a_disk_without_a_table_and_a_damaged_one() -> None:
    assert gpt_event(bytes(510) + b"\x55\xaa" + bytes(1 << 16)) is None
    with pytest.raises(DiskError, match="no partition table"):
        gpt_event(b"QFI\xfb" + bytes(1 << 16))
    for damage in (DISK[:2000], DISK[:550], DISK[: 512 + 84] + struct.pack("<I", 64) + DISK[512 + 88 :]):
        with pytest.raises(DiskError, match="cut off or damaged"):
            gpt_event(damage)
    prediction = booted(KERNEL, disk=None)
    assert prediction.registers == (0, 2)
    assert "EV_EFI_GPT_EVENT" in prediction.unpredicted[0]


def test_shim_measures_its_lists_its_level_and_the_loader() -> None:
    certificate, revoked = b"\x30\x82a vendor", b"hashes"
    loader = grub()
    prediction = booted(shim(certificate, revoked), loader)
    size = 16 + len(certificate)
    signature_list = UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072").bytes_le
    signature_list += struct.pack("<III", 28 + size, 0, size) + SHIM_LOCK.bytes_le + certificate
    expected = [(sha384(signature_list), "MokList"), (sha384(revoked), "MokListX"), (sha384(b"\1"), "MokListTrusted")]
    assert told(prediction)[:3] == expected
    level = b"sbat,1,2021030218\n"  # what shim resets it to without Secure Boot
    data = SHIM_LOCK.bytes_le + struct.pack("<QQ", 9, len(level)) + "SbatLevel".encode("utf-16-le") + level
    assert [each.digest for each in prediction.events if each.event_type == AUTHORITY] == [sha384(data)]
    assert authenticode_digest(loader) in [each.digest for each in prediction.events if each.event_type == APPLICATION]


def test_a_secret_that_systemd_stub_adds_from_a_disk_is_named() -> None:
    code = CC_MEASUREMENT_PROTOCOL + "LoaderBootSecret".encode("utf-16-le")
    image = unified_image((".linux", KERNEL), (".cmdline", b"console=x"), (".initrd", b"i"), protocol=code)
    prediction = booted(image)
    assert prediction.registers == (0, 1)
    assert "a secret of the machine" in prediction.unpredicted[0]


def test_a_chain_that_ends_early_is_predicted_as_far_as_it_goes() -> None:
    prediction = booted(shim())
    assert prediction.registers == ()
    assert len(told(prediction)) == 2
    prediction = booted(shim(), grub())
    assert prediction.registers == (0,)
    assert "--grub-root" in prediction.notes[0]
    for chain, reason in (((KERNEL, grub()), "neither shim nor GRUB"), ((b"text",), "not a PE"), ((), "no executable")):
        with pytest.raises(PredictionError, match=reason):
            booted(*chain)


@pytest.mark.parametrize("chain", [(shim(),), (shim(), grub()), (grub(),)])
def test_a_prediction_that_stops_early_has_no_end_of_boot_services(chain: tuple[bytes, ...]) -> None:
    """What is known before it stays, and stays in its order."""
    events = booted(*chain).events
    assert not any(each.data.startswith(b"Exit Boot Services") for each in events)
    whole = booted(*chain[:-1], grub(), files={CONFIG: b"linux /vmlinuz\nboot", "/vmlinuz": KERNEL})
    blob = b"\x02Fv" + struct.pack("<QQ", 0, 0x4000)
    log = [replace(each, name="", data=blob if each.event_type == BLOB2 else each.data) for each in whole.events]
    found = predict_disk_from_log(FIRMWARE, boot(*chain), log)
    digests = [each.digest for each in found.events]
    assert [each.digest for each in events if each.rtmr and each.digest not in digests] == []


# --- GRUB -------------------------------------------------------------------------------------------------------------


def test_commands_files_and_command_line_are_measured() -> None:
    found = measured(
        '# comment\nset a=1; echo "$a  b" \'c d\' e\\ f\nlinux /vmlinuz ro "a b" \'q"\'\ninitrd /initrd\nboot\n'
    )
    assert found == [
        *(
            "set a=1",
            "echo 1  b c d e f",
            'linux /vmlinuz ro a b q"',
            "/vmlinuz",
            'kernel_cmdline: /vmlinuz ro "a b" q\\"',
        ),
        *("initrd /initrd", "/initrd", "boot"),
    ]
    files = {CONFIG: b"linux /vmlinuz ro\ninitrd /initrd\nboot", "/vmlinuz": KERNEL, "/initrd": b"odd"}
    prediction = booted(grub(), files=files)
    options = "BOOT_IMAGE=/vmlinuz ro".encode("utf-16-le") + bytes(2)
    assert [each.digest for each in prediction.events if each.event_type == 6] == [sha384(options), sha384(b"odd")]


@pytest.mark.parametrize(
    ("script", "commands"),
    [
        ('set e=\n[ "$e" ]\n[ $e ]\n[ x$e = x ]', ["set e=", "[  ]", "[ ]", "[ x = x ]"]),
        ("if false; then echo a; elif true; then echo b; else echo c; fi", ["false", "true", "echo b"]),
        ("if [ 1 -lt 2 -a ! -f /no ]; then echo y; fi", ["[ 1 -lt 2 -a ! -f /no ]", "echo y"]),
        ("for i in 1 '2 3'; do echo $i; done", ["echo 1", "echo 2 3"]),
        ('for i in 1 2 3; do if [ $i = 2 ]; then break; fi; done', ["[ 1 = 2 ]", "[ 2 = 2 ]", "break"]),
        ("function f { echo $1 $# \"$@\"; return 1; }\nf a 'b c'", ["f a b c", "echo a 2 a b c", "return 1"]),
        ("i=x\nwhile [ $i != xx ]; do i=${i}x; done", ["i=x", "[ x != xx ]", "i=xx", "[ xx != xx ]"]),
        ("echo a\\\nb # c\n\\echo $unset.", ["echo ab", "echo ."]),
        ("! true\nif ! false; then echo z; fi", ["! true", "! false", "echo z"]),
    ],
)  # fmt: skip
def test_the_script_language(script: str, commands: list[str]) -> None:
    found = measured(script + "\nlinux /vmlinuz\nboot")
    assert found[: len(commands)] == commands
    assert found[len(commands)] == "linux /vmlinuz"


def test_the_default_entry_is_started_with_its_source_in_the_menus_command() -> None:
    config = (
        "set default='second'\nmenuentry \"A 'b'\" --class x { echo no }\n"
        "submenu More --id=more {\n\tmenuentry Inner --id second { echo no }\n}\n"
        "menuentry 'B \"c\"' --id second arg {\n# dropped\n\tlinux /vmlinuz $1\n}\n"
    )
    found = measured(config)
    assert found[1] == "menuentry A 'b' --class x { echo no }"
    assert found[3] == 'menuentry B "c" --id second arg {\n\tlinux /vmlinuz $1\n}'
    assert found[4:6] == ['setparams B "c" arg', 'linux /vmlinuz B "c"']
    assert "menuentry Inner" in found[2]
    nested = measured(
        config.replace("'second'", "'more>0'").replace("Inner --id second { echo no", "I { linux /vmlinuz")
    )
    assert nested[4] == "setparams More"
    assert nested[6:8] == ["setparams I", "linux /vmlinuz"]


def test_files_that_are_tested_loaded_or_sourced_are_measured_if_they_are_there() -> None:
    config = "[ -s /env ]\n[ -s /no ]\n[ -f /env ]\nload_env -f /env\nsource /more\necho $x\nloadfont /no /font\n"
    config += "linux /vmlinuz\nboot"
    found = measured(config, env=b"# GRUB Environment Block\nx=7\n####", more=b"set y=1\n", font=b"pf2")
    assert found[:12] == [
        *("[ -s /env ]", "/env", "[ -s /no ]", "[ -f /env ]", "load_env -f /env", "/env", "source /more", "/more"),
        *("set y=1", "echo 7", "loadfont /no /font", "/font"),
    ]


@pytest.mark.parametrize("option", ["-f /env", "--file /env", "--file=/env"])
def test_an_environment_is_read_from_the_file_that_is_named(option: str) -> None:
    """GRUB's options take a value as the next word or behind an equals sign (grub-core/lib/arg.c)."""
    files = {CONFIG: f"load_env {option} x\necho $x $y\n".encode(), "/env": b"x=7\ny=8\n"}
    assert "grub_cmd: echo 7" in [text for _, text in told(booted(grub(), files=files))]


def test_files_that_a_return_leaves_are_not_counted_as_open() -> None:
    script = "function f { source /more; }\ni=x\nwhile [ $i != " + "x" * 99 + " ]; do f; i=x$i; done\necho end\n"
    assert "echo end" in measured(script + "linux /vmlinuz\nboot", more=b"return 1\n")


def test_modules_that_are_not_built_in_and_lists_of_a_new_prefix_come_from_files() -> None:
    config = "insmod tpm\ninsmod other\ninsmod none\nset prefix=(hd0,gpt1)/grub\nlinux /vmlinuz\nboot"
    more = {"EFI__debian__x86_64-efi__other.mod": b"elf", "grub__x86_64-efi__command.lst": b"ls: ls"}
    assert measured(config, **more)[:7] == [
        *("insmod tpm", "insmod other", "(hd0,gpt1)/EFI/debian/x86_64-efi/other.mod", "insmod none"),
        *("set prefix=(hd0,gpt1)/grub", "(hd0,gpt1)/grub/x86_64-efi/command.lst", "linux /vmlinuz"),
    ]


def test_a_stub_configuration_leads_to_the_one_on_another_partition() -> None:
    """As Debian's installer writes it to the ESP."""
    stub = b"search.fs_uuid 1234 root \nset prefix=($root)'/boot/grub'\nconfigfile $prefix/grub.cfg\n"
    files = {
        f"hd0,gpt1{CONFIG}": stub, "hd0,gpt2/boot/grub/grub.cfg": b"linux /vmlinuz\nboot", "hd0,gpt2/vmlinuz": KERNEL,
    }  # fmt: skip
    prediction = booted(grub(), files=files, devices=("hd0,gpt1", "hd0,gpt2"))
    assert [text for _, text in told(prediction)][2:7] == [
        *("grub_cmd: search.fs_uuid 1234 root", "grub_cmd: set prefix=(hd0,gpt2)/boot/grub"),
        *(
            "grub_cmd: configfile (hd0,gpt2)/boot/grub/grub.cfg",
            "(hd0,gpt2)/boot/grub/grub.cfg",
            "grub_cmd: linux /vmlinuz",
        ),
    ]
    assert any("taken to find (hd0,gpt2)" in each for each in prediction.notes)
    assert prediction.registers == (0, 1, 2)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("probe --set=u -u hd0\nlinux /vmlinuz root=UUID=$u\nboot", "the value of $u"),
        ("chainloader /other.efi\nboot", "what /other.efi extends"),
        ("menuentry x { echo y }", "starts no Linux kernel"),
        ("configfile /none", "starts no kernel")
    ],
)  # fmt: skip
def test_what_is_not_known_is_named_and_what_came_before_is_kept(config: str, reason: str) -> None:
    prediction = booted(grub(), files={CONFIG: config.encode(), "/vmlinuz": KERNEL, "/other.efi": b"x"})
    assert reason in "".join(prediction.unpredicted)
    assert len(told(prediction)) >= 3
    assert prediction.registers == (0,)


@pytest.mark.parametrize(
    "config",
    [
        *(
            "while true; do true; done",
            "function f { f; }\nf",
            "source /EFI/debian/grub.cfg",
            "if true; then",
            "echo 'a",
        ),
        *(
            "fi",
            "break",
            "}" * 3,
            "menuentry x {",
            "for x do",
            "a=" + "{ " * 200,
            "if if if",
            "echo | cat",
            "function f",
        ),
        *("configfile /EFI/debian/grub.cfg", "submenu a { source /EFI/debian/grub.cfg }"),
    ],
)
def test_a_configuration_that_is_wrong_or_has_no_end_is_refused_or_named(config: str) -> None:
    try:
        assert booted(grub(), files={CONFIG: config.encode()}).registers == (0,)
    except PredictionError as error:
        text = str(error)
    else:
        text = "GRUB's configuration is carried out"
    assert text.startswith("GRUB's configuration")


def test_an_older_grub_measures_nothing_in_a_td_and_says_so() -> None:
    files = {CONFIG: b"linux /vmlinuz ro\nboot", "/vmlinuz": KERNEL}
    prediction = booted(grub(version="2.12", modules=("tpm", "peimage")), files=files)
    assert told(prediction) == []
    assert any("2.12" in each for each in prediction.notes)
    tags = [each.digest for each in prediction.events if each.event_type == 6]
    assert tags == [sha384("BOOT_IMAGE=/vmlinuz ro".encode("utf-16-le"))]
    assert authenticode_digest(KERNEL) not in [each.digest for each in prediction.events]


def test_a_log_gives_the_machine_and_the_files_the_rest() -> None:
    files = {CONFIG: b"linux /vmlinuz ro\nboot", "/vmlinuz": KERNEL}
    old = booted(shim(), grub(), files=files)
    blob = b"\x02Fv" + struct.pack("<QQ", 0, 0x4000)
    log = [replace(each, name="", data=blob if each.event_type == BLOB2 else each.data) for each in old.events]
    changed = {**files, CONFIG: b"linux /vmlinuz quiet\nboot"}
    for disk in (DISK, None):
        found = predict_disk_from_log(edk2_like(), boot(shim(), grub(), files=changed, disk=disk), log)
        assert found.rtmrs == booted(shim(), grub(), files=changed).rtmrs
        assert found.registers == (0, 1, 2)
    with pytest.raises(PredictionError, match="not that of a boot from a disk"):
        predict_disk_from_log(edk2_like(), boot(KERNEL), [each for each in log if each.rtmr == 0])


def test_under_secure_boot_an_unsigned_loader_is_refused() -> None:
    firmware = edk2_like({("PK", UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")): b"k", ("db", IMAGE_SECURITY): b""})
    with pytest.raises(PredictionError, match="enforces Secure Boot"):
        booted(executable([(".text", b"x")]), firmware=firmware)


@pytest.mark.slow
def test_predicted_is_what_a_boot_from_a_disk_extends(skip_loudly: Callable[[str], NoReturn]) -> None:
    """$SWTDX_DISK_BOOT: FIRMWARE:DISK:FOLDER:LOADER[:LOADER]..., FOLDER being what GRUB sees of the disk."""
    given = [Path(each) for each in os.environ.get("SWTDX_DISK_BOOT", "").split(":") if each]
    if len(given) < 4:
        skip_loudly("no $SWTDX_DISK_BOOT; not shown: what is predicted of shim and GRUB is what they extend")
    firmware, disk, folder, *loaders = given

    def read(device: str, path: str) -> bytes | None:
        found = folder / path.lstrip("/")
        return found.read_bytes() if found.is_file() else None

    chain = tuple(Image(str(each), each.read_bytes()) for each in loaders)
    content = DiskBoot(chain, read, disk=disk.read_bytes()[: 1 << 20])
    prediction = predict_disk_boot(firmware.read_bytes(), content, 512 << 20)
    device = VirtioBlk(open_disk(parse_disk(f"{disk},ro")))
    seen, _ = seen_rtmrs(firmware.read_bytes(), None, 512 << 20, 1, len(prediction.events), (device,), 240)
    assert seen == [[event.rtmr, event.digest.hex()] for event in prediction.events]
