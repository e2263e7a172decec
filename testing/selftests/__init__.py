# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's own x86 selftests (tools/testing/selftests/x86 of a Linux tree), run in a TD and in an ordinary VM."""
