"""Builds the C library of the forks' kernels for a CPU into the package, for a wheel or an editable install.

Where there is no C compiler, or not on Linux, the package goes without: forks then take PyTorch's operations.
``CC=false`` builds a wheel without it, for any machine.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import platform_tags

SOURCE = Path("src/equipoise/forks/cpu_kernels.c")
LIBRARY = SOURCE.with_name("libcpu_kernels.so")
OPTIONS = ["-O3", "-std=gnu11", "-fPIC", "-shared"]


def built_library(root: Path) -> str:
    """Build the library in place of an older one; return why it could not be built, or nothing."""
    library, new = root / LIBRARY, root / LIBRARY.with_suffix(f".{os.getpid()}")
    compiler = shlex.split(os.environ.get("CC", "cc"))
    try:
        if sys.platform != "linux":
            return f"it is built on Linux alone, not on {sys.platform}"
        subprocess.run(
            [*compiler, *OPTIONS, "-o", str(new), str(root / SOURCE), "-lm"], check=True, capture_output=True, text=True
        )
        new.replace(library)  # at once: another process may have it open
    except OSError as error:
        return str(error)
    except subprocess.CalledProcessError as error:
        return error.stderr.strip() or f"{' '.join(compiler)} failed"
    return ""


class CustomBuildHook(BuildHookInterface):
    """Called by hatchling before it collects the files of a wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the library, and name the wheel after the machine that it is for."""
        fault = built_library(Path(self.root))
        if fault:
            if version == "editable":  # which would take an older one that lies there; a wheel does not
                (Path(self.root) / LIBRARY).unlink(missing_ok=True)
            self.app.display_warning(f"Building without the C library, so that forks are slower on a CPU: {fault}")
            return
        tags = list(platform_tags())
        oldest = next((tag for tag in tags if tag.startswith("manylinux_2_17_")), tags[0])
        build_data |= {"artifacts": [str(LIBRARY)], "pure_python": False, "tag": f"py3-none-{oldest}"}
