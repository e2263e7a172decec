# SPDX-License-Identifier: GPL-2.0-or-later
"""A host that lies: answers to a TD's calls that are other than the honest ones, as a policy with a seed.

What a host may answer is anything, and a guest must survive it. `lie` reads what is asked for
(``Instruction.IO 0x3fd: R11=0x61 @3``, ``any: random 1% seed 7``), `teller` decides at each call, `live` stands between
the machine and its guest. Each lie that was told is a text of the same form, so that a file of them repeats the run.
"""

from __future__ import annotations
