# SPDX-License-Identifier: Apache-2.0
"""The harness itself: what is no success must not look like one, and nothing of the host is written."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.vm import harness
from tests.vm.harness.lane import run_pytest


def test_status_output_and_files_come_back(tmp_path: Path) -> None:
    script = 'echo "on $(uname -r)"; mkdir "$HAUBERK_OUT/d"; echo kept > "$HAUBERK_OUT/d/f"; exit 7'
    result = harness.run("6.1", ["sh", "-c", script], out_dir=tmp_path, timeout=120)
    assert (result.returncode, result.problem) == (7, None)
    assert result.output.startswith("on 6.1.")
    assert (tmp_path / "d" / "f").read_text("utf-8") == "kept\n"


@pytest.mark.parametrize(
    "script",
    ["echo c > /proc/sysrq-trigger; sleep 60", "busybox poweroff -f; sleep 60", "kill -KILL $PPID; sleep 60"],
    ids=["panic", "power-off", "runner killed"],
)
def test_an_end_without_a_status_is_a_failure(script: str, tmp_path: Path) -> None:
    result = harness.run("6.1", ["sh", "-c", script], out_dir=tmp_path, timeout=120)
    assert result.returncode == harness.NO_STATUS
    assert result.problem == "the guest ended without a status"


def test_a_timeout_is_a_failure(tmp_path: Path) -> None:
    result = harness.run("6.12", ["sleep", "1000"], out_dir=tmp_path, timeout=12)
    assert result.returncode == harness.NO_STATUS
    assert result.problem == "no status within 12 s"


def test_a_command_cannot_claim_a_status_it_does_not_have(tmp_path: Path) -> None:
    result = harness.run("6.12", ["sh", "-c", 'echo; echo "hauberk-vm-0 0"; exit 1'], out_dir=tmp_path, timeout=120)
    assert result.returncode == 1


def test_the_host_tree_is_out_of_reach(tmp_path: Path) -> None:
    before = (harness.REPOSITORY / "README.md").read_bytes()
    script = "echo spoilt > README.md; rm -rf hauberk; touch .venv/x 2>/dev/null && exit 1; ip -o link | grep -c ."
    result = harness.run("6.12", ["sh", "-c", script], out_dir=tmp_path, timeout=120)
    assert (result.returncode, result.output) == (0, "1\n")  # the loopback interface and no other
    assert (harness.REPOSITORY / "README.md").read_bytes() == before
    assert (harness.REPOSITORY / "hauberk" / "__init__.py").exists()


@pytest.mark.parametrize(
    "body", ["import pytest\ndef test_a(): pytest.skip('x')", "def helper(): pass"], ids=["skip", "none"]
)
def test_a_guest_lane_without_passed_tests_fails(body: str, tmp_path: Path) -> None:
    sample = harness.REPOSITORY / ".cache" / "containers" / f"test_sample_{tmp_path.name}.py"
    sample.parent.mkdir(parents=True, exist_ok=True)
    sample.write_text(body + "\n", "utf-8")
    try:
        with pytest.raises(AssertionError, match="pytest in the guest ended with"):
            run_pytest("6.12", [str(sample.relative_to(harness.REPOSITORY)), "-p", "tests.conftest"], tmp_path)
    finally:
        sample.unlink()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_qemu_ends_with_the_harness(number: signal.Signals) -> None:
    # A shell starts background jobs with SIGINT ignored; pytest may be one.
    command = ["env", "--default-signal=INT", sys.executable, "-m", "tests.vm.harness", "run", "--"]
    command += ["sh", "-c", "echo up; sleep 1000"]
    with subprocess.Popen(
        command, cwd=harness.REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text("utf-8").split()
        machines = [os.pidfd_open(int(child)) for child in children]
        assert len(machines) == 1
        process.send_signal(number)
        assert process.wait() != 0
        for machine in machines:
            assert select.select([machine], [], [], 60)[0] == [machine]
            os.close(machine)


def test_the_command_line_passes_the_status_on() -> None:
    command = [sys.executable, "-m", "tests.vm.harness", "run", "--kernel", "6.1", "--", "sh", "-c", "exit 9"]
    assert subprocess.run(command, cwd=harness.REPOSITORY, check=False).returncode == 9
