# SPDX-License-Identifier: GPL-2.0-or-later
"""TDREPORT: what a TD can prove of itself on this machine.

1024 bytes: REPORTMACSTRUCT (256, of which the last 32 are the MAC), TEE_TCB_INFO (239) with 17 reserved bytes, TDINFO
(512). REPORTMACSTRUCT holds SHA-384 hashes of the other two. The MAC is HMAC-SHA-256 of the first 224 bytes under a key
that on real hardware no software can read.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from swtdx.seam.identity import Identity
    from swtdx.seam.td import Td

REPORT_SIZE = 1024
REPORTDATA_SIZE = 64
MAC_STRUCT_SIZE = 256
MACED_SIZE = 224
REPORT_TYPE_TDX = 0x81
_MAC_STRUCT = struct.Struct("<BBBB12x16s48s48s64s32x")
_TCB_INFO = struct.Struct("<Q16s48s48sQ16s95x")
_TD_INFO = struct.Struct("<QQ48s48s48s48s48s48s48s48s48s64x")
assert (_MAC_STRUCT.size, _TCB_INFO.size, _TD_INFO.size) == (224, 239, 512)


def td_info(td: Td) -> bytes:
    """Return TDINFO_STRUCT, 512 bytes."""
    return _TD_INFO.pack(
        td.attributes, td.xfam, td.mrtd, td.mrconfigid, td.mrowner, td.mrownerconfig, *td.rtmr, td.servtd_hash
    )


def tee_tcb_info(identity: Identity) -> bytes:
    """Return TEE_TCB_INFO, 239 bytes."""
    return _TCB_INFO.pack(
        identity.tcb_info_valid,
        identity.tee_tcb_svn,
        identity.mrseam,
        identity.mrsignerseam,
        0,
        identity.tee_tcb_svn2,
    )


def make(td: Td, identity: Identity, report_data: bytes) -> bytes:
    """Return a TDREPORT of ``td`` over 64 bytes of report data."""
    info, tcb = td_info(td), tee_tcb_info(identity)
    head = _MAC_STRUCT.pack(
        REPORT_TYPE_TDX, 0, 0, 0,
        identity.cpu_svn, hashlib.sha384(tcb).digest(), hashlib.sha384(info).digest(), report_data,
    )  # fmt: skip
    return head + mac(identity, head) + tcb + bytes(17) + info


def mac(identity: Identity, head: bytes) -> bytes:
    """Return the MAC over the first 224 bytes of REPORTMACSTRUCT."""
    return hmac.digest(identity.report_key, head[:MACED_SIZE], "sha256")


def verify(identity: Identity, mac_struct: bytes) -> bool:
    """Return whether a REPORTMACSTRUCT (256 bytes) was made on this machine."""
    return hmac.compare_digest(mac(identity, mac_struct), mac_struct[MACED_SIZE:MAC_STRUCT_SIZE])
