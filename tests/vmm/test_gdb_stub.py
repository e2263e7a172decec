# SPDX-License-Identifier: GPL-2.0-or-later
"""gdb's remote protocol on whole machines, spoken by a client that is not gdb (gdb manual, appendix E)."""

from __future__ import annotations

import random
import socket
import struct
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from swtdx.cpu.platform import Platform, host_features
from swtdx.vmm.gdb.packet import PACKET_SIZE
from swtdx.vmm.outcome import End
from tests.vmm.gdb_guest import BASE, COUNTER, DATA, MEMORY, STACK, STOP, VECTOR, Client, Session, debugged

TRAP = b"T05thread:01;"
# gdb numbers registers as the description lists them; QEMU's begins so, and has these system registers.
FIRST = [
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "r9"),
    *("r10", "r11", "r12", "r13", "r14", "r15", "rip", "eflags"),
]
SYSTEM = (
    "fs_base",
    "gs_base",
    "k_gs_base",
    "cr0",
    "cr2",
    "cr3",
    "cr4",
    "cr8",
    "efer",
    "cs",
    "gs",
    "st7",
    "xmm15",
    "mxcsr",
    "xcr0",
)


needs_avx = pytest.mark.skipif("avx2" not in host_features(), reason="this processor has no AVX2: no YMM registers")


class Debugged(NamedTuple):
    """A session and a client that has connected; the guest has not run yet."""

    session: Session
    client: Client
    at: dict[str, int]


@pytest.fixture(params=["VM", "debug TD"])
def both(request: pytest.FixtureRequest) -> Iterator[Debugged]:
    with debugged(td=request.param != "VM") as session:
        yield Debugged(session, session.connect(), session.symbols)


@pytest.fixture
def vm() -> Iterator[Debugged]:
    with debugged() as session:
        yield Debugged(session, session.connect(), session.symbols)


@pytest.fixture
def td() -> Iterator[Debugged]:
    with debugged(td=True) as session:
        yield Debugged(session, session.connect(), session.symbols)


def hardware(kind: int, address: int, length: int = 1) -> bytes:
    return b"%d,%x,%x" % (kind, address, length)


def run_to(debugged: Debugged, label: str) -> None:
    """To a hardware breakpoint, which is then gone."""
    where = hardware(1, debugged.at[label])
    assert debugged.client.ask(b"Z" + where) == b"OK"
    assert debugged.client.ask(b"c") == TRAP + b"hwbreak:;"
    assert debugged.client.ask(b"z" + where) == b"OK"


def test_the_machine_waits_and_the_first_instruction_is_the_reset_vectors(both: Debugged) -> None:
    client = both.client
    assert client.ask(b"?") == TRAP
    registers = client.registers()
    assert (registers["rip"] | 0xFFFF0000) == 0xFFFFFFF0
    assert sum(both.session.run.exits.values()) == both.session.run.exits.get("INTR", 0)
    assert client.memory(BASE + 0xFFF0, 1) in (0xE9, 0xEB), "a jump"


def test_target_xml_describes_what_g_sends(vm: Debugged) -> None:
    client = vm.client
    supported = client.ask(b"qSupported:multiprocess+;swbreak+;hwbreak+;xmlRegisters=i386").split(b";")
    assert {b"qXfer:features:read+", b"swbreak+", b"hwbreak+", b"vContSupported+"} <= set(supported)
    target = ET.fromstring(client.description())
    assert target.findtext("architecture") == "i386:x86-64"
    registers = target.findall("feature/reg")
    assert len(client.ask(b"g")) == sum(int(register.get("bitsize", "0")) for register in registers) // 4
    names = [register.get("name") for register in registers]
    assert names[:18] == FIRST
    assert {*SYSTEM} <= {*names}
    assert client.ask(b"qXfer:features:read:other.xml:0,10") == b"E00"


