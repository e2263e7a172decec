# SPDX-License-Identifier: GPL-2.0-or-later
"""What a TD hands to its host, compared with what the call needs.

A TD is confidential only as far as its own code keeps it so: each TDVMCALL passes registers to the host, and takes
registers from it. `ghci.json` has what the specification defines for each function, `rules` compares a call with it,
`live` sees the calls of a machine that runs, `from_trace` those of a trace file, `report` keeps what was found.
"""

from __future__ import annotations
