# SPDX-License-Identifier: GPL-2.0-or-later
"""Whole QEMUs under ``swtdx exec``, by hand: what ``script/try-qemu`` runs.

Each case boots guests, talks to their consoles and QEMU's monitor, and raises `Failed` if they do not do what a machine
with KVM would have them do. `CASES` is the list; a case is a name and a function.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

from testing.places import REPOSITORY

_PROMPT = "swtdx# "
_PATIENCE_SECONDS = 900.0


class Failed(Exception):
    """A guest or QEMU did something else; the text says what."""


@dataclass(frozen=True)
class Qemu:
    """A QEMU: its name, the command's first words, and where its OVMF is."""

    name: str
    words: tuple[str, ...]
    firmware: Path


class Guest:
    """A QEMU that runs, with the guest's console on its standard output."""

    def __init__(self, command: list[str], monitor: Path | None = None) -> None:
        self.monitor = monitor
        self.output, self._read = b"", 0
        environment = {**os.environ, "SWTDX_EXEC_OPTIONS": "--quiet"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
        )
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()

    def expect(self, text: str, typed: str = "") -> None:
        """Type a line, and wait for ``text`` behind everything that was expected before. Raises Failed."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        if typed:
            self.process.stdin.write(typed.encode() + b"\n")
            self.process.stdin.flush()
        end = time.monotonic() + _PATIENCE_SECONDS
        while (found := self.output.find(text.encode(), self._read)) < 0:
            ended = self.process.poll() is not None
            self.output += self.process.stdout.read() or b""
            if (ended and text.encode() not in self.output[self._read :]) or time.monotonic() > end:
                shown = self.output.decode("utf-8", "replace")[-1500:]
                raise Failed(f"no {text!r}{' when QEMU ended' if ended else ''}; the end of its output:\n{shown}")
            time.sleep(0.05)
        self._read = found + len(text)

    def order(self, line: str) -> str:
        """What QEMU's monitor answers. Raises Failed."""
        assert self.monitor is not None
        with socket.socket(socket.AF_UNIX) as talk:
            talk.settimeout(_PATIENCE_SECONDS)
            talk.connect(str(self.monitor))
            self._until_prompt(talk)
            talk.sendall(line.encode() + b"\n")
            answer = self._until_prompt(talk)
        said = answer.partition("\n")[2].rpartition("(qemu)")[0].strip()
        if said.startswith("Error"):
            raise Failed(f"{line}: {said}")
        return said

    def runs(self) -> None:
        """Wait until QEMU lets the guest run. Raises Failed."""
        end = time.monotonic() + _PATIENCE_SECONDS
        while True:
            with contextlib.suppress(OSError):
                if "running" in self.order("info status"):
                    return
            if self.process.poll() is not None or time.monotonic() > end:
                raise Failed("QEMU does not run the guest")
            time.sleep(0.2)

    @staticmethod
    def _until_prompt(talk: socket.socket) -> str:
        answer = b""
        while not answer.endswith(b"(qemu) "):
            piece = talk.recv(4096)
            if not piece:
                break
            answer += piece
        return answer.decode("utf-8", "replace")


def _qemus() -> list[Qemu]:
    """Those of this machine, oldest first; a sentence for each that is missing."""
    found = []
    own, sid = shutil.which("qemu-system-x86_64"), Path(os.environ.get("SWTDX_SID") or "/nonexistent")
    if own is not None:
        words: tuple[str, ...] = (sys.executable, "-m", "swtdx", "exec", "--quiet", "--", own)
        found.append(Qemu(_version([own]), words, Path("/usr/share/ovmf/OVMF.fd")))
    else:
        print("NOT TRIED: this machine's QEMU: apt-get install qemu-system-x86", flush=True)
    if (sid / "usr/bin/qemu-system-x86_64").exists():
        words = (str(REPOSITORY / "script/sid-tree"), "run", "qemu-system-x86_64")
        found.append(Qemu(_version([*words]), words, sid / "usr/share/ovmf/OVMF.fd"))
    else:
        print("NOT TRIED: Debian sid's QEMU: there is no tree of script/sid-tree", flush=True)
    return found


def _major(qemu: Qemu) -> int:
    return int(qemu.name.split()[1].split(".")[0])


def _version(command: list[str]) -> str:
    said = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True).stdout
    return "QEMU " + said.split("version ")[1].split()[0]