def test_a_software_breakpoint_is_met_again_and_again_and_not_seen_in_memory(both: Debugged) -> None:
    run_to(both, "loop")
    client, work = both.client, both.at["work"]
    code = client.memory(work)
    assert client.ask(b"Z0,%x,1" % work) == b"OK"
    assert client.memory(work) == code
    assert client.monitor(f"xp {work:#x} 1").endswith(f"{code & 0xFF:02x}\n")
    for turn in range(3):
        assert client.ask(b"c") == TRAP + b"swbreak:;"
        assert client.registers()["rip"] == work
        assert client.memory(COUNTER) == turn
        assert client.ask(b"z0,%x,1" % work) == b"OK"  # as gdb does it: step over it, put it back
        assert client.ask(b"vCont;s:1") == TRAP
        assert client.ask(b"Z0,%x,1" % work) == b"OK"
    assert client.ask(b"z0,%x,1" % work) == b"OK"
    assert client.memory(work) == code


def test_stepping_goes_through_a_call_and_counts(both: Debugged) -> None:
    run_to(both, "loop")
    client, at = both.client, both.at
    assert client.ask(b"s") == TRAP
    registers = client.registers()
    assert (registers["rip"], registers["rsp"], registers["eflags"] & 1 << 8) == (at["work"], STACK - 8, 0)
    assert client.memory(STACK - 8) == at["loop"] + 5
    for label in ("count", "counted"):
        assert client.ask(b"vCont;s:1;c") == TRAP
        assert client.registers()["rip"] == at[label]
    assert client.memory(COUNTER) == 1
    assert client.ask(b"s") == TRAP
    assert client.registers()["rcx"] == 7


def test_a_write_watchpoint_stops_behind_the_store_and_says_which(both: Debugged) -> None:
    run_to(both, "loop")
    client = both.client
    where = hardware(2, COUNTER, 8)
    assert client.ask(b"Z" + where) == b"OK"
    for turn in (1, 2):
        assert client.ask(b"vCont;c") == TRAP + b"watch:%x;" % COUNTER
        assert client.registers()["rip"] == both.at["counted"]
        assert client.memory(COUNTER) == turn
    assert client.ask(b"z" + where) == b"OK"
    assert client.ask(b"Z" + hardware(4, STOP, 1)) == b"OK"
    assert client.ask(b"c") == TRAP + b"awatch:%x;" % STOP


