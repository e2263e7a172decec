# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tests, the fuzzer and the benchmark share. They import it; it imports none of them.

=========================  =========================================================================
``guest``, ``td``, ``vm``  guest programs, and a TD or an ordinary VM around them
``seamcalls``              SEAMCALLs on a TD that KVM has made, counted and timed
``invariants``             what must hold between KVM, the TDX module and memory after any call
``seam``                   a host without a kernel for the TDX module, and random calls to it
``fuzzing``                the campaigns of ``script/fuzz``, which the tests run in short
``tdvf_image``             TDVF images, rule by rule
``uefi_image``             firmware volumes, variables and EFI programs
``taken``                  seconds and memory of a command until it has printed a text
``places``                 where the repository, firmware and reference material are
=========================  =========================================================================
"""
