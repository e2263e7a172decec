# SPDX-License-Identifier: GPL-2.0-or-later
"""What must not break, whatever comes: run by script/fuzz as ``python -m fuzz KIND``.

A kind is a module with ``campaign(cases, seed, progress) -> Result``; a result has ``failures`` and ``lines()``.
`parsers` damages what a verifier reads, `kvm` throws random ioctls at the emulated kernel while guests run.
"""
