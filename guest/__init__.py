# SPDX-License-Identifier: GPL-2.0-or-later
"""The Linux guest of ``script/run linux`` and of the tests: a distribution's kernel, and a small initrd of our own."""
