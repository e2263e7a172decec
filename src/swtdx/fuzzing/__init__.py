# SPDX-License-Identifier: GPL-2.0-or-later
"""Many short runs of one guest, from one snapshot, whose host lies: what does the guest do wrong?

`host` tells the lies of one run and notes which calls there are to lie about. `guest` restores, runs and says what came
of it (`outcome`). `mutation` varies lies, by Hypothesis. `campaign` keeps what reached new code, and
what crashed, which `minimise` makes short. `cluster` has several workers do it, by Dask. `folder` is where it all is.
"""

from __future__ import annotations
