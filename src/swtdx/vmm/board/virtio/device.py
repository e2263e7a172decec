# SPDX-License-Identifier: GPL-2.0-or-later
"""What a virtio device is to its transport: identity, features, configuration, queues and what to do with a chain.

A device works under the board's lock, on the thread of the vCPU that notifies it, and is done when the notification
returns.  That is not slower than a thread of its own, since the guest waits for the interpreter either way, and it
needs no ioeventfd.  What could take long is cut short by ``stopping``, which the end of a run sets.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Protocol

from swtdx.vmm.board.virtio.ring import Chain, Virtqueue

VIRTIO_F_INDIRECT_DESC = 1 << 28
VIRTIO_F_VERSION_1 = 1 << 32
VIRTIO_F_ACCESS_PLATFORM = 1 << 33

TRANSPORT_FEATURES = VIRTIO_F_INDIRECT_DESC | VIRTIO_F_VERSION_1 | VIRTIO_F_ACCESS_PLATFORM


class Transport(Protocol):
    """What a device may ask of whatever carries it."""

    queues: list[Virtqueue]

    @property
    def running(self) -> bool: ...

    def serve(self, number: int) -> None: ...

    def config_changed(self) -> None: ...

    def report(self, text: str) -> None: ...


class VirtioDevice(ABC):
    """One device. ``transport`` is set when it is plugged in."""

    name: ClassVar[str]
    """For messages."""
    device_id: ClassVar[int]
    """Virtio 1.2, chapter 5."""
    class_code: ClassVar[int]
    """Of PCI."""
    queue_count: ClassVar[int]

    features = 0
    config = b""
    """Device-specific configuration, read only."""
    transport: Transport
    stopping = False

    @abstractmethod
    def handle(self, number: int, chain: Chain) -> int:
        """Do what a chain of queue ``number`` asks. Returns how many bytes were written. Raises RingError."""

    def ready(self, number: int) -> bool:
        """Whether queue ``number`` is to be served; a receive queue has nothing to do before something arrives."""
        return True

    def as_json(self) -> dict[str, object]:
        """What a record of the run says of it."""
        return {"device": self.name}

    def started(self) -> None:  # noqa: B027 - most devices have nothing to say of themselves
        """The driver has finished setting up."""

    def reset(self) -> None:  # noqa: B027 - most devices keep nothing between chains
        """Reset the device: its driver starts again."""
