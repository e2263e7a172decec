# SPDX-License-Identifier: GPL-2.0-or-later
"""Architecture code of the kernel."""
