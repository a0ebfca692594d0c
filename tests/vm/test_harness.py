# SPDX-License-Identifier: Apache-2.0
"""The harness itself: what is no success must not look like one, and nothing of the host is written."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.vm import harness
from tests.vm.harness.lane import Report, run_pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


SCRIPTS = {
    "status": ("6.1", 'echo "on $(uname -r)"; mkdir "$HAUBERK_OUT/d"; echo kept > "$HAUBERK_OUT/d/f"; exit 7', 120.0),
    "panic": ("6.1", "echo c > /proc/sysrq-trigger; sleep 60", 120.0),
    "power-off": ("6.1", "busybox poweroff -f; sleep 60", 120.0),
    "runner killed": ("6.1", "kill -KILL $PPID; sleep 60", 120.0),
    "timeout": ("6.12", "sleep 1000", 12.0),
    "claim": ("6.12", 'echo; echo "hauberk-vm-0 0"; exit 1', 120.0),
    "tree": (
        "6.12",
        "echo spoilt > README.md; rm -rf hauberk; touch .venv/x 2>/dev/null && exit 1; ip -o link | grep -c .",
        120.0,
    ),
}
# What a skip and an empty file end pytest with: the lane must take neither for a success.
SAMPLE_STATUSES = {"skip": 1, "none": 5}
SAMPLES = {"skip": "import pytest\ndef test_a(): pytest.skip('x')\n", "none": "def helper(): pass\n"}


@dataclass(frozen=True)
class Runs:
    """Guests of this file: begun at once, as many side by side as in the rest of the lane."""

    results: dict[str, Future[harness.Result]]
    samples: dict[str, Future[Report]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    place = tmp_path_factory.mktemp("harness")
    caches = harness.REPOSITORY / ".cache" / "containers"  # of the caches, what goes along into the guest
    caches.mkdir(parents=True, exist_ok=True)
    files = {name: caches / f"test_sample_{name}_{os.getpid()}.py" for name in SAMPLES}
    for name, file in files.items():
        file.write_text(SAMPLES[name], "utf-8")

    def boot(name: str) -> harness.Result:
        kernel, script, timeout = SCRIPTS[name]
        return harness.run(kernel, ["sh", "-c", script], out_dir=place / name, timeout=timeout)

    def sample(name: str) -> Report:
        file = str(files[name].relative_to(harness.REPOSITORY))
        return run_pytest("6.12", [file, "-p", "tests.conftest"], place / name)

    try:
        with ThreadPoolExecutor(len(harness.KERNELS)) as pool:
            samples = {name: pool.submit(sample, name) for name in SAMPLES}
            yield Runs({name: pool.submit(boot, name) for name in SCRIPTS}, samples)
    finally:
        for file in files.values():
            file.unlink()


def test_status_output_and_files_come_back(runs: Runs) -> None:
    result = runs.results["status"].result()
    assert (result.returncode, result.problem) == (7, None)
    assert result.output.startswith("on 6.1.")
    assert (result.out_dir / "d" / "f").read_text("utf-8") == "kept\n"


@pytest.mark.parametrize("name", ["panic", "power-off", "runner killed"])
def test_an_end_without_a_status_is_a_failure(runs: Runs, name: str) -> None:
    result = runs.results[name].result()
    assert result.returncode == harness.NO_STATUS
    assert result.problem == "the guest ended without a status"


def test_a_timeout_is_a_failure(runs: Runs) -> None:
    result = runs.results["timeout"].result()
    assert result.returncode == harness.NO_STATUS
    assert result.problem == "no status within 12 s"


def test_a_command_cannot_claim_a_status_it_does_not_have(runs: Runs) -> None:
    assert runs.results["claim"].result().returncode == 1


def test_the_host_tree_is_out_of_reach(runs: Runs) -> None:
    result = runs.results["tree"].result()
    assert (result.returncode, result.output) == (0, "1\n")  # the loopback interface and no other
    assert (harness.REPOSITORY / "README.md").read_bytes()[:6] != b"spoilt"
    assert (harness.REPOSITORY / "hauberk" / "__init__.py").exists()


@pytest.mark.parametrize("name", SAMPLES)
def test_a_guest_lane_without_passed_tests_fails(runs: Runs, name: str) -> None:
    with pytest.raises(AssertionError, match=rf"pytest in the guest ended with {SAMPLE_STATUSES[name]}\n"):
        runs.samples[name].result()


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
