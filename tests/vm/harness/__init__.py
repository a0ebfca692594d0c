# SPDX-License-Identifier: Apache-2.0
"""Runs a command in a real guest with a stock Debian kernel: ``vm.run("6.1", ["true"]).returncode``.

On the command line: ``python -m tests.vm.harness run --kernel 6.12 -- COMMAND…``. See docs/adr/0002-vm-lane.md.
"""

from __future__ import annotations

from tests.vm.harness.errors import HarnessError
from tests.vm.harness.kernels import META_PACKAGES
from tests.vm.harness.machine import NO_STATUS, REPOSITORY, Result, prepare, report, run

KERNELS = tuple(META_PACKAGES)
"""The kernel lines every VM test runs on."""

__all__ = ["KERNELS", "NO_STATUS", "REPOSITORY", "HarnessError", "Result", "prepare", "report", "run"]
