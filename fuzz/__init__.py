# SPDX-License-Identifier: GPL-2.0-or-later
"""``script/fuzz``: the campaigns of `testing.fuzzing` and `testing.seam`, made long."""
