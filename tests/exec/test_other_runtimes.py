# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs that the preloaded library cannot or must not be in, recognised by their files: served by notification.

Each is started as the command, by a shell, and as the interpreter of a script.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from swtdx.exec.notify import available
from swtdx.exec.program import FrontEnd, ProgramError, choose
from swtdx.exec.settings import ExecError, extension
from tests.conftest import skip
from tests.exec.conftest import Run

WHOSE = """
#include <fcntl.h>
#include <stdio.h>
#include <sys/ioctl.h>
int main(void) {
    int fd = open("/dev/kvm", O_RDWR);
    printf("%s\\n", fd < 0 ? "none" : ioctl(fd, 0xae03, 235L) & 0x20 ? "emulated" : "the machine's");
    return 3;
}
"""
LOADER = """
static long call(long n, long a, long b, long c) {
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(n), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return result;
}
void _start(void) {
    long fd = call(2, (long)"/dev/kvm", 2, 0);
    long types = fd < 0 ? fd : call(16, fd, 0xae03, 235);
    if (types >= 0 && types & 0x20) call(1, 1, (long)"emulated\\n", 9);
    call(231, 3, 0, 0);
}
"""
"""As `WHOSE`, for what the kernel starts in a program's place."""
Build = Callable[..., Path]


@pytest.fixture
def whose(tmp_path: Path) -> Build:
    """``whose("name", "-static")``: a program that says whose /dev/kvm it has, and ends with 3.

    The emulated one has TDX in KVM_CAP_VM_TYPES.
    """
    if cannot := available():
        skip(cannot)
    if shutil.which("gcc") is None:
        skip("no C compiler")

    def build(name: str, *flags: str) -> Path:
        source, program = tmp_path / f"{name}.c", tmp_path / name
        source.write_text(LOADER if "-nostdlib" in flags else WHOSE)
        done = subprocess.run(["gcc", "-w", "-o", program, source, *flags], check=False, capture_output=True, text=True)
        if done.returncode:
            skip(f"gcc {' '.join(flags)}: {(done.stderr.splitlines() or ['it fails'])[-1]}")
        return program

    return build


def _is_served(swtdx_exec: Run, program: Path) -> None:
    script = program.with_name("script")
    script.write_text(f"#!{program}\n")
    script.chmod(0o755)
    for command in ([program], ["sh", "-c", f"{program}; exit $?"], [script], ["sh", "-c", f"{script}; exit $?"]):
        done = swtdx_exec(*command)
        assert (done.stdout, done.returncode, done.stderr) == ("emulated\n", 3, "")


@pytest.mark.parametrize("name", ["ld-uClibc.so.0", "linker64", "ld-dietlibc.so", "ld64.so.1"])
def test_one_of_another_libc(swtdx_exec: Run, whose: Build, name: str) -> None:
    """Its loader, which the kernel starts in its place, is that libc's own and loads no library of glibc's."""
    loader = whose(name, "-static-pie", "-nostdlib", "-fno-stack-protector", "-fcf-protection=none")
    _is_served(swtdx_exec, whose("program", f"-Wl,--dynamic-linker={loader}"))


