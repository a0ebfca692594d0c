# SPDX-License-Identifier: Apache-2.0
"""Boots a guest of its own for every file of guest-side tests, on each kernel: a sealed kernel cannot be unsealed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.vm.harness import KERNELS
from tests.vm.harness.lane import LONG_TIMEOUT, GuestFile, guest_files, run_on_all

if TYPE_CHECKING:
    from pathlib import Path

FILES = [file for file in guest_files() if file.has_short]
LONG_FILES = [file for file in guest_files() if file.has_long]


def test_there_are_guest_side_tests() -> None:
    assert FILES


@pytest.mark.parametrize("file", FILES, ids=str)
def test_in_the_guest(file: GuestFile, tmp_path: Path) -> None:
    passed = run_on_all(KERNELS, file, tmp_path)
    assert set(passed) == set(KERNELS)
    assert all(passed.values())


if LONG_FILES:

    @pytest.mark.long
    @pytest.mark.parametrize("file", LONG_FILES, ids=str)
    def test_long_in_the_guest(file: GuestFile, tmp_path: Path) -> None:
        passed = run_on_all(KERNELS, file, tmp_path, only_long=True, memory="4G", timeout=LONG_TIMEOUT)
        assert set(passed) == set(KERNELS)
        assert all(passed.values())
