# SPDX-License-Identifier: GPL-2.0-or-later
"""The board: a q35 as small as firmware and a serial console allow. One device a file, named after the real part."""
