# SPDX-License-Identifier: GPL-2.0-or-later
"""swtdx: Intel TDX under KVM, in software.

The floors of the house, top to bottom, each named after the thing it stands for: ``cli`` (the command), ``vmm`` (user
space), ``uapi`` (what crosses the system-call line), ``linux`` (the emulated kernel), ``seam`` (the emulated TDX
module) and ``cpu`` (the emulated processor). ``machine`` is the one place that wires them together.
"""

__version__ = "0.1.0"
