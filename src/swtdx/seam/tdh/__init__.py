# SPDX-License-Identifier: GPL-2.0-or-later
"""The host-side leaf functions (TDH.*), by the part of the architecture they work on.

Importing this package registers them with `swtdx.seam.dispatch`.
"""

from __future__ import annotations

from swtdx.seam.tdh import (
    mem_build,
    mem_debug,
    mem_manage,
    mem_remap,
    mng,
    mng_metadata,
    not_reproduced,
    phymem,
    sys_config,
    sys_info,
    vp,
    vp_enter,
)

LOADED = (
    mem_build, mem_debug, mem_manage, mem_remap, mng, mng_metadata, not_reproduced, phymem, sys_config, sys_info,
    vp, vp_enter,
)  # fmt: skip
