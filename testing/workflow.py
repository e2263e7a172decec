# SPDX-License-Identifier: GPL-2.0-or-later
"""Workflow files without GitHub: the ``run:`` steps of a job or of an action, carried out as a runner does.

A runner writes the text of a step to a file and executes it by ``bash -e``, or where ``shell: bash`` is said by
``bash --noprofile --norc -eo pipefail``. What steps add to ``$GITHUB_PATH`` and ``$GITHUB_OUTPUT`` is there for those
that follow. Expressions are replaced where a table has them; one that is not in it is an error.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from testing.places import REPOSITORY

_EXPRESSION = re.compile(r"\$\{\{\s*(.+?)\s*\}\}")


def read(path: Path) -> Any:
    """The file's contents; the key ``on`` is not taken for a truth value."""
    return yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)


def runs_of(job: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """The values of ``matrix`` for each run of a job; one run without any if it has none."""
    matrix = job.get("strategy", {}).get("matrix", {})
    for values in product(*matrix.values()):
        yield {f"matrix.{name}": value for name, value in zip(matrix, values, strict=True)}


def filled(text: str, values: Mapping[str, str]) -> str:
    """``text`` with its expressions replaced."""
    return _EXPRESSION.sub(lambda found: values[found[1]], text)


@dataclass
class Runner:
    """A machine that carries out steps in ``folder``, the checkout; ``temporary`` is for what passes between them."""

    folder: Path
    temporary: Path
    values: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    ran: list[str] = field(default_factory=list)

    def step(self, step: Mapping[str, Any], timeout: float = 300) -> subprocess.CompletedProcess[str] | None:
        """Carry out one step; None for one that is another action or whose condition is not ``always()`` or true."""
        condition = step.get("if", "always()")
        if "run" not in step or not (condition == "always()" or self._holds(condition)):
            return None
        given, path = self.temporary / "outputs", self.temporary / "path"
        for file in (given, path):
            file.write_text("")
        names = {"RUNNER_TEMP": self.temporary, "GITHUB_PATH": path, "GITHUB_OUTPUT": given, "CI": "true"}
        environment = self.environment | {name: str(value) for name, value in names.items()}
        environment |= {name: filled(value, self.values) for name, value in step.get("env", {}).items()}
        script = self.temporary / "step.sh"
        script.write_text(filled(step["run"], self.values))
        shell = ["--noprofile", "--norc", "-eo", "pipefail"] if step.get("shell") == "bash" else ["-e"]
        done = subprocess.run(
            ["bash", *shell, script],
            cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            errors="replace", timeout=timeout, check=False,
        )  # fmt: skip
        self.ran.append(step["run"])
        for folder in path.read_text().split():
            self.environment["PATH"] = f"{folder}:{self.environment['PATH']}"
        for line in given.read_text().splitlines():
            name, _, value = line.partition("=")
            self.values[f"steps.{step['id']}.outputs.{name}"] = value
        return done

    def _holds(self, condition: str) -> bool:
        """``NAME == 'VALUE'``, all that our files use."""
        name, _, value = condition.partition(" == ")
        return self.values[name] == value.strip("'")


def main(version: str) -> int:
    """Carry out the steps of our action; returns the status of the first that fails."""
    with tempfile.TemporaryDirectory(prefix="swtdx-action-") as name:
        folder = Path(name)
        source, home, bin_ = (folder / part for part in ("source", "home", "bin"))
        for each in (source, home, bin_, folder / "temporary"):
            each.mkdir()
        archive = subprocess.run(["git", "archive", "HEAD"], cwd=REPOSITORY, check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x", "-C", source], input=archive, check=True)
        (bin_ / "python").symlink_to("/usr/bin/python3")
        action = read(source / "action.yml")
        values = {f"inputs.{name}": value["default"] for name, value in action["inputs"].items()}
        values |= {"inputs.version": version, "inputs.firmware": "false", "github.action_path": str(source)}
        kept = {name: value for name, value in os.environ.items() if name.startswith("PIP_") or "CERT" in name}
        environment = {**kept, "HOME": str(home), "PATH": f"{bin_}:/usr/bin:/bin", "LANG": "C.UTF-8"}
        runner = Runner(folder, folder / "temporary", values, environment)
        for step in action["runs"]["steps"]:
            began = time.monotonic()
            done = runner.step(step, timeout=3600)
            if done is None:
                continue
            sys.stdout.write(f"{step['run'].strip().splitlines()[0]} ...: {time.monotonic() - began:.1f} s\n")
            if done.returncode:
                sys.stdout.write(done.stdout + done.stderr)
                return done.returncode
        sys.stdout.write(filled(action["outputs"]["swtdx-version"]["value"], runner.values) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
