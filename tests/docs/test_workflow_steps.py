# SPDX-License-Identifier: GPL-2.0-or-later
"""The steps of the examples and of the action, carried out: what a team copies into its pipeline works as it stands.

A team's own project is played by small programs in its checkout; swtdx is the one under test.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from testing.places import REPOSITORY
from testing.workflow import Runner, filled, read, runs_of

EXAMPLES = REPOSITORY / "examples"
FILES = sorted([*EXAMPLES.glob("*.yml"), *REPOSITORY.glob(".github/workflows/*.yml"), REPOSITORY / "action.yml"])

CARGO_TEST = f"""#!{sys.executable}
import fcntl, sys
kvm = open("/dev/kvm", "rb", buffering=0)
assert fcntl.ioctl(kvm, 0xAE03, 235) >> 5 & 1, "no TDs"  # KVM_CAP_VM_TYPES: KVM_X86_TDX_VM
print("cargo", *sys.argv[1:])
"""
MY_VERIFIER = """#!/bin/sh
set -e
[ "$1 $3 $5" = "--quote --collateral --root" ]
exec swtdx quote verify "$2" --collateral "$4" --root "$6"
"""


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    """A machine on which the action's steps have been: swtdx is on the path. ``sudo`` does nothing."""
    for name in ("checkout", "temporary"):
        (tmp_path / name).mkdir()
    program(tmp_path / "bin/sudo", "#!/bin/sh\n")
    made = Runner(tmp_path / "checkout", tmp_path / "temporary")
    made.environment["PATH"] = f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return made


def carried_out(runner: Runner, file: str) -> None:
    (job,) = read(EXAMPLES / file)["jobs"].values()
    inputs = read(REPOSITORY / "action.yml")["inputs"]
    for values in runs_of(job):
        runner.values |= values
        for step in job["steps"]:
            if step.get("uses", "").startswith("OWNER/swtdx"):
                assert set(step.get("with", {})) <= set(inputs)
            done = runner.step(step)
            assert done is None or done.returncode == 0, (step["run"], done.stdout, done.stderr)
    assert runner.ran


def test_the_job_for_a_vmm_runs_its_tests_on_each_kernel(runner: Runner, tmp_path: Path) -> None:
    program(tmp_path / "bin/cargo", CARGO_TEST)
    carried_out(runner, "test-my-vmm.yml")
    assert len(runner.ran) == 6


def test_the_job_for_quotes_makes_good_and_bad_ones(runner: Runner) -> None:
    program(runner.folder / "my-verifier", MY_VERIFIER)
    carried_out(runner, "verify-my-quotes.yml")
    assert (runner.folder / "keys/root-ca.pem").is_file()


@pytest.mark.slow
def test_the_job_for_a_kernel_boots_it(runner: Runner, tmp_path: Path) -> None:
    """``make`` gives the kernel of script/linux; whether it was configured is seen by what is asked of it."""
    linux = os.environ.get("SWTDX_LINUX")
    if not linux:
        pytest.skip("$SWTDX_LINUX is not set: script/linux makes one")
    (kernel,) = Path(linux).glob("boot/vmlinuz-*")
    script = (
        f'#!/bin/sh\nset -e\ncase "$*" in *bzImage) mkdir -p arch/x86/boot; cp {kernel} arch/x86/boot/bzImage ;; esac\n'
    )
    program(tmp_path / "bin/make", script)
    program(runner.folder / "scripts/config", '#!/bin/sh\n[ "$*" = "--enable INTEL_TDX_GUEST --enable EFI_STUB" ]\n')
    carried_out(runner, "boot-my-kernel.yml")
    assert json.loads((runner.folder / "boot.json").read_text())["outcome"] == "until"
    assert (runner.folder / "boot.html").is_file()


def test_the_action_installs_what_it_is_told_and_tries_it(runner: Runner, tmp_path: Path) -> None:
    """pip is played; `script/try-action` has the real one."""
    asked = tmp_path / "asked"
    played = f"""#!/bin/sh
case "$2" in
    venv) mkdir -p "$3/bin"; ln -s {shutil.which("swtdx", path=runner.environment["PATH"])} "$3/bin/swtdx"
        printf '#!/bin/sh\\necho "$@" >>{asked}\\n' >"$3/bin/python"; chmod +x "$3/bin/python" ;;
esac
"""
    program(tmp_path / "bin/python", played)
    action = read(REPOSITORY / "action.yml")
    for wanted, given in (("source", "/action"), ("0.2.0", "swtdx==0.2.0"), ("a/b.whl", "a/b.whl")):
        shutil.rmtree(runner.temporary / "swtdx", ignore_errors=True)
        runner.values |= {f"inputs.{name}": value["default"] for name, value in action["inputs"].items()}
        runner.values |= {"inputs.version": wanted, "github.action_path": "/action"}
        for step in action["runs"]["steps"]:
            if wanted != "source" and "id" in step:
                continue  # the self-test: once is enough
            done = runner.step(step)
            assert done is None or done.returncode == 0, (step["run"], done.stdout, done.stderr)
        assert asked.read_text().splitlines()[-1] == f"-m pip install --quiet {given}"
    assert re.fullmatch(r"\d+\.\d+\.\d+", filled(action["outputs"]["swtdx-version"]["value"], runner.values))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_actions_of_others_are_those_that_were_looked_at(path: Path) -> None:
    """A tag can be moved to another commit."""
    for used, comment in re.findall(r"uses: (\S+)(.*)", path.read_text(encoding="utf-8")):
        if used == "./" or used.startswith("OWNER/swtdx@"):
            continue
        assert re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", used), used
        assert re.fullmatch(r" # v\d+(\.\d+)+", comment), used
