# SPDX-License-Identifier: GPL-2.0-or-later
"""A campaign on several workers, by Dask: on this machine, or on a cluster that there is.

Dask brings slices to workers and results back, starts a worker again that died, and gives its slice to another one. A
slice is the same wherever it is done, so what a lost worker had found is found again. All that remains to be done here
is to hand out slices that know what was found, and to take what comes back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from typing import Any

from swtdx.fuzzing.campaign import Campaign, Crash, Known, Slice
from swtdx.vmm.run import take_kick_signal

Task = Callable[[Known, int, float], Slice]


class ClusterError(Exception):
    """There are no workers; the text is a sentence."""


@contextmanager
def workers(count: int | None, address: str | None) -> Iterator[Any]:
    """A client of ``count`` processes on this machine, or of the scheduler at ``address``. Raises ClusterError."""
    try:
        distributed: Any = import_module("distributed")
    except ImportError:
        raise ClusterError("several workers need Dask: pip install 'swtdx[cluster]'") from None
    with (
        distributed.LocalCluster(
            n_workers=count or 1, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
        )
        if address is None
        else nullcontext() as cluster
    ):
        try:
            client = distributed.Client(address or cluster, timeout=10)
        except (OSError, ValueError, TimeoutError) as error:
            raise ClusterError(f"--cluster {address}: no scheduler of Dask's answers there ({error})") from None
        with client:
            client.register_plugin(_plugin(distributed))
            yield client


def _plugin(distributed: Any) -> Any:
    class TakesKicks(distributed.WorkerPlugin):  # type: ignore[misc]
        """Slices run on a thread of their worker; signals are taken on its main thread."""

        name = "swtdx"

        def setup(self, worker: Any) -> None:
            take_kick_signal()

    return TakesKicks()


def run(
    client: Any,
    task: Task,
    campaign: Campaign,
    *,
    seed: int,
    slice_seconds: float,
    goes_on: Callable[[], bool],
    tell: Callable[[list[Crash]], object],
) -> None:
    """Keep every worker busy until ``goes_on`` says no; ``tell`` is called after each slice with the new crashes."""

    def submit() -> Any:
        nonlocal seed
        seed += 1
        return client.submit(
            task, campaign.known(), seed, slice_seconds, pure=False, key=f"slice-{id(campaign)}-{seed}"
        )

    count = max(len(client.scheduler_info(n_workers=-1)["workers"]), 1)
    slices: Any = import_module("distributed").as_completed([submit() for _ in range(count)], raise_errors=False)
    for future in slices:
        if future.status == "finished":
            tell(campaign.add(future.result()))
        elif _is_lost(future):
            campaign.lost += 1
        else:
            future.result()  # raises what the slice raised
        if goes_on():
            slices.add(submit())


def _is_lost(future: Any) -> bool:
    """Whether a slice was given up because too many workers died with it: others go on."""
    return type(future.exception()).__name__ == "KilledWorker"
