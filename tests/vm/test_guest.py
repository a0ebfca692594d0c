# SPDX-License-Identifier: Apache-2.0
"""Boots a guest of its own for every file of guest-side tests, on each kernel: a sealed kernel cannot be unsealed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.vm.harness import KERNELS
from tests.vm.harness.lane import LONG_TIMEOUT, GuestFile, Guests, guest_files

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FILES = [file for file in guest_files() if file.has_short]
LONG_FILES = [file for file in guest_files() if file.has_long]


def test_there_are_guest_side_tests() -> None:
    assert FILES
    assert LONG_FILES


@pytest.fixture(scope="session")
def guests(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guests]:
    """Begin with all files of this session."""
    made = Guests(KERNELS, tmp_path_factory.mktemp("guests"))
    for item in request.session.items:
        if isinstance(item, pytest.Function) and item.originalname == test_in_the_guest.__name__:
            file = item.callspec.params["file"]
            assert isinstance(file, GuestFile)
            made.begin(file)
    yield made
    made.end()
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter.write_line(f"\nseconds in guests: {made.seconds()}")


@pytest.mark.parametrize("file", FILES, ids=str)
def test_in_the_guest(file: GuestFile, guests: Guests) -> None:
    passed = guests.passed(file)
    assert set(passed) == set(KERNELS)
    assert all(report.passed for report in passed.values())


@pytest.mark.long
@pytest.mark.parametrize("file", LONG_FILES, ids=str)
def test_long_in_the_guest(file: GuestFile, tmp_path: Path) -> None:
    guests = Guests(KERNELS, tmp_path)
    try:
        guests.begin(file, only_long=True, memory="4G", timeout=LONG_TIMEOUT)
        passed = guests.passed(file)
    finally:
        guests.end()
    assert set(passed) == set(KERNELS)
    assert all(report.passed for report in passed.values())
