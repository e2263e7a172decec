# SPDX-License-Identifier: GPL-2.0-or-later
"""``swtdx exec``: the emulated kernel behind /dev/kvm of a program that is not ours and was not changed.

Two halves that meet at the system-call line. Outside, in the command: `program` looks at what is to be executed and
chooses a front end, `settings` writes down what the run wants. Inside, in the program's process: the front end carries
the program's calls to `inside`, which answers them with a kernel of its own for each process.

The first front end, ``preload``, is a library in the program's process (``native/preload``), so that guest memory is
directly addressable and KVM_RUN runs in the thread that called it. It reaches programs that use a dynamic glibc. What
crosses the line is integers and addresses, so that a front end for all others can serve them from another process.
"""
