# SPDX-License-Identifier: GPL-2.0-or-later
"""Every status that any test of this directory has met is explained by a rule of the leaf function that answered it.

This file runs last and looks at what the others have seen; alone it sees nothing.
"""

from __future__ import annotations

import pytest

from swtdx.explain import leaves
from swtdx.explain.status import UNKNOWN, explain_status
from swtdx.explain.td_exit import is_td_exit


def test_every_status_that_was_met_breaks_a_rule_that_is_known(seen, report):
    met = {(leaf, rax) for leaf, rax in seen if leaf in leaves() and rax >> 32 and not is_td_exit(rax)}
    if not met:
        pytest.skip("only after the other tests of this directory")
    explained = {pair: explain_status(pair[1], pair[0]) for pair in met}
    # Statuses that only module 1.0 has are explained, but the rules are those of 1.5.06.
    # What Linux makes up for a SEAMCALL that did not reach the module is no leaf function's.
    of_this_module = {pair: each for pair, each in explained.items() if not {"module_version", "of"} & set(each)}
    report(f"(leaf, status): {len(of_this_module)} met, each with its rule")
    assert [pair for pair, found in explained.items() if found["name"] == UNKNOWN] == []
    without = [(leaf, hex(rax)) for (leaf, rax), found in of_this_module.items() if not found.get("rules")]
    assert without == [], without
