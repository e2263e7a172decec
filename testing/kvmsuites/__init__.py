# SPDX-License-Identifier: GPL-2.0-or-later
"""Other people's tests of KVM, run on the emulated kernel: the kernel's selftests and kvm-unit-tests."""
