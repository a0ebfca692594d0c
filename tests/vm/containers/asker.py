# SPDX-License-Identifier: Apache-2.0
"""A task in a container that answers questions through a pipe as long as it lives: the same task before and after."""

from __future__ import annotations

import errno
import subprocess
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tests.vm.containers.bundle import Bundle
    from tests.vm.containers.runtime import Runtime

DENIED: Final = str(errno.EACCES)


class Asker:
    """A prober in a container that answers as long as it lives."""

    def __init__(self, runtime: Runtime, name: str, bundle: Bundle, program: str) -> None:
        """Execute it in the container, now."""
        self.process_file = bundle.process_file((program, "-f"), 0)
        self.process = subprocess.Popen(
            [runtime.executable, "--root", str(runtime.root), "exec", "--process", str(self.process_file), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.ask("/etc") in {"0", DENIED}, program

    def ask(self, path: str, operation: str = "open-read") -> str:
        """Give the errno it gets."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{operation}\t{path}\n".encode())
        self.process.stdin.flush()
        return self.process.stdout.readline().decode().strip()

    def answers(self, *paths: str) -> list[bool]:
        """Tell of each path whether it may be read."""
        answers = [self.ask(path) for path in paths]
        assert set(answers) <= {"0", DENIED}, answers
        return [answer == "0" for answer in answers]

    def close(self) -> None:
        """Let it end."""
        self.process.communicate()
        self.process_file.unlink()
