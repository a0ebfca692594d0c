# SPDX-License-Identifier: Apache-2.0
"""A thin wrapper around a real OCI runtime's command line (runc or crun).

It adds no cleverness: each method is one command, the answer says what was run and what came of it, and nothing is
retried. The container's own output goes to files in the bundle, because a detached container would hold our pipes
open for ever.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.vm.containers.bundle import Bundle

DEFAULT_LIMIT = 120.0
"""Seconds after which a runtime that does not answer is an error: generous, since emulation is slow."""


class RuntimeCommandError(Exception):
    """A command that had to work did not; the message holds the command, its status and its output."""


@dataclass(frozen=True)
class Completed:
    """What became of one command."""

    command: tuple[str, ...]
    status: int
    output: str
    errors: str

    def check(self) -> Completed:
        """Return self, or raise RuntimeCommandError if the status is not 0."""
        if self.status != 0:
            told = f"output {self.output[-2000:]!r}, errors {self.errors[-2000:]!r}"
            message = f"{' '.join(self.command)}: status {self.status}, {told}"
            raise RuntimeCommandError(message)
        return self


@dataclass(frozen=True)
class Runtime:
    """A runtime with a state directory of its own."""

    root: Path
    executable: str = "runc"
    options: tuple[str, ...] = ()
    limit: float = DEFAULT_LIMIT

    def command(self, *arguments: str, data: bytes | None = None) -> Completed:
        """Run one command of the runtime, feeding `data` to it."""
        line = (self.executable, *self.options, "--root", str(self.root), *arguments)
        source: dict[str, Any] = {"input": data} if data is not None else {"stdin": subprocess.DEVNULL}
        result = subprocess.run(line, check=False, capture_output=True, timeout=self.limit, **source)
        return Completed(
            line,
            result.returncode,
            result.stdout.decode(errors="surrogateescape"),
            result.stderr.decode(errors="surrogateescape"),
        )

    def _detached(self, bundle: Bundle, *arguments: str) -> Completed:
        line = (self.executable, *self.options, "--root", str(self.root), *arguments)
        output, errors = bundle.directory / "container.stdout", bundle.directory / "container.stderr"
        with output.open("ab") as out, errors.open("ab") as err:
            result = subprocess.run(
                line, check=False, stdin=subprocess.DEVNULL, stdout=out, stderr=err, timeout=self.limit
            )
        return Completed(
            line,
            result.returncode,
            output.read_text(errors="surrogateescape"),
            errors.read_text(errors="surrogateescape"),
        )

    def create(self, name: str, bundle: Bundle) -> Completed:
        """Create a container: hooks run, the program does not yet."""
        return self._detached(
            bundle, "create", "--bundle", str(bundle.directory), "--pid-file", str(bundle.directory / "pid"), name
        )

    def run(self, name: str, bundle: Bundle) -> Completed:
        """Create and start a container, detached."""
        return self._detached(
            bundle,
            "run",
            "--detach",
            "--bundle",
            str(bundle.directory),
            "--pid-file",
            str(bundle.directory / "pid"),
            name,
        )

    def start(self, name: str) -> Completed:
        """Let the created container run its program."""
        return self.command("start", name)

    def execute(  # noqa: PLR0913 - the parts of an exec
        self,
        name: str,
        bundle: Bundle,
        arguments: Sequence[str],
        *,
        user: int = 0,
        environment: Sequence[str] = (),
        data: bytes | None = None,
    ) -> Completed:
        """Run a program in the container and wait for it. The user's capabilities are what an engine would give."""
        process = bundle.process_file(arguments, user, environment=environment)
        try:
            return self.command("exec", "--process", str(process), name, data=data)
        finally:
            process.unlink()

    def state(self, name: str) -> dict[str, Any] | None:
        """Tell the container's state, or None if the runtime knows no such container."""
        result = self.command("state", name)
        if result.status != 0:
            return None
        document = json.loads(result.output)
        if not isinstance(document, dict):
            message = f"{' '.join(result.command)}: expected an object, found {result.output[:200]!r}"
            raise RuntimeCommandError(message)
        return document

    def kill(self, name: str, signal: str = "KILL") -> Completed:
        """Send a signal to the container's init."""
        return self.command("kill", name, signal)

    def delete(self, name: str, *, force: bool = True) -> Completed:
        """Remove the container; its poststop hooks run."""
        return self.command("delete", *(["--force"] if force else []), name)

    def wait_stopped(self, name: str) -> None:
        """Wait until the container's init is gone. Raises RuntimeCommandError after the limit."""
        end = time.monotonic() + self.limit
        while (state := self.state(name)) is not None and state.get("status") != "stopped":
            if time.monotonic() > end:
                message = f"container {name} is still {state.get('status')!r} after {self.limit} s"
                raise RuntimeCommandError(message)
            time.sleep(0.02)

    @contextlib.contextmanager
    def container(self, name: str, bundle: Bundle) -> Iterator[int]:
        """Create and start a container, give the pid of its init.

        Remove container and bundle at the end whatever happens.
        """
        try:
            self.create(name, bundle).check()
            pid = int((bundle.directory / "pid").read_text())
            self.start(name).check()
            yield pid
        finally:
            self.delete(name)
            bundle.remove()
