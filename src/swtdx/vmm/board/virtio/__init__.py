# SPDX-License-Identifier: GPL-2.0-or-later
"""Virtio devices (OASIS Virtual I/O Device, version 1.2): ring, transport over PCI, and the devices, a file each."""
