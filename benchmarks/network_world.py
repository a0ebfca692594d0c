# SPDX-License-Identifier: Apache-2.0
"""Network namespaces for the benchmark of network policies: one sender, and one receiver for each ruleset compared.

All receivers exist at the same time, so that rounds can go from one to the next: what else the machine does then costs
all of them the same. There is nothing between sender and receiver but a virtual Ethernet pair, so that a packet is
received within the call that sends it.
"""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from guest_agent.engines.network_port import Namespace

if TYPE_CHECKING:
    from collections.abc import Iterator

TRAFFIC: Final = Path(".cache/benchmarks/network_traffic")
FLOOD_SOURCES: Final = "10.254.0.0"
"""First address of the /16 that a flood comes from."""
_PROCESSOR: Final = str(max(os.sched_getaffinity(0)))
_MEMORY: Final = Path("/sys/fs/cgroup/memory")
_SETTINGS: Final = (
    "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0", "net.ipv6.conf.all.disable_ipv6=1",
    "net.ipv6.conf.default.disable_ipv6=1",
)  # fmt: skip


class WorldError(Exception):
    """Something of the benchmark's surroundings failed; the message says which command and what it said."""


def run(*command: str, text: str | None = None) -> str:
    """Run a command and give what it writes. Raises WorldError."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        message = f"{' '.join(command)[:200]} ended with {done.returncode}: {done.stderr.strip()[:500]}"
        raise WorldError(message)
    return done.stdout


@dataclass(frozen=True)
class Receiver:
    """A namespace that packets are sent to. ``nets`` is the first address of a /16 of which all are its own."""

    name: str
    address: str
    nets: str

    @property
    def path(self) -> str:
        """What opens the namespace."""
        return f"/run/netns/{self.name}"

    @property
    def namespace(self) -> Namespace:
        """The namespace as the engine takes it."""
        return Namespace(Path(self.path).stat().st_ino, self.path)

    def nft(self, file: Path) -> None:
        """Load a file. Raises WorldError."""
        run("ip", "netns", "exec", self.name, "nft", "-f", str(file))


class World:
    """The sender's namespace and the receivers made so far."""

    def __init__(self) -> None:
        """Make the sender's namespace."""
        self._prefix = f"hauberk-{os.getpid()}"
        self._names = [f"{self._prefix}-s"]
        run("ip", "netns", "add", self._names[0])
        self._settle(self._names[0])

    def _settle(self, name: str) -> None:
        run("ip", "-n", name, "link", "set", "lo", "up")
        run("ip", "netns", "exec", name, "sysctl", "-qw", *_SETTINGS)

    def receiver(self) -> Receiver:
        """Make another receiver, where nothing is filtered yet."""
        number = len(self._names)
        sender, name = self._names[0], f"{self._prefix}-{number}"
        run("ip", "netns", "add", name)
        self._names.append(name)
        self._settle(name)
        out, network, nets = f"v{number}", f"10.200.{number}", f"10.{number}.0.0"
        run("ip", "link", "add", out, "netns", sender, "type", "veth", "peer", "name", "v", "netns", name)
        for where, link, address in ((sender, out, f"{network}.1/24"), (name, "v", f"{network}.2/24")):
            run("ip", "-n", where, "address", "add", address, "dev", link)
            run("ip", "-n", where, "link", "set", link, "up")
        run("ip", "-n", sender, "route", "add", f"{nets}/16", "via", f"{network}.2")
        run("ip", "-n", name, "route", "add", "local", f"{nets}/16", "dev", "lo")
        return Receiver(name, f"{network}.2", nets)

    def send(self, *words: object) -> tuple[int, int]:
        """Run :file:`network_traffic.c` in the sender's namespace; give nanoseconds of the clock and the processor."""
        said = run("ip", "netns", "exec", self._names[0], "taskset", "-c", _PROCESSOR, str(TRAFFIC), *map(str, words))
        clock, processor = said.split()
        return int(clock), int(processor)

    def end(self) -> None:
        """Remove every namespace."""
        for name in self._names:
            run("ip", "netns", "delete", name)


@contextmanager
def world() -> Iterator[World]:
    """Make a world and remove it."""
    made = World()
    try:
        yield made
    finally:
        made.end()


class KernelMemory:
    """What the kernel allocates on behalf of this process: a memory cgroup of its own. None where there is no such."""

    def __init__(self) -> None:
        """Move this process there."""
        self._group = _MEMORY / f"hauberk-{os.getpid()}"
        self._usage = self._group / "memory.kmem.usage_in_bytes"
        self._there = (_MEMORY / "memory.kmem.usage_in_bytes").exists() and os.geteuid() == 0
        if self._there:
            self._group.mkdir()
            (self._group / "cgroup.procs").write_text("0")

    def bytes(self) -> int | None:
        """Tell how much it is now."""
        return int(self._usage.read_text()) if self._there else None

    def end(self) -> None:
        """Move the process back and remove the cgroup."""
        if self._there:
            (_MEMORY / "cgroup.procs").write_text("0")
            self._group.rmdir()
