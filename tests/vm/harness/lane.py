# SPDX-License-Identifier: Apache-2.0
"""Runs pytest inside a guest and believes it only if its report says that tests ran and all of them passed."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from tests.vm.harness.machine import REPOSITORY, report, run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


LONG_TIMEOUT = 7200.0
"""Seconds for one boot with the tests marked ``long``."""

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
    timeout: float = 1200.0,
) -> int:
    """Run the guest-side tests at ``paths`` (relative to the repository) in one boot; give the number that passed.

    Raises AssertionError unless the guest's pytest ended with 0, at least one test passed and none was skipped, failed
    or in error. The output goes to stdout, where pytest shows it if the test fails.
    """
    command = ["python", "-m", "pytest", *paths, "-m", "long" if only_long else "not long"]
    command += ["-o", "junit_family=xunit2", "--junit-xml=/run/hauberk-vm/out/report.xml"]
    result = run(kernel, command, systemd=systemd, memory=memory, timeout=timeout, out_dir=out_dir, echo=_echo)
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


def _echo(chunk: bytes) -> None:
    sys.stdout.write(chunk.decode("utf-8", "replace"))
    sys.stdout.flush()
