# SPDX-License-Identifier: Apache-2.0
"""What the host-lane tests of the container material share: the compiled programs and one root file system.

The repository's root goes on the import path, since `tests` is a plain folder and no installed package.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).resolve().parents[3]
if str(REPOSITORY) not in sys.path:
    sys.path.insert(0, str(REPOSITORY))

from tests.vm.containers import rootfs  # noqa: E402 - needs the path above


@pytest.fixture(scope="session")
def programs() -> Path:
    """The programs that run inside containers, compiled if need be; a guest has no compiler and uses what is there."""
    if os.environ.get("HAUBERK_VM") != "1":
        make = ["make", "-s", "-C", str(REPOSITORY), "-f", "tests/vm/containers/build.mk", "container-programs"]
        subprocess.run(make, check=True)
    return REPOSITORY / ".cache" / "containers"


@pytest.fixture(scope="session")
def shared_root(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One root file system, the lower layer of every container here."""
    if os.geteuid() != 0:
        pytest.fail("the host lane needs root: it makes containers")
    root = tmp_path_factory.mktemp("containers") / "rootfs"
    rootfs.build(root, programs)
    yield root
    rootfs.remove_tree(root)
