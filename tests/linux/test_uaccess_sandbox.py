# SPDX-License-Identifier: GPL-2.0-or-later
"""User memory is reached in a sandbox that forbids process_vm_readv and process_vm_writev (seccomp), too.

And where the process has its own handler for faults.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# A filter by prctl(2): both calls answer EPERM, as Docker's default profile did before Linux 4.8, or ENOSYS.
SANDBOX = f"""
import ctypes, mmap, os, struct, sys
sys.path.insert(0, {str(ROOT)!r})
libc = ctypes.CDLL(None, use_errno=True)
def forbid(answer):
    code = [(0x20, 0, 0, 0), (0x15, 0, 1, 310), (0x06, 0, 0, 0x50000 | answer), (0x15, 0, 1, 311),
            (0x06, 0, 0, 0x50000 | answer), (0x06, 0, 0, 0x7FFF0000)]
    packed = b"".join(struct.pack("HBBI", *each) for each in code)
    buffer = ctypes.create_string_buffer(packed)
    program = struct.pack("HxxxxxxQ", len(code), ctypes.addressof(buffer))
    held = ctypes.create_string_buffer(program)
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, ctypes.c_void_p(ctypes.addressof(held)), 0, 0) == 0
forbid(int(sys.argv.pop(1)))
"""
COPIES = """
from swtdx.linux.uaccess import copy_from_user, copy_to_user
area = mmap.mmap(-1, 1 << 20)
start = ctypes.addressof(ctypes.c_char.from_buffer(area))
data = bytes(range(256)) * 1000
for length in (1, 8, 4096, 4097, 65536, 65537, len(data)):
    copy_to_user(start + 5, data[:length])
    assert copy_from_user(start + 5, length) == data[:length]
libc.mprotect(ctypes.c_void_p(start + 0x80000), 0x1000, 1)
libc.mprotect(ctypes.c_void_p(start + 0x90000), 0x1000, 0)
def faults(action, *arguments):
    try:
        action(*arguments)
    except OSError as error:
        assert error.errno == 14, error
        return
    raise AssertionError(arguments)
faults(copy_to_user, start + 0x80000, b"x")
faults(copy_to_user, start + 0x7FFFF, b"xx")
faults(copy_to_user, start + 0x7F000, bytes(9000))
faults(copy_from_user, start + 0x90000, 1)
faults(copy_from_user, start + 0x8F000, 9000)
faults(copy_from_user, 0x1000, 8)
assert copy_from_user(start + 0x80000, 16) == bytes(16)
print("ok", len(os.listdir("/proc/self/fd")) < 20)
"""


def sandboxed(script: str, answer: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SANDBOX + script, str(answer)],
        capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("answer", [1, 38])
def test_copies_and_their_faults(answer: int) -> None:
    done = sandboxed(COPIES, answer)
    assert done.stdout == "ok True\n", done.stderr


def test_a_td_is_built() -> None:
    script = """
from swtdx.machine import open_kernel
from swtdx.uapi.client import Kvm
with Kvm(open_kernel("emulated")) as kvm, kvm.create_td() as td:
    print(hex(td.tdx_capabilities().attributes_allowed))
"""
    done = sandboxed(script, 1)
    assert done.stdout == "0x10000000\n", done.stderr


OTHER_HANDLER = """
import ctypes, faulthandler
from swtdx.cpu._engine import read_user, write_user
from swtdx.linux.uaccess import copy_from_user
from tests.cpu.guest import Guest
Guest("hlt")
word = ctypes.c_uint64(5)
address = ctypes.addressof(word)
print(read_user(address, 8) == bytes(word), end=" ")
faulthandler.enable()
print(read_user(address, 8), write_user(address, bytes(8)), word.value, copy_from_user(address, 8) == bytes(word))
copy_from_user(8, 8)
"""


def test_the_core_leaves_a_copy_to_system_calls_where_another_handler_would_be_called() -> None:
    ran = subprocess.run([sys.executable, "-c", OTHER_HANDLER], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (1, "True None False 5 True\n"), ran.stderr
    assert "OSError: [Errno 14] Bad address" in ran.stderr
