# SPDX-License-Identifier: GPL-2.0-or-later
"""Traces: the file that ``swtdx run --trace`` writes, the history of a run made from its events, and that as HTML."""
