# SPDX-License-Identifier: Apache-2.0
"""A container under the engine, and probers put into it.

runc makes the container; then, for each case, the engine lets go of it and takes it with the case's table under a new
workload id. The probers do not come from ``runc exec`` but enter the container's mount namespace and cgroup themselves:
what arms a task is its first exec there, whoever made it, so each prober is armed for the case at hand, thousands of
times faster than a container a case. The container's own first process was never armed: it started before.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from guest_agent.engines.bpf_lsm.engine import BpfLsmEngine
from guest_agent.engines.port import EnforcedWorkload, GateSettings
from tests.vm.containers import bundle, runtime
from tests.vm.differential import universe

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from guest_agent.engines.port import KernelEvent
    from tests.vm.differential.generator import Question
    from tests.vm.differential.oracle import Oracle

PROGRAM: Final = Path(".cache/containers/prober")
_NEW_MOUNT_NAMESPACE: Final = 0x20000  # CLONE_NEWNS of <sched.h>
_LIMIT: Final = 300.0
_LIBRARY: Final = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Batch:
    """What one prober said and what the engine told of it."""

    answers: tuple[str, ...]
    events: tuple[KernelEvent, ...]


def line(question: Question) -> bytes:
    """Write a question as the prober reads it."""

    def escaped(path: bytes) -> bytes:
        return b"".join(b"\\x%02x" % byte if byte in b"\\\t\n" else bytes((byte,)) for byte in path)

    other = b"\t" + escaped(question.other) if question.other else b""
    return question.operation.encode() + b"\t" + escaped(question.path) + other + b"\n"


class Laboratory:
    """One engine and one container; a context manager. ``renew`` makes another container."""

    def __init__(self, directory: Path) -> None:
        """Build the root file system and load the engine, not sealed: nothing here is about the gate."""
        self._directory = directory
        subprocess.run(["/bin/mount", "-t", "tmpfs", "-o", "size=256m", "hauberk-test", str(directory)], check=True)
        (directory / "policies").mkdir()
        self._lower = directory / "lower"
        self._lower.mkdir(mode=0o755)
        os.umask(0o022)
        self.fill(self._lower)
        # the container's own program: outside of the tree that questions are about, and out of repair's way
        for name in ("dev", "proc", "sys", "keep"):
            (self._lower / name).mkdir(exist_ok=True)
        keeper = self._lower / "keep/busybox"
        keeper.write_bytes(Path("/bin/busybox").read_bytes())
        keeper.chmod(0o755)
        self.engine = BpfLsmEngine()
        self.engine.seal("ab" * 32, GateSettings("host", ("/usr/sbin/runc",), (), (), ("/",), os.getpid()))
        self._runtime = runtime.Runtime(directory / "runc", "runc")
        self._containers = 0
        self._workloads = 0
        self._bundle: bundle.Bundle | None = None
        self._pid = 0

    def __enter__(self) -> Self:
        """Make the first container."""
        self.renew()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove everything."""
        self._discard()
        self.engine.close()
        subprocess.run(["/bin/umount", "--lazy", str(self._directory)], check=True)

    def fill(self, lower: Path) -> None:
        """Make the root file system that containers stand on, but for the container's own program."""
        universe.repair(os.fsencode(lower), program=PROGRAM)

    @property
    def policies(self) -> str:
        """A directory for policy files."""
        return str(self._directory / "policies")

    @property
    def root(self) -> str:
        """The container's root file system, as the agent sees it."""
        return f"/proc/{self._pid}/root"

    def renew(self) -> None:
        """Make a new container: an overlay whose upper layer is empty, and a new volume."""
        self._discard()
        self._containers += 1
        volume = self._directory / f"volume-{self._containers}"
        volume.mkdir(mode=0o755)
        options = bundle.Options(
            arguments=("/keep/busybox", "sleep", "1000000"), volumes=(bundle.Volume(volume, universe.VOLUME),)
        )
        self._bundle = bundle.write(self._directory / f"bundle-{self._containers}", self._lower, options)
        name = f"differential-{self._containers}"
        self._runtime.run(name, self._bundle).check()
        self._pid = int((self._bundle.directory / "pid").read_text("utf-8"))
        control = Path(f"/proc/{self._pid}/cgroup").read_text("utf-8").strip().split("::")[1]
        self._cgroup = Path("/sys/fs/cgroup") / control.lstrip("/")
        self._mounts = os.open(f"/proc/{self._pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        self._entrance = os.open(self._cgroup / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)

    def _discard(self) -> None:
        if self._bundle is None:
            return
        self.release()
        os.close(self._mounts)
        os.close(self._entrance)
        self._runtime.delete(f"differential-{self._containers}").check()
        self._bundle.remove()
        self._bundle = None

    def repair(self) -> None:
        """Put the container's files right."""
        universe.repair(os.fsencode(self.root))

    def register(self, oracle: Oracle) -> None:
        """Put the oracle's policies in force."""
        self.enforce(oracle.table.blob, oracle.digest)

    def enforce(self, table: bytes, digest: str) -> None:
        """Put a table in force."""
        self._workloads += 1
        workload = EnforcedWorkload(
            self._workloads,
            f"differential-{self._containers}",
            self._cgroup.stat().st_ino,
            os.fstat(self._mounts).st_ino,
            table,
            digest,
        )
        self.engine.register(workload)

    def release(self) -> None:
        """Let go of the policies in force."""
        self.engine.release(self._workloads)

    def _enter(self) -> None:
        """Become part of the container; runs between fork and exec."""
        if _LIBRARY.setns(self._mounts, _NEW_MOUNT_NAMESPACE) != 0:
            raise OSError(ctypes.get_errno(), "setns")
        os.write(self._entrance, b"0")

    def ask(self, source: str, user: int, questions: Sequence[Question]) -> Batch | None:
        """Let the prober at ``source`` ask as ``user``. None: the kernel would not start it."""
        list(self.engine.drain())
        lost = self.engine.statistics()["events_lost"]
        command = [source, *(["-u", str(user), "-g", str(user)] if user else [])]
        try:
            done = subprocess.run(
                command,
                input=b"".join(line(question) for question in questions),
                capture_output=True,
                check=False,
                timeout=_LIMIT,
                preexec_fn=self._enter,
                env={},
            )
        except PermissionError:
            return None
        answers = tuple(done.stdout.decode("ascii").splitlines())
        assert done.returncode == 0, f"{command} ended with {done.returncode}: {done.stderr!r}"
        assert len(answers) == len(questions), f"{len(answers)} answers to {len(questions)} questions of {command}"
        events = tuple(self.engine.drain())
        assert self.engine.statistics()["events_lost"] == lost
        return Batch(answers, tuple(event for event in events if event.source == source))
