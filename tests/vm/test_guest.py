# SPDX-License-Identifier: Apache-2.0
"""Boots a guest of its own for every file of guest-side tests, on each kernel: a sealed kernel cannot be unsealed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.vm.harness import KERNELS
from tests.vm.harness.lane import guest_files, run_pytest

if TYPE_CHECKING:
    from pathlib import Path

FILES = guest_files()


def test_there_are_guest_side_tests() -> None:
    assert FILES


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("file", "systemd"), FILES, ids=[file.removeprefix("tests/vm/guest/") for file, _ in FILES])
def test_in_the_guest(kernel: str, file: str, *, systemd: bool, tmp_path: Path) -> None:
    passed = run_pytest(kernel, [file], tmp_path, systemd=systemd)
    print(f"{passed} passed in the guest")  # noqa: T201 - pytest shows it with -rP
