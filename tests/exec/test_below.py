# SPDX-License-Identifier: GPL-2.0-or-later
"""What the preloaded library does not reach, started by a program that it does: served by notification, never the
machine's own /dev/kvm. In every way in which programs are executed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from swtdx.exec.notify import available
from tests.conftest import skip
from tests.exec.conftest import Run

_OPENER = r"""
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <signal.h>
#include <unistd.h>
#include <sys/ioctl.h>
int main(int argc, char **argv) {
    char link[256] = "";
    int fd = open("/dev/kvm", O_RDWR);
    ioctl(fd, 0xae01, 0L);
    readlink("/proc/self/fd/3", link, 255);
    printf("%d %s %s %s\n", ioctl(fd, 0xae00, 0L), argv[0], argc > 1 ? argv[1] : "-", getenv("WORD") ?: "-");
    fflush(stdout);
    if (argc > 2 && !strcmp(argv[2], "kill")) raise(SIGTERM);
    if (argc > 2) execl(argv[2], "dynamic", "again", NULL);
    return 5;
}
"""
_STARTER = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/wait.h>
int main(int argc, char **argv) {
    char *how = argv[1], *path = argv[2], *args[] = {"zero", "one", NULL}, *env[] = {"WORD=x", NULL};
    char *name = strrchr(path, '/') + 1;
    int status, fd, pid = strcmp(how, "vfork") ? 0 : vfork();
    setenv("WORD", "x", 1);
    if (pid) { waitpid(pid, &status, 0); return WEXITSTATUS(status); }
    if (!strcmp(how, "execve") || !strcmp(how, "vfork")) execve(path, args, env);
    if (!strcmp(how, "execv")) execv(path, args);
    if (!strcmp(how, "execvp")) execvp(name, args);
    if (!strcmp(how, "execvpe")) execvpe(name, args, environ);
    if (!strcmp(how, "execl")) execl(path, "zero", "one", NULL);
    if (!strcmp(how, "execlp")) execlp(name, "zero", "one", NULL);
    if (!strcmp(how, "execle")) execle(path, "zero", "one", NULL, env);
    if (!strcmp(how, "fexecve")) fexecve(open(path, O_RDONLY | O_CLOEXEC), args, env);
    if (!strcmp(how, "execveat")) execveat(open(path, O_PATH | O_CLOEXEC), "", args, env, AT_EMPTY_PATH);
    if (!strcmp(how, "execveat-dir")) { *strrchr(path, '/') = 0; execveat(open(path, O_PATH), name, args, env, 0); }
    if (!strcmp(how, "posix_spawn") ? posix_spawn(&pid, path, 0, 0, args, env) :
        !strcmp(how, "posix_spawnp") ? posix_spawnp(&pid, name, 0, 0, args, env) : 1) { perror(how); return 99; }
    waitpid(pid, &status, 0);
    return WEXITSTATUS(status);
}
"""
WAYS = [
    "execve", "vfork", "execv", "execvp", "execvpe", "execl", "execlp", "execle", "fexecve", "execveat",
    "execveat-dir", "posix_spawn", "posix_spawnp",
]  # fmt: skip


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``starter`` and the openers ``static`` and ``dynamic``."""
    if cannot := available():
        skip(cannot)
    if shutil.which("gcc") is None:
        skip("no C compiler")
    folder = tmp_path_factory.mktemp("below")
    for name, source, flags in (
        ("starter", _STARTER, []),
        ("static", _OPENER, ["-static"]),
        ("dynamic", _OPENER, []),
        ("static-pie", _OPENER, ["-static-pie"]),
    ):
        (folder / f"{name}.c").write_text(source)
        subprocess.run(["gcc", "-w", "-o", folder / name, folder / f"{name}.c", *flags], check=True)
    return folder


def _environment(programs: Path) -> dict[str, str]:
    return {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}


@pytest.mark.parametrize("way", WAYS)
def test_a_static_program_is_served_however_it_is_executed(swtdx_exec: Run, programs: Path, way: str) -> None:
    done = swtdx_exec(programs / "starter", way, programs / "static", env=_environment(programs))
    assert (done.stdout, done.returncode, done.stderr) == ("12 zero one x\n", 5, "")


def test_a_shell_starts_one(swtdx_exec: Run, programs: Path) -> None:
    """By path, by name, as a script's interpreter, by env(1), in the background; its end is the shell's to see."""
    script = programs / "script"
    script.write_text(f"#!{programs}/static\n")
    script.chmod(0o755)
    for line, expected in {
        f"{programs}/static a; echo $?": f"12 {programs}/static a -\n5\n",
        f"{programs}/static-pie a; echo $?": f"12 {programs}/static-pie a -\n5\n",
        "static a; echo $?": f"12 {'static'} a -\n5\n",
        "env WORD=y static a; echo $?": "12 static a y\n5\n",
        f"{script}; echo $?": f"12 {programs}/static {script} -\n5\n",
        "static a & wait; echo done": "12 static a -\ndone\n",
        "static a kill; echo $?": "12 static a -\n143\n",
        f"static a {programs}/dynamic; echo $?": "12 static a -\n12 dynamic again -\n5\n",
    }.items():
        done = swtdx_exec("sh", "-c", line, env=_environment(programs))
        got = (
            done.stdout.replace(f"12 {programs}/static a", "12 static a") if line.startswith("static") else done.stdout
        )
        assert (got, done.stderr.replace("Terminated\n", "")) == (expected, "")


def test_one_that_cannot_be_served_is_refused_or_has_no_device(swtdx_exec: Run, programs: Path) -> None:
    """The command's Python is gone, so there is no server: one sentence, and never the machine's own /dev/kvm."""
    code = (
        "import os, glob, subprocess, sys\n"
        "path = os.environ['LD_PRELOAD'].split(':')[0].rsplit('/', 1)[0] + '/settings'\n"
        "lines = [line for line in open(path) if not line.startswith('python=')]\n"
        "open(path, 'w').write(''.join([*lines, 'python=/gone\\n']))\n"
        "try:\n    print(subprocess.run([sys.argv[1]]).returncode)\n"
        "except PermissionError:\n    print('refused')\n"
    )
    with_own_settings = {**os.environ, "TMPDIR": str(programs)}
    done = swtdx_exec(sys.executable, "-c", code, programs / "static", env=with_own_settings)
    assert done.stdout == "refused\n"
    assert done.stderr.count("swtdx: ") == 1


@pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="without /dev/kvm it has no device to find")
@pytest.mark.parametrize(("at", "value", "words"), [(4, 1, "x86"), (18, 3, "32-bit x86"), (18, 183, "64-bit ARM")])
def test_one_for_another_machine_is_refused(swtdx_exec: Run, programs: Path, at: int, value: int, words: str) -> None:
    """Its loader, if there is one, ignores the library of another class (ELF: EI_CLASS, e_machine)."""
    program = programs / "other"
    header = bytearray((programs / "static").read_bytes())
    header[at] = value
    program.write_bytes(header)
    program.chmod(0o755)
    done = swtdx_exec("sh", "-c", f"{program}; echo $?")
    assert done.stdout == "126\n"
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="a file of another user or group can be made by root only")
@pytest.mark.skipif(not os.path.exists("/dev/kvm"), reason="without /dev/kvm such a program has no device to find")
@pytest.mark.parametrize("mode", [0o4755, 0o2755], ids=["setuid", "setgid"])
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_one_that_gains_rights_is_refused(swtdx_exec: Run, programs: Path, mode: int, kind: str) -> None:
    """Its loader drops the library, whatever the rights are: as the command, and by any way of executing."""
    program = programs / f"{kind}-{mode:o}"
    shutil.copy(programs / kind, program)
    os.chown(program, 65534, 65534)
    program.chmod(mode)
    script = programs / "rights"
    script.write_text(f"#!{program}\n")
    script.chmod(0o755)
    for command in (program, script):
        done = swtdx_exec("sh", "-c", f"{command}; echo $?")
        assert done.stdout == "126\n"
        assert done.stderr.startswith(f"swtdx: exec: {program}: setuid, setgid")
        assert done.stderr.count("\n") == 1
    done = swtdx_exec("sh", "-c", f"{program}; true", options=["--allow-host-kvm"])
    assert done.stderr == ""


def test_the_machines_own_is_used_where_that_is_allowed(swtdx_exec: Run, programs: Path) -> None:
    done = swtdx_exec("sh", "-c", f"{programs}/static; true", options=["--allow-host-kvm"])
    assert done.stdout.split()[0] in ("12", "-1")
    assert done.stderr == ""
