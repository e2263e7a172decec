# SPDX-License-Identifier: GPL-2.0-or-later
"""pytest inside pytest."""

pytest_plugins = ["pytester"]
