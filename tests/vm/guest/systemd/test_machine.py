# SPDX-License-Identifier: Apache-2.0
"""Under systemd: it is the first process, it came up whole, and the test runs as a unit of its own."""

from __future__ import annotations

import subprocess
from pathlib import Path


def test_systemd_is_the_first_process_and_came_up_whole() -> None:
    assert Path("/proc/1/comm").read_text("utf-8") == "systemd\n"
    command = ["systemctl", "--failed", "--plain", "--no-legend"]
    failed = subprocess.run(command, check=True, capture_output=True, text=True)
    assert failed.stdout == ""
    assert Path("/proc/self/cgroup").read_text("utf-8") == "0::/system.slice/hauberk-vm.service\n"
