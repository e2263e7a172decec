# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's whole boots under `swtdx exec`, beside `swtdx run` and QEMU's TCG: the second table of ``script/bench exec``.

QEMU is that of the tree of script/sid-tree (SWTDX_SID). Its TD, our own VMM's TD and an ordinary VM of the same QEMU's
TCG have the same firmware, kernel, initrd and number of processors. Of each run there are the seconds until a text
stands on the guest's console, and the processor seconds that it took. Runs alternate, so that whatever else the machine
does meets all alike; a loaded machine changes the seconds, and the ratios less.
"""

from __future__ import annotations

import functools
import http.server
import lzma
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from guest.newc import DIRECTORY, FILE, newc

_PATIENCE_SECONDS = 900.0
_SID_TREE = Path(__file__).resolve().parents[1] / "script" / "sid-tree"
_NETWORK_MIB = 16
_NETWORK_SCRIPT = f"""#!/bin/sh
for module in failover net_failover virtio_net; do insmod /net/$module.ko; done
ifconfig eth0 10.0.2.15 netmask 255.255.255.0 up
sleep 1
from=$(cut -d' ' -f1 /proc/uptime)
wget -q -O /dev/null http://10.0.2.2:PORT/data && wget -q -O /dev/null http://10.0.2.2:PORT/data
to=$(cut -d' ' -f1 /proc/uptime)
echo "{2 * _NETWORK_MIB} MiB from $from to $to end"
"""
_NETWORK_TEXT = re.compile(r"MiB from ([\d.]+) to ([\d.]+) end")


@dataclass
class Contender:
    """A command and what it took, of each run."""

    command: list[str]
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    inside: list[float] = field(default_factory=list)


def _until(contender: Contender, text: str) -> str:
    """Run it until the text stands on its standard output, and note what it took. Return the output."""
    environment = {**os.environ, "SWTDX_EXEC_OPTIONS": "--quiet"}
    begin = time.perf_counter()
    with subprocess.Popen(
        contender.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    ) as process:
        timer = threading.Timer(_PATIENCE_SECONDS, process.kill)
        timer.start()
        assert process.stdout is not None
        printed, taken = b"", float("nan")
        while piece := os.read(process.stdout.fileno(), 65536):
            printed += piece
            if text.encode() in printed:
                taken = time.perf_counter() - begin
                break
        process.send_signal(signal.SIGTERM)  # `swtdx exec` hands it on, and is charged with what its program took
        process.stdout.close()
        _, _, usage = os.wait4(process.pid, 0)
        process.returncode = 0  # it has been waited for
        timer.cancel()
    contender.wall.append(taken)
    contender.cpu.append(usage.ru_utime + usage.ru_stime)
    return printed.decode("utf-8", "replace")


def _machines(tree: Path, processors: int) -> dict[str, list[str]]:
    """A TD and a TCG VM of the tree's QEMU, without a guest."""
    firmware = tree / "usr/share/ovmf/OVMF.fd"
    common = ["-nographic", "-nodefaults", "-serial", "stdio", "-no-reboot", "-m", "1G", "-smp", str(processors)]
    common += ["-bios", str(firmware)]
    td = ["-machine", "q35,kernel-irqchip=split,confidential-guest-support=tdx0", "-object", "tdx-guest,id=tdx0"]
    base = [str(_SID_TREE), "run", "qemu-system-x86_64"]
    return {
        "QEMU TD": [*base, "-accel", "kvm", "-cpu", "host", *td, *common],
        "QEMU TCG": [*base, "-accel", "tcg", "-machine", "q35", "-cpu", "max", *common],
    }


def _linux(linux: Path) -> list[str]:
    return ["-kernel", str(max(linux.glob("boot/vmlinuz-*"))), "-initrd", str(linux / "initrd.img"), "-append"]


def prompt(tree: Path, linux: Path) -> dict[str, Contender]:
    """Linux to its prompt, one processor."""
    found = {
        who: Contender([*command, *_linux(linux), "console=ttyS0 quiet"]) for who, command in _machines(tree, 1).items()
    }
    own = [sys.executable, "-m", "swtdx", "run", "--firmware", str(tree / "usr/share/ovmf/OVMF.fd"), "--memory", "1G"]
    own += ["--kernel", str(max(linux.glob("boot/vmlinuz-*"))), "--initrd", str(linux / "initrd.img")]
    found["own VMM TD"] = Contender([*own, "--append", "console=ttyS0 quiet"])
    return found


def login(tree: Path, disk: Path) -> dict[str, Contender]:
    """Debian 13 with systemd from a disk to its login prompt, two processors."""
    drive = ["-drive", f"file={disk},format=raw,if=virtio,snapshot=on"]
    return {who: Contender([*command, *drive]) for who, command in _machines(tree, 2).items()}


