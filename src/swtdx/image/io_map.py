# SPDX-License-Identifier: GPL-2.0-or-later
"""I/O ports that ACPI tables name and a device of the board decodes: one number for both."""

from __future__ import annotations

# Power management block of the ICH9 (data sheet 13.8.3): its base after firmware has set it, and offsets in the block.
FIRMWARE_PMBASE = 0x600
PM1_STS = 0x00
PM1_EN = 0x02
PM1_CNT = 0x04
PM_TIMER = 0x08
SLEEP_TYPE_S5 = 0  # SLP_TYP of power-off; the fw_cfg file etc/system-states gives the same value

PVPANIC_PORT = 0x505  # as in QEMU (docs/specs/pvpanic)
RESET_PORT = 0xCF9  # ICH9 13.7.5
