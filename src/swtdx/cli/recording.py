# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``swtdx run`` keeps of what happens inside: the trace (``--trace``), and the page made of it (``--html``).

Events come from the moment the machine is switched on, but files are emptied only when all that was typed has proved
usable (`Recording.begin`); what comes before is held back until then.
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import TYPE_CHECKING, Any

from swtdx.cli.output import Output

if TYPE_CHECKING:
    from swtdx.trace.batch import Repeated, Sink
    from swtdx.trace.event import Event
    from swtdx.trace.file import TraceWriter
    from swtdx.trace.format import TraceFormat
    from swtdx.trace.history import RunHistory


class Recording:
    """Where events go; a context manager around all of the machine's life. ``record`` is set when the run is over."""

    def __init__(self, trace: Output | None, form: TraceFormat, html: Output | None, command: list[str]) -> None:
        self.trace = trace
        self.html = html
        self.record: dict[str, Any] | None = None
        self._form = form
        self._command = command
        self._lock = threading.Lock()
        self._held: list[Event] | None = []
        self._sinks: list[Sink] = []
        self._writer: TraceWriter | None = None
        self._history: RunHistory | None = None
        if html is not None:
            from swtdx.trace.history import RunHistory

            self._history = RunHistory()
        self._origin = 0

    @property
    def sink(self) -> Sink:
        """What takes the events."""
        from swtdx.trace.batch import Sink

        return Sink(self.emit, self.emit_all)

    @property
    def wanted(self) -> bool:
        """Whether anything is to be kept, so that the machine must be watched."""
        return self.trace is not None or self.html is not None

    def emit(self, event: Event) -> None:
        """Take an event, from any thread; trace and page get them in one order."""
        with self._lock:
            if self._held is not None:
                self._held.append(event)
                return
            for sink in self._sinks:
                sink.each(event)

    def emit_all(self, batch: Repeated) -> None:
        """Take events that come many at a time."""
        with self._lock:
            if self._held is not None:
                self._held.extend(batch)
                return
            for sink in self._sinks:
                sink.many(batch)

    def begin(self) -> None:
        """Take the outputs, which are empty now."""
        if self.wanted:
            self._begin_sinks()
        with self._lock:
            held, self._held = self._held or [], None
            for event in held:
                for sink in self._sinks:
                    sink.each(event)

    def _begin_sinks(self) -> None:
        from swtdx.trace.batch import Sink
        from swtdx.trace.file import TraceWriter

        if self._held:
            self._origin = self._held[0].t
        if self._history is not None:
            self._history.origin = self._origin
            self._sinks.append(Sink(self._history.add, self._history.add_all))
        if self.trace is not None:
            self._writer = TraceWriter(self.trace, self._form, self._command, self._origin or None)
            self._sinks.append(Sink(self._writer.emit, self._writer.emit_all))

    @property
    def events(self) -> int:
        """How many have been written."""
        return self._writer.events if self._writer else 0

    def __enter__(self) -> Recording:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close(self.record)
        if self._history is not None and self.html is not None and self.record is not None:
            self._write_page(self._history, self.html, self.record)

    def _write_page(self, history: RunHistory, output: Output, record: dict[str, Any]) -> None:
        from swtdx.trace.html import page

        with self._lock:
            history.record = record
            history.finish()
            text = page(history)
        output.replace(text.encode("utf-8", "replace"))
