# SPDX-License-Identifier: GPL-2.0-or-later
"""Where published material is: reference tables, and evidence of real machines. It is not part of this repository.

All tests that read it are in this folder, each file with the reason why synthetic expectations do not replace it; in a
clone without the material they are not selected (tests/conftest.py). tests/architecture/test_published.py holds both.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from testing.places import reference_directory
from tests.cli.conftest import command as command


@pytest.fixture(scope="session")
def shared_reference() -> Path:
    """The directory of the material."""
    return reference_directory()


@pytest.fixture(scope="session")
def vectors(shared_reference: Path) -> Path:
    """Quotes, reports, logs and collateral of real machines."""
    return shared_reference / "vectors"


@pytest.fixture(scope="session")
def cases(shared_reference: Path) -> Path:
    """Evidence in the forms in which other people's tools write it."""
    return shared_reference.parent / "cases" / "attestation"
