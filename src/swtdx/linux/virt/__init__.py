# SPDX-License-Identifier: GPL-2.0-or-later
"""Virtualization that no architecture owns (virt)."""
