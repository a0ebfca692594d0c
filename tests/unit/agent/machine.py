# SPDX-License-Identifier: Apache-2.0
"""A machine made of files: a ``/proc`` and a cgroup tree with containers in them, and processes that end on command."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from guest_agent.workloads.verification import Machine

if TYPE_CHECKING:
    from pathlib import Path

AGENT_NAMESPACE = 4026531840
AGENT_NETWORK = 4026531992
FIB_TRIE = """Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 127.0.0.0
        /8 link UNIVERSE
Local:
  +-- 0.0.0.0/0 3 0 5
     |-- 127.0.0.1
        /32 host LOCAL
     |-- {address}
        /32 host LOCAL
     |-- 192.0.2.255
        /32 link BROADCAST
"""
RUNTIME = b"\x7fELF a container runtime" * 100


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the agent runs any more, not even its undoing."""


@dataclass
class Container:
    """One parked container: its init, its cgroup directory and its bundle."""

    id: str
    pid: int
    start_time: int
    cgroup: Path
    bundle: Path

    def state(self, **changes: object) -> bytes:
        """Give the OCI state a runtime would send."""
        members: dict[str, object] = {
            "ociVersion": "1.0.2",
            "id": self.id,
            "status": "creating",
            "pid": self.pid,
            "bundle": str(self.bundle),
        }
        return json.dumps({**members, **changes}).encode()


@dataclass
class FakeMachine:
    """The files, and what they stand for."""

    root: Path
    ends: dict[int, int] = field(default_factory=dict)  # pid -> write end whose byte says that it has ended
    pidfds: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make the agent, PID 1 and the runtime."""
        self.proc, self.cgroups = self.root / "proc", self.root / "cgroup"
        self.runtime = self.root / "runc"
        self.runtime.write_bytes(RUNTIME)
        for name in ("self", "1"):
            self.process(name, namespace=AGENT_NAMESPACE, cgroup="/system.slice/hauberk-agent.service")

    @property
    def machine(self) -> Machine:
        """What the code under test is given."""
        return Machine(self.proc, self.cgroups, self.open_pidfd)

    def open_pidfd(self, pid: int) -> int:
        """Stand in for pidfd_open: a pipe that becomes readable when the process ends."""
        if pid not in self.pidfds:
            raise OSError(errno.ESRCH, "No such process")
        return os.dup(self.pidfds[pid])

    def process(  # noqa: PLR0913 - what a process is
        self,
        name: str,
        *,
        namespace: int,
        cgroup: str,
        exe: Path | None = None,
        start_time: int = 7,
        network: int = AGENT_NETWORK,
    ) -> Path:
        """Write the files of one process."""
        directory = self.proc / name
        (directory / "ns").mkdir(parents=True)
        (directory / "ns" / "mnt").symlink_to(f"mnt:[{namespace}]")
        (directory / "ns" / "net").symlink_to(f"net:[{network}]")
        (directory / "cgroup").write_text(f"8:pids:/\n0::{cgroup}\n")
        (directory / "exe").symlink_to(exe or self.runtime)
        (directory / "root").symlink_to("/")
        (directory / "status").write_text("Name:\trunc\nUid:\t0\t0\t0\t0\n")
        (directory / "mountinfo").write_text("22 1 8:1 / / rw - ext4 /dev/vda rw\n")
        (directory / "net").mkdir()
        (directory / "net" / "fib_trie").write_text(FIB_TRIE.format(address="192.0.2.1"))
        (directory / "net" / "if_inet6").write_text("00000000000000000000000000000001 01 80 10 80       lo\n")
        self.write_stat(name, start_time)
        return directory

    def write_stat(self, name: str, start_time: int, state: str = "S") -> None:
        """Write ``stat`` of a process whose command is as hostile as it may be."""
        before = " ".join("0" for _ in range(18))
        (self.proc / name / "stat").write_text(f"{name} (a) b (c) {state} {before} {start_time} 0 0\n")

    def container(
        self,
        name: str = "c1",
        pid: int = 100,
        annotations: dict[str, str] | None = None,
        start_time: int = 50,
        network: int | None = None,
    ) -> Container:
        """Make a container as it is when createRuntime hooks run, by default in a network namespace of its own."""
        path = f"/machine.slice/{name}"
        network = 4026533000 + pid if network is None else network
        directory = self.process(
            str(pid), namespace=4026532000 + pid, cgroup=path, start_time=start_time, network=network
        )
        if network != AGENT_NETWORK:
            address = FIB_TRIE.format(address=f"10.0.{network % 250}.2")
            (directory / "net" / "fib_trie").write_text(address)
        read, self.ends[pid] = os.pipe()
        self.pidfds[pid] = read
        cgroup = self.cgroups / path.lstrip("/")
        cgroup.mkdir(parents=True)
        (cgroup / "cgroup.procs").write_text(f"{pid}\n")
        self.populate(cgroup, populated=True)
        bundle = self.root / "bundles" / name
        for below in ("usr/bin", "secret", "tmp"):
            (bundle / "rootfs" / below).mkdir(parents=True)
        (bundle / "rootfs" / "bin").symlink_to("usr/bin")
        (bundle / "rootfs" / "usr" / "bin" / "dash").write_bytes(b"dash")
        (bundle / "rootfs" / "usr" / "bin" / "sh").symlink_to("dash")
        (bundle / "rootfs" / "secret" / "key").write_bytes(b"key")
        config = {"ociVersion": "1.0.2", "root": {"path": "rootfs"}, "annotations": annotations or {}}
        (bundle / "config.json").write_text(json.dumps(config))
        bundle.chmod(0o755)
        (bundle / "config.json").chmod(0o644)
        (directory / "mountinfo").write_text(
            f"22 1 8:1 / / rw - ext4 /dev/vda rw\n40 22 0:50 / {bundle}/rootfs rw - overlay overlay rw\n"
        )
        return Container(name, pid, start_time, cgroup, bundle)

    def start(self, container: Container) -> None:
        """Let the init run its program in the container's root, as after pivot_root and exec."""
        directory = self.proc / str(container.pid)
        program = self.root / f"program-{container.id}"
        program.write_bytes(b"a program")
        for name, target in (("exe", program), ("root", container.bundle / "rootfs")):
            (directory / name).unlink()
            (directory / name).symlink_to(target)
        (directory / "mountinfo").write_text("40 22 0:50 / / rw - overlay overlay rw\n")

    @staticmethod
    def populate(cgroup: Path, *, populated: bool) -> None:
        """Say in cgroup.events whether anybody is left."""
        (cgroup / "cgroup.events").write_text(f"populated {int(populated)}\nfrozen 0\n")

    def end_init(self, container: Container) -> None:
        """Let the init end: its pidfd becomes readable, and it is a zombie."""
        os.write(self.ends[container.pid], b"x")
        self.write_stat(str(container.pid), container.start_time, "Z")

    def end(self, container: Container) -> None:
        """Let a container end altogether."""
        self.end_init(container)
        self.populate(container.cgroup, populated=False)

    def close(self) -> None:
        """Close the pipes."""
        for descriptor in (*self.ends.values(), *self.pidfds.values()):
            os.close(descriptor)
