# SPDX-License-Identifier: GPL-2.0-or-later
"""The host's quoting side, with test keys: PKI, quoting enclave, quote generation service, collateral service.

It turns the TDREPORT of a TD that ran on a swtdx machine into a quote that verifiers accept **under a test root**, and
serves the collateral for it. It protects nothing: the keys lie in a folder, and no production root certifies them.

======================  ==============================================================================================
``machine_folder``      where a machine's test keys are kept, and its report key
``certificates``        X.509 certificates and CRLs as Intel's, with names that say that they are a test
``sgx_extension``       Intel's extension of a PCK certificate
``pki``                 all keys and certificates of one machine
``enclave``             the work of the TD quoting enclave: check a TDREPORT, sign a quote
``collateral``          TCB info and QE identity, with the TCB status that is asked for
``qgs``                 the service that VMMs ask for quotes
``quote_sources``       the quoting enclave for a VMM in this process
``pccs``                the service that verifiers ask for collateral
``tls``                 its certificate for HTTPS
``quoting_td``          a TD of a few bytes that asks for a quote
======================  ==============================================================================================
"""
