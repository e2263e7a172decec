# SPDX-License-Identifier: GPL-2.0-or-later
"""Fuzzing campaigns: run in short by the tests, and at length by ``script/fuzz``.

A campaign is a module with ``campaign(cases, seed, progress) -> Result``; a result has ``failures`` and ``lines()``.
"""