def _linux() -> list[str]:
    linux = Path(os.environ["SWTDX_LINUX"])
    kernel = max(linux.glob("boot/vmlinuz-*"))
    return ["-kernel", str(kernel), "-initrd", f"{linux}/initrd.img", "-append", "console=ttyS0 quiet"]


_CONSOLE = ["-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"]


def _vm(qemu: Qemu, machine: str, chip: str, cpus: int, folder: Path, *more: str) -> Guest:
    monitor = folder / f"monitor-{time.monotonic_ns()}"
    command = [*qemu.words, "-accel", "kvm", "-machine", f"{machine},kernel-irqchip={chip}", "-cpu", "host"]
    command += ["-m", "256", "-smp", str(cpus), *_CONSOLE, "-monitor", f"unix:{monitor},server=on,wait=off"]
    return Guest([*command, *more], monitor)


def _boots_and_saves(qemu: Qemu, machine: str, chip: str, firmware: str, cpus: int, folder: Path) -> None:
    """Linux by this firmware; savevm, loadvm and a migration to a file, each gone on with."""
    disk, state = folder / "disk.qcow2", folder / "state"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(disk), "64M"], check=True)
    guest = [*_linux(), "-drive", f"file={disk},if=virtio", "-nic", "user,model=virtio-net-pci"]
    guest += ["-bios", str(qemu.firmware)] if firmware == "OVMF" else []
    with _vm(qemu, machine, chip, cpus, folder, *guest) as vm:
        vm.expect(_PROMPT)
        vm.expect(f"on {cpus} CPU", "echo on $(nproc) CPU")  # not what was typed
        vm.expect("alone=1", "word=first; echo alone=$((2-1))")
        vm.expect(_PROMPT)
        vm.order("savevm one")
        vm.expect("now=second", "word=second; echo now=$word")
        vm.order("loadvm one")
        vm.expect("word is first.", "echo word is $word.")
        vm.expect("disk=67108864", "echo disk=$(($(cat /sys/block/vda/size) * 512))")
        vm.order(f'migrate "exec:cat > {state}"')
        end = time.monotonic() + 60
        while "completed" not in (said := vm.order("info migrate")):
            if "failed" in said or time.monotonic() > end:
                raise Failed(f"the migration did not complete: {said}")
            time.sleep(0.1)
    for more, expected in ((["-incoming", f"exec:cat {state}"], "first"), (["-loadvm", "one"], "first")):
        with _vm(qemu, machine, chip, cpus, folder, *guest, *more) as vm:
            vm.runs()  # what is typed while the state is loaded is lost, as the UART is
            vm.expect(f"word is {expected} on {cpus}.", "echo word is $word on $(nproc).")
            vm.expect("timer=0", "sleep 1; echo timer=$?")
            vm.expect("Power down", "dmesg -n 7; poweroff -f")
            if vm.process.wait(60) != 0:
                raise Failed(f"QEMU ended with status {vm.process.returncode} after a power-off")


def _seabios_alone(qemu: Qemu, machine: str, chip: str, _: Path) -> None:
    command = [*qemu.words, "-accel", "kvm", "-machine", f"{machine},kernel-irqchip={chip}", "-nographic"]
    with Guest([*command, "-net", "none"]) as vm:
        vm.expect("No bootable device")


def _td(qemu: Qemu) -> Guest:
    machine = "q35,kernel-irqchip=split,confidential-guest-support=tdx0"
    words = [*qemu.words, "-accel", "kvm", "-cpu", "host", "-object", "tdx-guest,id=tdx0", "-machine", machine]
    return Guest([*words, "-m", "512", *_CONSOLE, "-bios", str(qemu.firmware), *_linux()])


def _a_vm_beside_a_td(older: Qemu, newer: Qemu, folder: Path) -> None:
    """Both to their prompts, at once; the VM is killed, and the TD continues; then the other way round."""
    for kill_the_td in (False, True):
        with _vm(older, "q35", "on", 1, folder, *_linux()) as vm, _td(newer) as td:
            for guest, kind in ((vm, "an ordinary VM"), (td, "a Trust Domain")):
                guest.expect(f"as {kind}")
                guest.expect(_PROMPT)
            victim, other = (td, vm) if kill_the_td else (vm, td)
            os.kill(_program(victim.process.pid), signal.SIGKILL)
            if victim.process.wait(30) not in (128 + signal.SIGKILL, -signal.SIGKILL):
                raise Failed(f"the killed QEMU's command ended with status {victim.process.returncode}")
            other.expect("sum=1225", "i=0; s=0; while [ $i -lt 50 ]; do s=$((s+i)); i=$((i+1)); done; echo sum=$s")
            other.expect("Power down", "dmesg -n 7; poweroff -f")
            if other.process.wait(60) != 0:
                raise Failed(f"the other QEMU ended with status {other.process.returncode}")


