# SPDX-License-Identifier: GPL-2.0-or-later
"""Put into a wheel what setuptools does not: shared files, licences of what the engine links, and an SBOM.

``python native/wheel_contents.py WHEEL FOLDER``: the files below FOLDER are installed below the environment's prefix
(the wheel's ``.data/data``).  The SBOM is CycloneDX 1.6, in the place that PEP 770 gives it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import unicorn

_LICENCES = ("COPYING", "COPYING.LIB", "LICENSE")
"""Of QEMU, in Unicorn's source distribution, which has none of its own there."""


def sbom(name: str, version: str) -> dict[str, Any]:
    """What the wheel carries beside swtdx's own code: Unicorn with the patches of ``native/patches``."""
    patches = sorted(unicorn.PATCHES.glob("*.patch"))
    component = {
        "type": "library",
        "name": "unicorn",
        "version": unicorn.VERSION,
        "purl": f"pkg:pypi/unicorn@{unicorn.VERSION}",
        "licenses": [{"license": {"id": "GPL-2.0-only"}}],
        "hashes": [{"alg": "SHA-256", "content": unicorn.SHA256}],
        "pedigree": {
            "patches": [{"type": "unofficial", "diff": {"url": f"native/patches/{each.name}"}} for each in patches]
        },
        "properties": [
            {"name": f"swtdx:sha256:{each.name}", "value": hashlib.sha256(each.read_bytes()).hexdigest()}
            for each in patches
        ],
    }
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": "swtdx",
                "name": name,
                "version": version,
                "purl": f"pkg:pypi/{name}@{version}",
                "licenses": [{"expression": "GPL-2.0-or-later"}],
            }
        },
        "components": [{"bom-ref": "unicorn", **component}],
        "dependencies": [{"ref": "swtdx", "dependsOn": ["unicorn"]}],
    }


def add(wheel: Path, shared: Path) -> None:
    """Add all of it to a wheel, in its place. Raises CalledProcessError."""
    name, version = wheel.name.split("-")[:2]
    with tempfile.TemporaryDirectory() as scratch:
        run = [sys.executable, "-m", "wheel"]
        subprocess.run([*run, "unpack", "--dest", scratch, wheel], check=True, stdout=subprocess.DEVNULL)
        root = Path(scratch) / f"{name}-{version}"
        shutil.copytree(shared, root / f"{name}-{version}.data" / "data", dirs_exist_ok=True)
        information = root / f"{name}-{version}.dist-info"
        licences = information / "licenses" / "unicorn"
        licences.mkdir(parents=True, exist_ok=True)
        with tarfile.open(unicorn.fetch_source(unicorn.cache_directory())) as archive:
            for each in _LICENCES:
                member = archive.extractfile(f"unicorn-{unicorn.VERSION}/src/qemu/{each}")
                assert member is not None
                (licences / each).write_bytes(member.read())
        sboms = information / "sboms"
        sboms.mkdir(exist_ok=True)
        (sboms / f"{name}.cdx.json").write_text(json.dumps(sbom(name, version), indent=2) + "\n")
        subprocess.run([*run, "pack", "--dest-dir", wheel.parent, root], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    add(Path(sys.argv[1]), Path(sys.argv[2]))