@pytest.mark.parametrize("folder", ["store/lib", "with-ld-musl-in-the-path"])
def test_glibcs_loader_may_be_anywhere(swtdx_exec: Run, whose: Build, tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir(parents=True)
    loader = tmp_path / folder / "ld-linux-x86-64.so.2"
    loader.symlink_to("/lib64/ld-linux-x86-64.so.2")
    program = whose("program", f"-Wl,--dynamic-linker={loader}")
    assert choose(program, []) == (FrontEnd.preload, "")
    _is_served(swtdx_exec, program)


@pytest.mark.parametrize("sanitizer", ["address", "thread", "leak"])
def test_one_with_a_sanitizer(swtdx_exec: Run, whose: Build, sanitizer: str) -> None:
    """Its runtime refuses to come second, and would report what Python leaves allocated."""
    program = whose("program", f"-fsanitize={sanitizer}")
    alone = subprocess.run([program], check=False, capture_output=True, text=True)
    if alone.returncode != 3:
        skip(f"programs with -fsanitize={sanitizer} do not run here: {alone.stderr[:200]}")
    front_end, why = choose(program, [])
    assert front_end is FrontEnd.notify
    assert "Sanitizer" in why
    _is_served(swtdx_exec, program)


@pytest.mark.parametrize("name", ["__asan_init", "__tsan_init", "__msan_init", "__hwasan_init"])
def test_one_with_a_sanitizer_inside(swtdx_exec: Run, whose: Build, tmp_path: Path, name: str) -> None:
    """Clang links the runtime into the executable, which exports its functions: there is no library to look for."""
    (tmp_path / "runtime.c").write_text(f"void {name}(void) {{}}\n")
    program = whose("program", "-rdynamic", str(tmp_path / "runtime.c"))
    assert choose(program, [])[0] is FrontEnd.notify
    _is_served(swtdx_exec, program)


def test_undefined_behaviour_is_no_hindrance(swtdx_exec: Run, whose: Build) -> None:
    program = whose("program", "-fsanitize=undefined")
    assert choose(program, [])[0] is FrontEnd.preload
    _is_served(swtdx_exec, program)


def test_a_library_of_the_users_own_may_be_preloaded(swtdx_exec: Run, whose: Build, tmp_path: Path) -> None:
    """An allocator, say: it is in the program and in the emulated kernel alike."""
    (tmp_path / "pool.c").write_text(
        "#include <stddef.h>\n#include <string.h>\n#include <errno.h>\n"
        "static char pool[1 << 28] __attribute__((aligned(16))); static size_t used;\n"
        "void *malloc(size_t n) { size_t at = __atomic_fetch_add(&used, ((n + 15) & ~15ul) + 16, __ATOMIC_RELAXED);\n"
        "  *(size_t *)(pool + at) = n; return pool + at + 16; }\n"
        "void free(void *p) {}\n"
        "void *calloc(size_t n, size_t m) { return malloc(n * m); }\n"
        "void *realloc(void *p, size_t n) { void *q = malloc(n); size_t old = p ? *(size_t *)((char *)p - 16) : 0;\n"
        "  if (p) memcpy(q, p, old < n ? old : n); return q; }\n"
        "void *aligned_alloc(size_t a, size_t n) { char *p = malloc(n + a); size_t s = -(size_t)p & (a - 1);\n"
        "  if (s >= 16) *(size_t *)(p + s - 16) = n; return p + s; }\n"
        "void *memalign(size_t a, size_t n) { return aligned_alloc(a, n); }\n"
        "int posix_memalign(void **p, size_t a, size_t n) { *p = aligned_alloc(a, n); return 0; }\n"
        "size_t malloc_usable_size(void *p) { return p ? *(size_t *)((char *)p - 16) : 0; }\n"
    )
    library = tmp_path / "pool.so"
    subprocess.run(["gcc", "-w", "-O1", "-shared", "-fPIC", "-o", library, tmp_path / "pool.c"], check=True)
    done = swtdx_exec(whose("program"), env={**os.environ, "LD_PRELOAD": str(library)})
    assert (done.stdout, done.returncode, done.stderr) == ("emulated\n", 3, "")


def test_a_jemalloc_may_be_preloaded(swtdx_exec: Run, whose: Build) -> None:
    libraries = [*Path("/usr/lib/x86_64-linux-gnu").glob("libjemalloc.so.*")]
    if not libraries:
        skip("no jemalloc (Debian: libjemalloc2)")
    done = swtdx_exec(whose("program"), env={**os.environ, "LD_PRELOAD": str(libraries[0])})
    assert (done.stdout, done.returncode, done.stderr) == ("emulated\n", 3, "")


# --- where the library cannot be loaded -------------------------------------------------------------------------------


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A file system on which nothing is executed."""
    folder = tmp_path / "noexec"
    folder.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "noexec", "none", folder], check=False).returncode
    ):
        skip("a file system can be mounted by root only")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_library_on_a_file_system_that_is_mounted_noexec(mounted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(extension("_preload"), mounted)
    monkeypatch.setattr("swtdx.exec.settings.__file__", str(mounted / "settings.py"))
    with pytest.raises(ExecError, match=r"mounted noexec: programs cannot load it\. Install swtdx elsewhere"):
        extension("_preload")


def test_the_folder_for_temporary_files_may_be_mounted_noexec(mounted: Path, swtdx_exec: Run, whose: Build) -> None:
    """The library there is a link; what it names is loaded."""
    done = swtdx_exec(whose("program"), env={**os.environ, "TMPDIR": str(mounted)})
    assert (done.stdout, done.returncode, done.stderr) == ("emulated\n", 3, "")


def test_a_folder_for_temporary_files_that_is_full(swtdx_exec: Run, whose: Build, tmp_path: Path) -> None:
    folder = tmp_path / "full"
    folder.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "nr_inodes=3", "none", folder], check=False).returncode
    ):
        skip("a file system can be mounted by root only")
    try:
        done = swtdx_exec(whose("program"), env={**os.environ, "TMPDIR": str(folder)})
        assert (done.stdout, done.returncode) == ("", 125)
        assert done.stderr.startswith("swtdx: ")
        assert "TMPDIR" in done.stderr
        assert done.stderr.count("\n") == 1
        assert not list(folder.iterdir())
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


AS_NOBODY = """
#include <stdio.h>
#include <unistd.h>
int main(int count, char **words) {
    if (setresgid(65534, 65534, 65534) || setresuid(65534, 65534, 65534)) return 9;
    execv(words[1], words + 1);
    perror("execv");
    return 8;
}
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="another user can be become by root only")
def test_a_user_who_cannot_read_the_library(swtdx_exec: Run, whose: Build, tmp_path: Path) -> None:
    """As below another user's home: the next program of that user has no emulated /dev/kvm, and that is said."""
    shared = Path(subprocess.run(["mktemp", "-d"], check=True, capture_output=True, text=True).stdout.strip())
    hidden = tmp_path / "hidden"
    hidden.mkdir(mode=0o700)
    try:
        shared.chmod(0o755)
        program = Path(shutil.copy(whose("program"), shared))
        (shared / "as.c").write_text(AS_NOBODY)
        subprocess.run(["gcc", "-w", "-o", shared / "as", shared / "as.c"], check=True)
        done = swtdx_exec(shared / "as", program, env={**os.environ, "TMPDIR": str(hidden)})
        assert done.stdout in ("none\n", "")
        assert done.stderr.startswith("swtdx: exec: ")
        assert "make the file available to this user" in done.stderr.lower()
    finally:
        shutil.rmtree(shared)


def test_every_kind_of_script_is_looked_at_by_what_runs_it(whose: Build, tmp_path: Path) -> None:
    """Through scripts of scripts, env(1) and its -S, to what the kernel would start."""
    static = whose("static", "-static")
    other = tmp_path / "other"
    header = bytearray(static.read_bytes())
    header[18:20] = (183).to_bytes(2, "little")  # EM_AARCH64
    other.write_bytes(header)
    other.chmod(0o755)
    for program, expected in ((static, "linked statically"), (other, "64-bit ARM")):
        for first in (
            f"#!{program}",
            f"#! {program} -x",
            f"#!/usr/bin/env {program}",
            f"#!/usr/bin/env -S {program} -x",
        ):
            script, outer = tmp_path / "inner", tmp_path / "outer"
            script.write_text(f"{first}\n")
            outer.write_text(f"#!{script}\n")
            for path in (script, outer):
                path.chmod(0o755)
                try:
                    said = choose(path, [])[1]
                except ProgramError as error:
                    said = str(error)
                assert expected in said, first
