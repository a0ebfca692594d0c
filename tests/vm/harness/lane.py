# SPDX-License-Identifier: Apache-2.0
"""Runs pytest inside a guest and believes it only if its report says that tests ran and all of them passed.

An emulated guest keeps one processor busy, so as many run at once as there are kernels. They take their work from one
queue: what is done with a boot begins the next one, of whichever kernel.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple
from xml.etree import ElementTree as ET

from tests.vm.harness.machine import REPOSITORY, explain, run

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


class Report(NamedTuple):
    """What a successful boot says: how many tests passed, and how many seconds QEMU ran."""

    passed: int
    seconds: float


def run_pytest(  # noqa: PLR0913 - what differs between boots
    kernel: str,
    paths: Sequence[str],
    out_dir: Path,
    *,
    systemd: bool = False,
    only_long: bool = False,
    memory: str = "2G",
    timeout: float = 1800.0,
) -> Report:
    """Run the guest-side tests at ``paths`` (relative to the repository) in one boot.

    Raises AssertionError unless the guest's pytest ended with 0, at least one test passed and none was skipped, failed
    or in error. Its message ends with what the guest printed.
    """
    command = ["python", "-m", "pytest", *paths, "-m", "long" if only_long else "not long"]
    command += ["-o", "junit_family=xunit2", "--junit-xml=/run/hauberk-vm/out/report.xml"]
    result = run(kernel, command, systemd=systemd, memory=memory, timeout=timeout, out_dir=out_dir)
    place = f"{' '.join(paths)} on Linux {kernel}"
    if result.returncode != 0:
        message = f"{place}: pytest in the guest ended with {result.returncode}" + (
            f" ({result.problem})" if result.problem else ""
        )
        message += f"\n{result.output}\n{explain(result)}"
        raise AssertionError(message)
    suites = ET.parse(out_dir / "report.xml").getroot()  # noqa: S314 - written by our own pytest in our own guest
    counts = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    for suite in suites.iter("testsuite"):
        for key in counts:
            counts[key] += int(suite.get(key, "0"))
    if counts["tests"] == 0 or counts["failures"] or counts["errors"] or counts["skipped"]:
        message = f"{place}: expected only passed tests, and some; found {counts}\n{result.output}"
        raise AssertionError(message)
    return Report(counts["tests"], result.seconds)


class Guests:
    """Boots of files on kernels, begun in the order in which they are asked for."""

    def __init__(self, kernels: Sequence[str], place: Path) -> None:
        """Prepare; files that guests leave go below ``place``."""
        self._kernels, self._place = tuple(kernels), place
        self._pool = ThreadPoolExecutor(len(self._kernels))
        self._running: dict[GuestFile, dict[str, Future[Report]]] = {}

    def begin(self, file: GuestFile, *, only_long: bool = False, memory: str = "2G", timeout: float = 1800.0) -> None:
        """Queue a file for every kernel."""

        def one(kernel: str) -> Report:
            place = self._place / f"{str(file).replace('/', '-')}-{kernel}"
            return run_pytest(
                kernel, [file.path], place, systemd=file.systemd, only_long=only_long, memory=memory, timeout=timeout
            )

        self._running[file] = {kernel: self._pool.submit(one, kernel) for kernel in self._kernels}

    def passed(self, file: GuestFile) -> dict[str, Report]:
        """Wait for a file's boots; give the report of each kernel. Raises AssertionError for what failed."""
        running = self._running[file]
        errors = [error for future in running.values() if (error := future.exception()) is not None]
        problems = [str(error) if isinstance(error, AssertionError) else repr(error) for error in errors]
        if problems:
            raise AssertionError("\n".join(problems))
        return {kernel: future.result() for kernel, future in running.items()}

    def seconds(self) -> str:
        """Tell what each file that passed cost."""
        done = {
            file: [f"{future.result().seconds:.0f}" for future in running.values() if succeeded(future)]
            for file, running in self._running.items()
        }
        return ", ".join(f"{file} {'/'.join(seconds)}" for file, seconds in done.items())

    def end(self) -> None:
        """Begin nothing more, and wait for what has begun."""
        self._pool.shutdown(cancel_futures=True)


def succeeded(future: Future[Report]) -> bool:
    """Tell whether a boot has come to its good end."""
    return future.done() and not future.cancelled() and future.exception() is None


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
