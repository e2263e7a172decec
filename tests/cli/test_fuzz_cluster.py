# SPDX-License-Identifier: GPL-2.0-or-later
"""A campaign on a cluster of two nodes on loopback, one of which is killed: the rest is done by the other one."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from swtdx.cli.fuzzed_guest import Settings, digest_of, slice_of
from swtdx.fuzzing import cluster
from swtdx.fuzzing.campaign import Campaign, Crash
from swtdx.fuzzing.folder import Folder
from swtdx.fuzzing.guest import Limits
from tests.cli.conftest import Command
from tests.fuzzing.planted import BEGUN, image

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("distributed") is None,
        reason="DASK IS NOT INSTALLED, so that no cluster was tried: pip install 'swtdx[cluster]'",
    ),
]
PATIENCE_SECONDS = 60


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """(address of the scheduler, its two workers), each a process with an address of its own."""
    found = tmp_path / "scheduler.json"
    with ExitStack() as processes:

        def start(what: str, *arguments: str) -> subprocess.Popen[bytes]:
            command = [sys.executable, "-m", f"distributed.cli.dask_{what}", "--no-dashboard", *arguments]
            process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, env={**os.environ})
            processes.callback(process.wait, PATIENCE_SECONDS)
            processes.callback(process.kill)
            return process

        start("scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(found))
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not found.exists():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        of = ("--scheduler-file", str(found), "--no-nanny", "--nthreads", "1")
        workers = [start("worker", *of, "--host", host) for host in ("127.0.0.1", "127.0.0.2")]

        yield json.loads(found.read_text())["address"], workers


def test_a_worker_that_is_killed_loses_nothing(
    nodes: tuple[str, list[subprocess.Popen[bytes]]], tmp_path: Path, command: Command
) -> None:
    kernel, snapshot = tmp_path / "bzImage", tmp_path / "snapshot"
    kernel.write_bytes(image())
    command(
        *("run", "--firmware", "none", "--kernel", kernel, "--memory", "64M"),
        *("--snapshot", snapshot, "--snapshot-at", BEGUN),
    )
    address, workers = nodes
    campaign = Campaign(Folder(tmp_path / "campaign"), digest_of(snapshot))
    deadline = time.monotonic() + PATIENCE_SECONDS
    came_back = 0

    def tell(crashes: list[Crash]) -> None:
        nonlocal came_back
        came_back += 1
        if came_back == 1:
            workers[0].send_signal(signal.SIGKILL)  # in the middle of its next slice, or of this one

    def goes_on() -> bool:
        return (came_back < 4 or not campaign.crashes) and time.monotonic() < deadline

    with cluster.workers(None, address) as client:
        client.wait_for_workers(2, timeout=PATIENCE_SECONDS)
        cluster.run(
            client,
            partial(slice_of, Settings(snapshot, Limits(calls=30, seconds=5))),
            campaign,
            seed=1,
            slice_seconds=3.0,
            goes_on=goes_on,
            tell=tell,
        )
        assert len(client.scheduler_info()["workers"]) == 1
    assert came_back >= 4
    assert [crash.outcome.kind for crash in campaign.crashes.values()] == ["triple fault"]
    assert list((tmp_path / "campaign" / "crashes").iterdir())


def test_no_scheduler_is_one_sentence(tmp_path: Path) -> None:
    with (
        pytest.raises(cluster.ClusterError, match=r"no scheduler of Dask's answers there"),
        cluster.workers(None, "tcp://127.0.0.1:9"),
    ):
        pass
