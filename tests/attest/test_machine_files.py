# SPDX-License-Identifier: GPL-2.0-or-later
"""RTMRs on machines that are known by files, and of td-shim: after QEMU's, edk2's and td-shim's sources."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from swtdx.attest.boot_prediction import PredictionError
from swtdx.attest.direct_boot import predict_direct_boot
from swtdx.attest.machine_files import MachineFiles, read_fw_cfg, read_variables
from swtdx.attest.measure import complete, measure_tdvf
from swtdx.attest.td_shim import is_td_shim, measured_hob, predict_td_shim, with_payload
from swtdx.attest.variable_store import GLOBAL, VariableStoreError
from swtdx.image import tdvf as parser
from swtdx.image.linux_image import LinuxBoot, parse
from testing.tdvf_image import BFV, HOB, TEMP, Image, Row
from testing.uefi_image import edk2_like, efi_kernel, stored, variable_store

MEMORY = 64 << 20
LINUX = LinuxBoot(parse(efi_kernel(), "vmlinuz"))
HOB_LIST = struct.pack("<HHI", 1, 56, 0) + bytes(48) + struct.pack("<HHI", 0xFFFF, 8, 0)
PAYLOAD: Row = (0, 0, 0x100_0000, 0x4000, 5, 0)
PARAMETERS: Row = (0, 0, 0x200_0000, 0x1000, 6, 0)


def sha384(data: bytes) -> bytes:
    return hashlib.sha384(data).digest()


def digests(machine: MachineFiles, image: bytes | None = None) -> list[bytes]:
    prediction = predict_direct_boot(image or edk2_like(), LINUX, MEMORY, machine=machine)
    return [event.digest for event in prediction.events if event.rtmr == 0]


def command(kind: int, file: str) -> bytes:
    """One of the table loader (QEMU, hw/acpi/bios-linker-loader.c): 128 bytes."""
    return struct.pack("<I56s", kind, file.encode()).ljust(128, b"\0")


def loader(*files: str) -> bytes:
    return b"".join(command(1, each) for each in files) + command(3, "etc/acpi/tables") + bytes(128)


def test_acpi_tables_and_the_items_that_sec_measures_come_from_fw_cfg() -> None:
    files = {
        "etc/table-loader": loader("etc/acpi/rsdp", "etc/acpi/tables"), "etc/acpi/rsdp": b"RSD PTR ",
        "etc/acpi/tables": b"DSDT", "bootorder": b"/pci@i0cf8\0", "etc/extra-pci-roots": bytes(8),
    }  # fmt: skip
    found = digests(MachineFiles(fw_cfg=files))
    for each in files.values():
        assert sha384(each) in found
    assert found.index(sha384(b"RSD PTR ")) == found.index(sha384(files["etc/table-loader"])) + 1
    with pytest.raises(PredictionError, match="no etc/acpi/rsdp, which its table loader allocates"):
        digests(MachineFiles(fw_cfg={"etc/table-loader": loader("etc/acpi/rsdp")}))


@pytest.mark.parametrize("raw", [False, True])
def test_a_copy_of_sysfs_and_a_plain_tree(tmp_path: Path, raw: bool) -> None:
    for name in ("etc/table-loader", "etc/acpi/tables"):
        path = tmp_path / name / "raw" if raw else tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
        if raw:
            (path.parent / "size").write_text("16\n")
    assert read_fw_cfg(tmp_path) == {name: name.encode() for name in ("etc/table-loader", "etc/acpi/tables")}


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PredictionError, match="not a copy of fw_cfg"):
        read_fw_cfg(tmp_path)


def test_the_td_hob_of_another_vmm_is_measured_without_its_end() -> None:
    assert digests(MachineFiles(hob=HOB_LIST + bytes(100)))[0] == sha384(HOB_LIST[:-8])
    for damage in (b"", b"x" * 40, HOB_LIST[:-8], bytes(64)):
        with pytest.raises(PredictionError, match="not a list of HOBs"):
            measured_hob(damage)


def test_variables_from_a_store_replace_those_of_the_image() -> None:
    variables = {("db", UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")): b"a list", ("BootOrder", GLOBAL): bytes(2),
                 ("Boot0000", GLOBAL): b"an option"}  # fmt: skip
    store = variable_store(stored(variables))
    found = digests(MachineFiles(variables=read_variables(store), cfv=store))
    assert found[1] == sha384(store)
    assert sha384(b"an option") in found
    assert sha384(bytes([0, 0, 1, 0])) in found  # the firmware adds its menu behind the stored option
    listed = [
        {"name": name, "guid": str(guid), "attr": 7, "data": data.hex()} for (name, guid), data in variables.items()
    ]
    as_json = read_variables(json.dumps({"version": 2, "variables": listed}).encode())
    assert as_json.variables == variables
    for damage in (b"{}", b'{"variables": [{"name": "x"}]}', b'{"variables": 5}', b"text", bytes(4096)):
        with pytest.raises(VariableStoreError):
            read_variables(damage)


def td_shim(*rows: Row, code: bytes = b"td_payload_info") -> bytes:
    image = bytearray(replace(Image(), rows=(BFV, TEMP, *rows)).build())
    image[BFV[0] : BFV[0] + len(code)] = code
    return bytes(image)


def test_td_shim_measures_hob_separators_kernel_and_command_line() -> None:
    image = td_shim(HOB, PAYLOAD, PARAMETERS)
    assert is_td_shim(image)
    tdvf = complete(with_payload(parser.parse(image, "shim"), b"a kernel", "quiet"))
    prediction = predict_td_shim(tdvf, HOB_LIST + bytes(64))
    found = [(event.rtmr, event.digest) for event in prediction.events]
    assert found == [
        *((0, sha384(HOB_LIST)), (0, sha384(bytes(4))), (1, sha384(bytes(4)))),
        (1, sha384(b"a kernel".ljust(0x4000, b"\0"))),
        (1, sha384(b"quiet".ljust(0x1000, b"\0"))),
    ]
    assert prediction.rtmrs[2] == bytes(48)
    assert prediction.events[0].words.startswith("td_hob")
    assert all(event.data_measured is not False for event in prediction.events)
    other = complete(with_payload(parser.parse(image, "shim"), b"other", ""))
    assert measure_tdvf(tdvf).mrtd == measure_tdvf(other).mrtd


def test_a_payload_that_is_in_mrtd_is_not_in_rtmr1() -> None:
    image = td_shim(HOB, (*PAYLOAD[:5], 1), PARAMETERS)
    tdvf = with_payload(parser.parse(image, "shim"), b"a kernel", "quiet")
    prediction = predict_td_shim(tdvf)
    assert [event.rtmr for event in prediction.events] == [0, 1, 1]
    assert (prediction.registers, "td_hob" in prediction.unpredicted[0]) == ((1, 2), True)
    other = with_payload(parser.parse(image, "shim"), b"other", "quiet")
    assert measure_tdvf(tdvf).mrtd != measure_tdvf(other).mrtd


def test_what_td_shim_brings_itself_and_what_does_not_fit() -> None:
    own = parser.parse(td_shim(HOB), "shim")
    assert [event.rtmr for event in predict_td_shim(own, HOB_LIST).events] == [0, 0, 1]
    with pytest.raises(PredictionError, match="no sections for a kernel"):
        with_payload(own, b"kernel", "")
    with pytest.raises(PredictionError, match="no room for"):
        with_payload(parser.parse(td_shim(HOB, PAYLOAD, PARAMETERS), "shim"), bytes(0x5000), "")
    verifying = with_payload(
        parser.parse(td_shim(HOB, PAYLOAD, PARAMETERS, code=b"td_payload_info secure_policy_db"), "shim"), b"k", ""
    )
    assert predict_td_shim(verifying, HOB_LIST).registers == (2,)
