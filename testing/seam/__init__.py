# SPDX-License-Identifier: GPL-2.0-or-later
"""The TDX module without a kernel: `fake_host` makes the SEAMCALLs of a test, `random_calls` those of a campaign."""
