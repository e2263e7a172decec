# SPDX-License-Identifier: GPL-2.0-or-later
"""What becomes of an error: one sentence on stderr, an object on stdout for ``--json``, and an exit status."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable

from swtdx.cli.standard_streams import StandardStreams
from swtdx.cli.verdict import Failure

_STATUS_BAD_INPUT = 2  # swtdx.vmm.outcome, of `run`
_STATUS_INTERRUPTED = 130


def carried_out(action: Callable[[], int], system_status: int, streams: StandardStreams, *, as_json: bool) -> int:
    """Run a command and return its exit status, also if it raises one of the errors that can be foreseen.

    ``system_status`` is the status of a command that the system fails: no memory, a folder that cannot be searched.
    """
    try:
        return action()
    except Failure as failure:
        return complain(str(failure), failure.status, as_json=as_json and not failure.shown)
    except KeyboardInterrupt:
        return _STATUS_INTERRUPTED
    except ImportError as error:
        if error.name != "swtdx.cpu._engine":
            raise
        return complain(str(error), system_status, as_json=as_json)
    except MemoryError:
        shortage = OSError(errno.ENOMEM, "there is not enough memory")
        return _complain_of(shortage, system_status, as_json=as_json)
    except OSError as error:
        if error is streams.stdout_problem:
            return 0  # `StandardStreams.finish` reports it
        return _complain_of(error, system_status, as_json=as_json)
    except _foreseen() as error:  # evaluated only when something else was raised
        return _complain_of(error, system_status, as_json=as_json)


def complain(text: str, status: int, *, as_json: bool) -> int:
    """Print one sentence on stderr, and with ``as_json`` an object on stdout too. Return the status."""
    sentence = " ".join(text.split())
    print(f"swtdx: {sentence}", file=sys.stderr)
    if as_json:
        import json

        print(json.dumps({"error": sentence, "status": int(status)}, indent=2))
    return status


def _foreseen() -> tuple[type[Exception], ...]:
    """Return what ``run`` raises for a person; called when something was raised."""
    from swtdx.cli.session import bad_input
    from swtdx.uapi.client import KvmError

    return (*bad_input(), KvmError)


def _complain_of(error: Exception, system_status: int, *, as_json: bool) -> int:
    from swtdx.uapi.client import KvmError
    from swtdx.vmm.outcome import End

    if isinstance(error, KvmError):
        status = complain(f"the kernel refused: {error}", End.INTERNAL_ERROR.status, as_json=as_json)
    elif isinstance(error, OSError):
        from swtdx.cli.parameters import address_space_limit

        limit = address_space_limit() if error.errno == errno.ENOMEM else ""
        what = f"{error.filename}: " if error.filename is not None else ""
        status = complain(f"{what}{error.strerror or error}{limit}", system_status, as_json=as_json)
    else:
        status = complain(str(error), _STATUS_BAD_INPUT, as_json=as_json)
    for line in getattr(error, "__notes__", ()):  # what the refusal means: swtdx.explain.notes
        print(f"  {line}", file=sys.stderr)
    return status