def _network_initrd(linux: Path, port: int) -> bytes:
    files: list[tuple[str, int, bytes]] = [
        ("net", DIRECTORY, b""),
        ("net/fetch", FILE, _NETWORK_SCRIPT.replace("PORT", str(port)).encode()),
    ]
    for name in ("failover", "net_failover", "virtio_net"):
        (path,) = linux.glob(f"lib/modules/**/{name}.ko*")
        content = path.read_bytes()
        files.append((f"net/{name}.ko", FILE, lzma.decompress(content) if path.suffix == ".xz" else content))
    return (linux / "initrd.img").read_bytes() + newc(files)


def network(tree: Path, linux: Path, folder: Path, port: int) -> dict[str, Contender]:
    """A guest that fetches by HTTP over virtio-net and a user network, one processor."""
    initrd = folder / "network.img"
    initrd.write_bytes(_network_initrd(linux, port))
    (folder / "data").write_bytes(os.urandom(_NETWORK_MIB << 20))
    guest = _linux(linux)
    guest[guest.index("-initrd") + 1] = str(initrd)
    guest += ["console=ttyS0 quiet swtdx.run=/net/fetch", "-nic", "user,model=virtio-net-pci"]
    return {who: Contender([*command, *guest]) for who, command in _machines(tree, 1).items()}


def _rows(name: str, contenders: Mapping[str, Contender], aims: Mapping[str, float]) -> Iterator[str]:
    yield name
    ours = contenders["QEMU TD"]
    for who, contender in contenders.items():
        wall, cpu = statistics.median(contender.wall), statistics.median(contender.cpu)
        line = f"  {who:<14}{wall:>10.1f} s{cpu:>10.1f} s of processors"
        if contender.inside:
            line += f"{statistics.median(contender.inside):>10.1f} MiB/s in the guest"
        if contender is not ours:
            ratio = statistics.median(a / b for a, b in zip(ours.wall, contender.wall, strict=True))
            line += f"   QEMU TD to it: {ratio:.2f} times"
            line += f" (aim: at most {aims[who]})" if who in aims else ""
        yield line


def main(runs: int) -> int:
    """Print the tables, and a sentence for what is missing. Returns 0."""
    tree, linux = (Path(os.environ.get(name, "")) for name in ("SWTDX_SID", "SWTDX_LINUX"))
    if not (tree / "usr/bin/qemu-system-x86_64").is_file():
        print("bench exec: QEMU TD NOT MEASURED: script/sid-tree makes a tree; set SWTDX_SID to it", file=sys.stderr)
        return 0
    if not (linux / "initrd.img").is_file():
        print(
            "bench exec: QEMU TD NOT MEASURED: set SWTDX_LINUX to the folder that script/linux prints", file=sys.stderr
        )
        return 0
    print(f"\nboots of QEMU 10.1 or later; medians of {runs} alternating runs; {_load()}")
    contenders = prompt(tree, linux)
    for _ in range(runs):
        for each in contenders.values():
            _until(each, "swtdx# ")
    _show("Linux to its prompt, 1 processor", contenders, {"own VMM TD": 1.3, "QEMU TCG": 1.2})
    with tempfile.TemporaryDirectory() as folder, _server(folder) as server:
        contenders = network(tree, linux, Path(folder), server.server_port)
        for _ in range(runs):
            for each in contenders.values():
                found = _NETWORK_TEXT.search(_until(each, " end"))
                each.inside.append(2 * _NETWORK_MIB / (float(found[2]) - float(found[1])) if found else float("nan"))
        _show(f"boot and {2 * _NETWORK_MIB} MiB by HTTP over a user network, 1 processor", contenders, {})
    disk = Path(os.environ.get("SWTDX_DEBIAN", "")) / "debian.img"
    if disk.is_file():
        contenders = login(tree, disk)
        for _ in range(runs):
            for each in contenders.values():
                _until(each, "debian login:")
        _show("Debian 13 with systemd to its login prompt, 2 processors", contenders, {"QEMU TCG": 1.2})
    else:
        print("Debian 13 NOT MEASURED: set SWTDX_DEBIAN to the folder that script/debian-disk prints", file=sys.stderr)
    return 0


def _load() -> str:
    load = os.getloadavg()[0]
    return f"the machine's load is {load:.1f}: only the ratios mean something" if load > 1 else "the machine is idle"


def _show(name: str, contenders: Mapping[str, Contender], aims: Mapping[str, float]) -> None:
    print("\n".join(_rows(name, contenders, aims)), flush=True)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


class _server:  # used as a function
    def __init__(self, folder: str) -> None:
        handler = functools.partial(_Quiet, directory=folder)
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)

    def __enter__(self) -> http.server.ThreadingHTTPServer:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self._server

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
