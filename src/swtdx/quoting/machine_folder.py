# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a machine keeps what it is known by: its report key, and the test PKI that certifies its quotes.

A real processor has a report key of its own, with which the TDX module makes the MAC of a TDREPORT and with which an
enclave on the same processor checks it.  The emulated machine takes it from a folder, so that a quote generation
service in another process is "on the same machine".  The folder holds private keys of no value; it is readable by its
owner alone, so that test quotes come from where they seem to come from.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

REPORT_KEY = "report.key"
REPORT_KEY_SIZE = 32


class FolderError(Exception):
    """The folder of a machine cannot be used; the text is one sentence for a person."""


def default_folder() -> Path:
    """Return the folder that is used where none is named: in the user's state folder (XDG), or $SWTDX_PKI."""
    named = os.environ.get("SWTDX_PKI")
    if named:
        return Path(named)
    state = os.environ.get("XDG_STATE_HOME", "")
    base = Path(state) if os.path.isabs(state) else Path(os.path.expanduser("~")) / ".local" / "state"
    return base / "swtdx" / "pki"


def made(folder: Path) -> Path:
    """Return the folder, made if need be. Raises `FolderError`."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except FileExistsError:
        raise FolderError(f"{folder} is not a folder") from None
    except OSError as error:
        raise FolderError(f"the folder {folder} cannot be made: {error.strerror}") from None
    return folder


def report_key(folder: Path, fresh: bytes | None = None) -> bytes:
    """Return the machine's report key, made if there is none (``fresh``, or random). Raises `FolderError`.

    Two processes that make it at the same time get the same one.
    """
    path = folder / REPORT_KEY
    for _ in range(2):
        try:
            key = bytes.fromhex(path.read_text(encoding="ascii").strip())
        except FileNotFoundError:
            made_now = fresh or os.urandom(REPORT_KEY_SIZE)
            write_once(made(folder) / REPORT_KEY, f"{made_now.hex()}\n".encode())
            continue
        except OSError as error:
            raise FolderError(f"{path} cannot be read: {error.strerror}") from None
        except ValueError:
            key = b""
        if len(key) != REPORT_KEY_SIZE:
            raise FolderError(f"{path} is not a report key: {REPORT_KEY_SIZE} bytes in hexadecimal")
        return key
    raise FolderError(f"{path} cannot be made")


def write_once(path: Path, content: bytes) -> None:
    """Write a file in one step, unless it exists. Raises `FolderError`."""
    import tempfile

    temporary = ""
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # readable by its owner only
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.link(temporary, path)
    except FileExistsError:
        pass
    except OSError as error:
        raise FolderError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        if temporary:
            with suppress(OSError):
                os.unlink(temporary)
