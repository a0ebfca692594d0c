# SPDX-License-Identifier: Apache-2.0
"""Runs pytest inside a guest and believes it only if its report says that tests ran and all of them passed."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from tests.vm.harness.machine import REPOSITORY, report, run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


LONG_TIMEOUT = 7200.0
"""Seconds for one boot with the tests marked ``long``."""

_PRINTING = threading.Lock()
_ALL_LONG = "\npytestmark = pytest.mark.long\n"


@dataclass(frozen=True)
class GuestFile:
    """A file of guest-side tests: its path in the repository, what boots it, whether it has quick and long tests."""

    path: str
    systemd: bool
    has_short: bool
    has_long: bool

    def __str__(self) -> str:
        """Give the name used in test ids."""
        return self.path.removeprefix("tests/vm/guest/")


def run_pytest(  # noqa: PLR0913 - what differs between boots
    kernel: str,
    paths: Sequence[str],
    out_dir: Path,
    *,
    systemd: bool = False,
    only_long: bool = False,
    memory: str = "2G",
    timeout: float = 1800.0,
) -> int:
    """Run the guest-side tests at ``paths`` (relative to the repository) in one boot; give the number that passed.

    Raises AssertionError unless the guest's pytest ended with 0, at least one test passed and none was skipped, failed
    or in error. The output goes to stdout, where pytest shows it if the test fails.
    """
    command = ["python", "-m", "pytest", *paths, "-m", "long" if only_long else "not long"]
    command += ["-o", "junit_family=xunit2", "--junit-xml=/run/hauberk-vm/out/report.xml"]
    result = run(kernel, command, systemd=systemd, memory=memory, timeout=timeout, out_dir=out_dir)
    with _PRINTING:  # a guest at a time, though several run
        sys.stdout.write(f"{result.output}\n")
        report(result)
    place = f"{' '.join(paths)} on Linux {kernel}"
    if result.returncode != 0:
        message = f"{place}: pytest in the guest ended with {result.returncode}" + (
            f" ({result.problem})" if result.problem else ""
        )
        raise AssertionError(message)
    suites = ET.parse(out_dir / "report.xml").getroot()  # noqa: S314 - written by our own pytest in our own guest
    counts = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    for suite in suites.iter("testsuite"):
        for key in counts:
            counts[key] += int(suite.get(key, "0"))
    if counts["tests"] == 0 or counts["failures"] or counts["errors"] or counts["skipped"]:
        message = f"{place}: expected only passed tests, and some; found {counts}"
        raise AssertionError(message)
    return counts["tests"]


def run_on_all(  # noqa: PLR0913 - as above
    kernels: Sequence[str],
    file: GuestFile,
    out_dir: Path,
    *,
    only_long: bool = False,
    memory: str = "2G",
    timeout: float = 1800.0,
) -> dict[str, int]:
    """Run one file on all kernels side by side; give how many tests passed on each. Raises like :func:`run_pytest`.

    An emulated guest keeps one processor of the host busy, so two at once take little longer than one.
    """

    def one(kernel: str) -> int:
        place = out_dir / kernel
        place.mkdir()
        return run_pytest(
            kernel, [file.path], place, systemd=file.systemd, only_long=only_long, memory=memory, timeout=timeout
        )

    with ThreadPoolExecutor(len(kernels)) as pool:
        running = {kernel: pool.submit(one, kernel) for kernel in kernels}
    problems = [str(future.exception()) for future in running.values() if future.exception() is not None]
    if problems:
        raise AssertionError("; ".join(problems))
    return {kernel: future.result() for kernel, future in running.items()}


def guest_files() -> list[GuestFile]:
    """Give every file of guest-side tests. Those below ``guest/systemd`` want systemd as the first process."""
    files = []
    for path in sorted((REPOSITORY / "tests" / "vm" / "guest").rglob("test_*.py")):
        text = path.read_text("utf-8")
        files.append(
            GuestFile(
                str(path.relative_to(REPOSITORY)),
                systemd="systemd" in path.parts,
                has_short=_ALL_LONG not in text,
                has_long="pytest.mark.long" in text,
            )
        )
    return files
