# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest side: VM exits that the module handles, and the TDCALL leaf functions (TDG.*).

A handler gets the module, the virtual CPU and the host's registers. It returns None to let the guest go on, or the RAX
of TDH.VP.ENTER to leave to the host.
"""

from __future__ import annotations
