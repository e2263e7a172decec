# SPDX-License-Identifier: GPL-2.0-or-later
"""The one thing pyproject.toml cannot say: how the native engine is built.

``swtdx.cpu._engine`` is a Cython extension with a patched, x86-only, static Unicorn linked in. ``native/unicorn.py``
obtains and patches Unicorn, compiles it together with the C of ``native/engine`` and answers from its cache when
nothing changed; it is called only when an extension is really built, so that ``sdist`` and metadata cost nothing and
need no compiler.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
PRELOAD = ("preload", "ordinary", "settings", "paths", "signals", "spawn")
PRELOAD_FLAGS = ["-O2", "-g0", "-std=gnu11", "-fvisibility=hidden", "-Wall", "-Wextra"]


def native_unicorn() -> ModuleType:
    """Import ``native/unicorn.py`` by its path: it is build machinery and no part of the installed package."""
    spec = importlib.util.spec_from_file_location("swtdx_native_unicorn", ROOT / "native" / "unicorn.py")
    if spec is None or spec.loader is None:
        raise SystemExit("setup.py: native/unicorn.py is missing; build from a complete checkout or sdist")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


class BuildEngine(build_ext):
    """``build_ext`` that first makes Unicorn's static libraries and then links the extension against them."""

    def build_extensions(self) -> None:
        native = native_unicorn()
        if not shutil.which("pkg-config"):
            os.environ.setdefault("PKG_CONFIG", "true")  # Unicorn's configure insists on one and asks it nothing
        try:
            unicorn = native.build()
        except native.BuildError as error:  # one that tells the person what to do: no traceback around it
            raise SystemExit(f"setup.py: {error}") from None
        for extension in self.extensions:
            if extension.name != "swtdx.cpu._engine":
                continue
            extension.define_macros.append(("SWTDX_SOURCE", native.source_checksum()))
            extension.include_dirs += [str(path) for path in unicorn.include_dirs]
            archives = [str(path) for path in unicorn.libraries]
            extension.depends += archives
            # A group: the archives refer to each other both ways.
            extension.extra_link_args += ["-Wl,--start-group", *archives, "-Wl,--end-group"]
        super().build_extensions()


setup(
    cmdclass={"build_ext": BuildEngine},
    ext_modules=[
        Extension(
            "swtdx.cpu._engine",
            sources=["src/swtdx/cpu/_engine.pyx"],
            depends=sorted(str(path.relative_to(ROOT)) for path in (ROOT / "native" / "engine").glob("*.h")),
            libraries=["pthread", "m"],
            extra_compile_args=["-O2", "-g0", "-std=gnu11"],
            # Unicorn's symbols stay inside: another copy of it (the PyPI package) may live in the same process.
            extra_link_args=["-Wl,--exclude-libs,ALL", "-Wl,-Bsymbolic"],
        ),
        # In every process under `swtdx exec`: C and libc, nothing of Python.
        Extension(
            "swtdx.exec._preload",
            sources=[f"native/preload/{name}.c" for name in PRELOAD],
            depends=["native/preload/preload.h", "native/preload/gate.h"],
            # Fortified headers define inline what is defined here.
            extra_compile_args=[*PRELOAD_FLAGS, "-U_FORTIFY_SOURCE"],
        ),
        # Loaded beside libpython, whose symbols it finds in the process.
        Extension(
            "swtdx.exec._bridge",
            sources=["native/preload/bridge.c"],
            depends=["native/preload/gate.h"],
            extra_compile_args=PRELOAD_FLAGS,
        ),
        Extension(
            "swtdx.exec.notify._receiver",
            sources=["native/notify/receiver.c"],
            libraries=["pthread"],
            extra_compile_args=["-O2", "-g0", "-std=gnu11"],
        ),
    ],
)
