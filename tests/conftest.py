# SPDX-License-Identifier: Apache-2.0
"""For every lane: a test that did not run is a failed test. Skips and expected failures never look green."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

_REASON = "skipped tests count as failures: provide what the test needs, or remove it"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skipped or expectedly failed test into a failed one."""
    report = yield
    if report.skipped or hasattr(report, "wasxfail"):
        report.longrepr = f"{_REASON} ({report.longrepr})"
        report.outcome = "failed"
        if hasattr(report, "wasxfail"):
            del report.wasxfail
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Turn a module that skips itself while it is collected into a failed one."""
    report = yield
    if report.skipped:
        report.longrepr = f"{_REASON} ({report.longrepr})"
        report.outcome = "failed"
    return report
