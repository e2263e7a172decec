# SPDX-License-Identifier: GPL-2.0-or-later
"""Whole machines kept and restored: state as plain data, memory copy-on-write, files.

docs/explanation/snapshots.md says why it is as it is.
"""