def test_registers_and_memory_can_be_set(both: Debugged) -> None:
    run_to(both, "counted")
    client = both.client
    number = [*["rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "r9"]].index("r9")
    assert client.ask(b"P%x=8877665544332211" % number) == b"OK"
    assert client.registers()["r9"] == 0x1122334455667788
    assert client.ask(b"p%x" % number) == b"8877665544332211"
    assert client.ask(b"M%x,3:aabbcc" % (DATA + 0x1003)) == b"OK"  # beside 8-byte words
    assert client.ask(b"X%x,4:\x01}\x03}]#"[:0] + b"X%x,2:}\x03Z" % (DATA + 0x1006)) == b"OK"  # "#" escaped
    assert client.memory(DATA + 0x1000, 10) == int.from_bytes(b"\0\0\0\xaa\xbb\xcc#Z\0\0", "little")
    assert client.ask(b"M%x,2:0102" % (DATA + 0x1FFF)) == b"OK"  # across pages
    assert client.memory(DATA + 0x1FFF, 2) == 0x0201
    everything = client.ask(b"g")
    assert client.ask(b"G" + everything) == b"OK"
    assert client.ask(b"g") == everything


def lanes(*values: int) -> tuple[int, int]:
    """The lower and the upper half of a YMM register of eight integers."""
    whole = struct.pack("<8I", *values)
    return int.from_bytes(whole[:16], "little"), int.from_bytes(whole[16:], "little")


@needs_avx
def test_whole_vector_registers_are_read_and_written(both: Debugged) -> None:
    """What the guest loads is seen, and what is written is what it computes with (SDM volume 1, 13.5.2)."""
    run_to(both, "loop")
    client, at = both.client, both.at
    assert client.registers()["xcr0"] == 1
    assert client.set_register("ymm2h", 5) == b"OK", "held whatever XCR0 enables"
    assert client.registers()["ymm2h"] == 5
    assert client.set_register("rip", at["vectors"]) == b"OK"
    run_to(both, "loaded")
    registers = client.registers()
    assert registers["xcr0"] == 7
    assert (registers["xmm0"], registers["ymm0h"]) == lanes(1, 2, 3, 4, 5, 6, 7, 8)
    assert registers["ymm2h"] == 5
    for name, values in (("1", range(10, 90, 10)), ("2", range(100, 900, 100)), ("15", range(8))):
        low, high = lanes(*values)
        assert client.set_register(f"ymm{name}h", high) == b"OK"
        assert client.set_register(f"xmm{name}", low) == b"OK"
        registers = client.registers()
        assert (registers[f"xmm{name}"], registers[f"ymm{name}h"]) == (low, high), "one half leaves the other"
    everything = client.ask(b"g")
    assert client.ask(b"G" + everything) == b"OK"
    assert client.ask(b"g") == everything
    run_to(both, "stored")
    assert client.memory(VECTOR, 32) == int.from_bytes(struct.pack("<8I", *range(110, 990, 110)), "little")


def test_x87_and_sse_registers_are_written(both: Debugged) -> None:
    client = both.client
    run_to(both, "loop")
    one = 0x3FFF_8000_0000_0000_0000
    written = {"st0": one, "st7": 3, "xmm0": 1 << 127 | 5, "xmm15": 7, "mxcsr": 0x1F81, "fctrl": 0x27F, "fstat": 0x3800}
    for name, value in written.items():
        assert client.set_register(name, value) == b"OK"
    assert {name: client.registers()[name] for name in written} == written
    assert client.set_register("mxcsr", 0x10000)[:1] == b"E", "a reserved bit: XRSTOR would fault"
    assert client.set_register("ftag", 0)[:1] == b"E"
    assert {name: client.registers()[name] for name in written} == written


@pytest.mark.parametrize("td", [False, True], ids=["VM", "debug TD"])
def test_registers_that_the_processor_lacks_are_not_described(td: bool) -> None:
    with debugged(td=td, platform=Platform(cpu_features=frozenset())) as session:
        client = session.connect()
        names = {name for name, _ in client.described()}
        assert {"xmm15", "mxcsr", "xcr0"} <= names
        assert not any(name.startswith("ymm") for name in names)
        assert b"org.gnu.gdb.i386.avx" not in client.description()
        assert set(client.registers()) == names


def test_the_guest_ends_when_told_to_and_the_client_hears_how(both: Debugged) -> None:
    run_to(both, "loop")
    client = both.client
    assert client.ask(b"M%x,1:01" % STOP) == b"OK"
    assert client.ask(b"c") == b"W00"
    outcome = both.session.run.wait(20)
    assert outcome is not None
    assert outcome.end is End.POWER_OFF


def test_ctrl_c_stops_a_running_guest(both: Debugged) -> None:
    client = both.client
    client.send(b"c")
    time.sleep(0.3)
    assert client.interrupt() == b"T02thread:01;"
    first = client.memory(COUNTER)
    assert first > 0
    time.sleep(0.1)
    assert client.memory(COUNTER) == first
    client.send(b"vCont;c")
    time.sleep(0.1)
    assert client.interrupt().startswith(b"T02")
    assert client.memory(COUNTER) > first


def test_memory_that_is_not_there_is_an_error_and_not_the_end(both: Debugged) -> None:
    run_to(both, "loop")
    client = both.client
    assert client.ask(b"m%x,8" % (MEMORY + 0x100000)) == b"E0e"
    assert client.ask(b"m8000000000000000,8") == b"E0e", "not canonical"
    assert client.ask(b"M%x,1:00" % (MEMORY + 0x100000)) == b"E0e"
    assert client.ask(b"Z0,%x,1" % (MEMORY + 0x100000)) == b"E0e"
    end = MEMORY if both.session.machine.plan.td is None else DATA + 0x6000  # of what the TD started with
    across = client.ask(b"m%x,20" % (end - 16))
    assert len(across) == 32, "as much as there is"


def test_four_debug_registers_and_no_more(vm: Debugged) -> None:
    client = vm.client
    for number in range(4):
        assert client.ask(b"Z1,%x,1" % (0x1000 + number)) == b"OK"
    assert client.ask(b"Z1,1000,1") == b"OK", "the same one again"
    assert client.ask(b"Z1,2000,1") == b"E1c"
    assert client.ask(b"z1,1000,1") == b"OK"
    assert client.ask(b"Z2,2000,4") == b"OK"
    assert client.ask(b"z2,2000,4") == b"OK"
    assert client.ask(b"Z2,2001,4") == b"E16", "not aligned"
    assert client.ask(b"Z2,2000,3") == b"E16"
    assert client.ask(b"Z3,2000,4") == b"", "x86 has no read watchpoints"


def test_the_guests_own_int3_stays_its_own(both: Debugged) -> None:
    """Its handler counts in RBX. A breakpoint elsewhere makes #BP exit; this one is given back."""
    run_to(both, "loop")
    client, at = both.client, both.at
    assert client.ask(b"M%x,1:cc" % at["own_int3"]) == b"OK"
    assert client.ask(b"Z0,%x,1" % at["loop"]) == b"OK"
    assert client.ask(b"z0,%x,1" % at["loop"]) == b"OK"
    assert client.ask(b"Z0,%x,1" % at["power_off"]) == b"OK"
    assert client.ask(b"Z" + hardware(2, COUNTER, 8)) == b"OK"
    for turn in range(3):
        assert client.ask(b"c").startswith(TRAP + b"watch")
        assert client.registers()["rbx"] == turn


def test_detaching_takes_all_away_and_the_guest_goes_on(both: Debugged) -> None:
    run_to(both, "loop")
    client, work = both.client, both.at["work"]
    assert client.ask(b"Z0,%x,1" % work) == b"OK"
    assert client.ask(b"Z" + hardware(2, COUNTER, 8)) == b"OK"
    assert client.ask(b"D") == b"OK"
    with pytest.raises(EOFError):
        client.byte()
    time.sleep(0.2)
    again = both.session.connect()
    assert again.ask(b"?") == TRAP
    assert again.memory(COUNTER) > 1
    assert again.memory(work, 1) != 0xCC


def test_a_connection_that_breaks_leaves_a_running_guest(both: Debugged) -> None:
    run_to(both, "loop")
    assert both.client.ask(b"Z0,%x,1" % both.at["work"]) == b"OK"
    both.client.close()
    again = both.session.connect()
    assert again.ask(b"?") == TRAP
    before = again.memory(COUNTER)
    again.send(b"c")
    time.sleep(0.2)
    again.interrupt()
    assert again.memory(COUNTER) > before
    assert "the debugger is gone, the VM continues" in both.session.said


def test_a_guest_that_crashes_can_be_looked_at_before_it_is_gone(both: Debugged) -> None:
    run_to(both, "loop")
    client = both.client
    assert client.ask(b"Z0,%x,1" % both.at["power_off"]) == b"OK"
    assert client.ask(b"P10=0000000001000000") == b"OK"  # RIP to 4 GiB, where nothing is mapped; no #PF handler
    assert client.ask(b"c") == b"T06thread:01;"
    assert client.registers()["cr2"] == 1 << 32
    assert client.memory(both.at["loop"], 1) == 0xE8
    assert both.session.run.outcome is None
    assert client.ask(b"c") == b"W03"
    outcome = both.session.run.wait(20)
    assert outcome is not None
    assert outcome.end is End.CRASH
    assert "triple fault" in outcome.text


def test_kill_ends_the_run(vm: Debugged) -> None:
    vm.client.send(b"k")
    outcome = vm.session.run.wait(20)
    assert outcome is not None
    assert outcome.end is End.LEFT
    with pytest.raises(EOFError):
        vm.client.byte()


def test_a_run_that_ends_by_itself_frees_a_client_that_waits() -> None:
    with debugged() as session:
        client = session.connect()
        client.send(b"c")
        session.run.stop()
        assert client.receive() == b"W82", "130: stopped from outside"


def test_without_waiting_the_machine_runs_until_somebody_comes() -> None:
    with debugged(wait=False) as session:
        time.sleep(0.3)
        client = session.connect()
        assert client.ask(b"?") == TRAP
        first = client.memory(COUNTER)
        assert first > 0
        time.sleep(0.1)
        assert client.memory(COUNTER) == first


def test_monitor(both: Debugged) -> None:
    run_to(both, "loop")
    client = both.client
    listed = client.monitor("help")
    assert {line.split()[0] for line in listed.splitlines()} == {"help", "info", "translate", "xp", "quit"}
    info = client.monitor("info")
    assert ("debug TD" in info) == (both.session.machine.plan.td is not None)
    assert f"rip {both.at['loop']:#x}" in info
    assert client.monitor(f"translate {BASE:#x}") == f"{BASE:#x}\n"
    assert "is not mapped" in client.monitor("translate 0x8000000000") or "canonical" in info
    assert client.monitor("xp").startswith("usage: xp ADDRESS")
    assert client.monitor("xp 0x1000 99999999").startswith("usage")
    assert client.monitor("reboot").startswith("'reboot' is not a command")
    assert client.monitor("quit") == "the run is over\n"
    outcome = both.session.run.wait(20)
    assert outcome is not None
    assert outcome.end is End.LEFT


def test_physical_addresses_as_qemu_has_them(vm: Debugged) -> None:
    """Qqemu.PhyMemMode: before paging is on, 4 GiB and 16 bytes is beyond everything; as a linear address it wraps."""
    client = vm.client
    assert client.ask(b"qqemu.PhyMemMode") == b"0"
    assert client.ask(b"Qqemu.PhyMemMode:1") == b"OK"
    assert client.ask(b"m10000fff0,1") == b"E0e"
    assert client.memory(BASE + 0xFFF0, 1) in (0xE9, 0xEB)
    assert client.ask(b"Qqemu.PhyMemMode:0") == b"OK"


def test_vcpus_are_threads() -> None:
    with debugged(cpus=2) as session:
        client, at = session.connect(), session.symbols
        assert client.ask(b"qfThreadInfo") == b"m1,2"
        assert client.ask(b"qsThreadInfo") == b"l"
        assert bytes.fromhex(client.ask(b"qThreadExtraInfo,2").decode()) == b"vCPU 1"
        assert client.ask(b"T2") == b"OK"
        assert client.ask(b"T3") == b"E16"
        assert client.ask(b"Hg2") == b"OK"
        assert client.ask(b"qC") == b"QC2"
        assert client.registers()["rip"] == 0xFFF0
        # the second one would wait for INIT; here it starts by itself
        session.machine.vcpus[1].set_mp_state(0)
        assert client.ask(b"Z0,%x,1" % at["count"]) == b"OK"
        met = set()
        for _ in range(20):
            reply = client.ask(b"vCont;c")
            thread = int(reply.split(b":")[1].split(b";")[0], 16)
            met.add(thread)
            assert reply == b"T05thread:%02x;swbreak:;" % thread
            assert client.registers()["rip"] == at["count"]
            assert client.ask(b"z0,%x,1" % at["count"]) == b"OK"
            other = 3 - thread
            assert client.ask(b"Hg%x" % other) == b"OK"
            before = client.registers()["rip"]
            assert client.ask(b"vCont;s:%x" % thread) == b"T05thread:%02x;" % thread
            assert client.registers()["rip"] == at["counted"]
            assert client.ask(b"Hg%x" % other) == b"OK"
            assert client.registers()["rip"] == before, "the other one stood"
            assert client.ask(b"Z0,%x,1" % at["count"]) == b"OK"
            if met == {1, 2}:
                break
        assert met == {1, 2}


@pytest.mark.parametrize("host", [False, True], ids=["emulated", "host"])
def test_the_same_on_any_kvm(host: bool, request: pytest.FixtureRequest) -> None:
    """Only what every KVM does: some of those without hardware virtualization have no breakpoints."""
    if host:
        request.getfixturevalue("host_kvm")
    with debugged(host=host) as session:
        client = session.connect()
        assert client.registers()["rip"] == 0xFFF0
        assert client.ask(b"s") == TRAP
        assert client.registers()["rip"] == session.symbols["start"] & 0xFFFF
        assert client.ask(b"s") == TRAP
        assert client.registers()["rip"] == (session.symbols["start"] & 0xFFFF) + 1, "behind CLI"
        assert client.ask(b"P0=1122334455667788") == b"OK"
        assert client.registers()["rax"] == 0x8877665544332211
        assert client.memory(BASE + 0xFFF0, 1) in (0xE9, 0xEB)


def test_acknowledgements_can_be_left_out_and_repeats_asked_for(vm: Debugged) -> None:
    client = vm.client
    first = client.ask(b"qC")
    client.socket.sendall(b"-")
    assert client.receive() == first
    client.socket.sendall(b"$qC#00")
    assert client.byte() == b"-", "a wrong checksum"
    assert client.ask(b"QStartNoAckMode") == b"OK"
    client.acknowledges = False
    assert client.ask(b"qC") == first


@pytest.mark.parametrize(
    "packet",
    [
        b"m", b"m1", b"mz,1", b"m1,", b"m-1,1", b"M1,2:00", b"M1,1:zz", b"X1,5:a", b"Z0", b"Z9,1,1", b"Z0,1", b"p",
        b"pfff", b"P1", b"P1=00", b"Pfff=00", b"G00zz", b"Hx1", b"Hg", b"Hg99", b"Tq", b"vCont;", b"vCont;x",
        b"vCont;s:77", b"vContx", b"qThreadExtraInfo,9", b"qRcmd,zz", b"cxyz", b"sxyz", b"m ffff,1", b"m1_0,1",
        b"qXfer:features:read:target.xml:zz,1",
    ],
)  # fmt: skip
def test_nonsense_is_an_error_and_nothing_more(vm_for_nonsense: Debugged, packet: bytes) -> None:
    assert vm_for_nonsense.client.ask(packet)[:1] == b"E"
    assert vm_for_nonsense.client.ask(b"qAttached") == b"1"


@pytest.fixture(scope="module")
def vm_for_nonsense() -> Iterator[Debugged]:
    with debugged() as session:
        yield Debugged(session, session.connect(), session.symbols)


@pytest.mark.parametrize("packet", [b"", b"vMustReplyEmpty", b"qSymbol::", b"!", b"R00", b"i", b"QNonStop:1", b"\xff"])
def test_what_is_not_known_gets_the_empty_reply(vm_for_nonsense: Debugged, packet: bytes) -> None:
    assert vm_for_nonsense.client.ask(packet) == b""


def test_too_much_is_refused_and_forgotten(vm_for_nonsense: Debugged) -> None:
    client = vm_for_nonsense.client
    flood = b"m" + b"0" * (4 * PACKET_SIZE)
    client.socket.sendall(b"$" + flood + b"#00")
    assert client.byte() == b"-"
    assert len(client.ask(b"m%x,ffffff" % BASE)) <= PACKET_SIZE


def test_garbage_harms_nobody(both: Debugged) -> None:
    """Random bytes, random packets with good checksums, half packets, connections that close: the guest runs on."""
    chance = random.Random(5)
    letters = b"?gGpPmMXcCsSHTZzvqQD!\x03$#}*:;,=0123456789abcdef"
    session = both.session
    both.client.close()
    for turn in range(12):
        noise = socket.create_connection(("127.0.0.1", int(session.server.where.rpartition(":")[2])), timeout=5)
        with noise:
            noise.settimeout(0.02)
            for _ in range(30):
                if chance.random() < 0.5:
                    data = bytes(chance.choices(letters, k=chance.randrange(1, 40)))
                    data = data.replace(b"#", b"").replace(b"$", b"")
                    data = b"$" + data + b"#%02x" % (sum(data) & 0xFF)
                else:
                    data = chance.randbytes(chance.randrange(1, 200))
                if data[:1] == b"$" and data[1:2] in b"cCsSGPMXkv":
                    continue  # these may rightly change the guest, or end it
                try:
                    noise.sendall(data)
                    noise.recv(65536)
                except TimeoutError:
                    continue
                except OSError:
                    break
        assert session.run.outcome is None, (turn, session.run.outcome)
    client = session.connect()
    assert client.ask(b"qAttached") == b"1"
