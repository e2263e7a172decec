# SPDX-License-Identifier: GPL-2.0-or-later
"""What things cost: run by script/bench as ``python -m bench``. It prints figures and judges nothing.

The code that is measured from inside, and the Trust Domain around it, are in `testing`; `mrtd` measures firmware
without one; `figures` takes the measurements. Only the public floors are used: a number here is what a VMM would see.
"""
