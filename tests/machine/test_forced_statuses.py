# SPDX-License-Identifier: GPL-2.0-or-later
"""Every documented status of every leaf function that KVM calls, forced once in a TD's life: what Linux 7.2 does.

The expectations are docs/injected.json, which was read in Linux's source; they say what the ioctl returns, whether the
VM is dead and what the host loses. `testing.forced_status` has the life. In any case nothing ends by an exception, and
the kernel uses no page and no KeyID that the module still holds.
"""

from __future__ import annotations

from collections import Counter

import pytest

from testing.forced_status import Site, counts, force, kernels_leaves, sites

pytestmark = pytest.mark.slow
SITES = [pytest.param(site, id=f"{site.leaf}@{site.call}") for site in sites()]


@pytest.fixture(scope="module")
def usual() -> Counter[str]:
    return counts()


def test_the_table_has_every_leaf_function_that_the_kernel_calls(usual: Counter[str]) -> None:
    assert sorted({site.leaf for site in sites()}) == sorted(kernels_leaves())
    assert [leaf for leaf in kernels_leaves() if not usual[leaf]] == []


@pytest.mark.parametrize("site", SITES)
def test_each_row_of_the_table_has_a_status(site: Site) -> None:
    assert {site.row(status) for status in site.statuses()} == set(site.rows)


@pytest.mark.parametrize("site", SITES)
def test_each_documented_status_leads_to_what_linux_does(site: Site, usual: Counter[str]) -> None:
    found, expected = {}, {}
    for status in site.statuses():
        row = site.row(status)
        outcome = force(site, status, usual)
        found[status] = (outcome.during, str(outcome))
        expected[status] = (site.during, row[2] if len(row) > 2 else row[1])
    assert found == expected