def _ten_in_one_tree(qemu: Qemu, folder: Path) -> None:
    """Ten QEMUs below one ``swtdx exec``; three are killed, and the others come to the end of SeaBIOS."""
    inner = " ".join(qemu.words[qemu.words.index("--") + 1 :])
    script = f"""for i in 0 1 2 3 4 5 6 7 8 9; do
  {inner} -accel kvm -nographic -net none </dev/null >{folder}/out$i 2>&1 & eval p$i=$!
done
sleep 3; kill -9 $p2 $p5 $p7
for i in 0 1 3 4 6 8 9; do
  n=0; until grep -aq 'No bootable device' {folder}/out$i || [ $n -gt 600 ]; do sleep 0.5; n=$((n+1)); done
  grep -aq 'No bootable device' {folder}/out$i && echo done $i
  eval kill \\$p$i
done
wait; echo all"""
    with Guest([*qemu.words[: qemu.words.index("--") + 1], "sh", "-c", script]) as tree:
        for number in "0134689":
            tree.expect(f"done {number}")
        tree.expect("all")
        if tree.process.wait(60) != 0:
            raise Failed(f"the tree ended with status {tree.process.returncode}")


def _program(pid: int) -> int:
    """The QEMU below the command ``pid``."""
    while True:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if not children:
            return pid
        pid = int(children[0])


Case = Callable[[Path], None]


def _cases() -> Iterator[tuple[str, Case]]:
    qemus = _qemus()
    for at, (qemu, machine, chip, firmware) in enumerate(
        product(qemus, ("pc", "q35"), ("on", "split"), ("SeaBIOS", "OVMF"))
    ):
        cpus = (1, 2, 4)[at % 3]

        name = f"{qemu.name}, {machine}, irqchip {chip}, {firmware}, Linux on {cpus}: savevm, loadvm, migrate to a file"
        yield name, partial(_boots_and_saves, qemu, machine, chip, firmware, cpus)
    for qemu, machine in product(qemus, ("pc", "q35")):
        if _major(qemu) >= 8:
            continue  # it takes no APIC in user space, on any KVM
        yield f"{qemu.name}, {machine}, irqchip off, SeaBIOS", partial(_seabios_alone, qemu, machine, "off")
    if qemus and _major(qemus[-1]) > 10:
        name = f"a VM of {qemus[0].name} beside a TD of {qemus[-1].name}, one of them killed"
        yield name, lambda folder: _a_vm_beside_a_td(qemus[0], qemus[-1], folder)
    if qemus and "--" in qemus[0].words:
        name = f"ten of {qemus[0].name} in one process tree, three of them killed"
        yield name, lambda folder: _ten_in_one_tree(qemus[0], folder)


def _left_behind(folder: Path, before: set[str]) -> list[str]:
    """Files in TMPDIR and /dev/shm that were not there before."""
    return sorted(set(_there(folder)) - before)


def _there(folder: Path) -> list[str]:
    shm = [f"/dev/shm/{name}" for name in os.listdir("/dev/shm") if "swtdx" in name]
    library = f"swtdx-exec-{os.getuid()}-"  # it stays for the next command
    return [*shm, *(str(path) for path in folder.iterdir() if not path.name.startswith(library))]


def main(words: list[str]) -> int:
    """Run the cases that have one of ``words`` in their name. Returns an exit status."""
    failed = 0
    for name, case in _cases():
        if words and not any(word in name for word in words):
            continue
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as temporary:
            os.environ["TMPDIR"] = temporary
            before = set(_there(Path(temporary)))
            try:
                case(Path(folder))
                if left := _left_behind(Path(temporary), before):
                    raise Failed(f"left behind: {', '.join(left)}")
                result = "right"
            except Failed as error:
                result, failed = f"WRONG: {error}", failed + 1
        print(f"{time.monotonic() - began:6.1f} s  {name}: {result}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
