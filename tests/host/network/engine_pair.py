# SPDX-License-Identifier: Apache-2.0
"""Two network namespaces with a virtual Ethernet pair between them, and packets from one to the other.

``here`` is where rules are held, ``there`` its peer. A socket belongs to the namespace it was made in, so most of what
is sent is sent by this process; only what has to be in a cgroup takes one of its own. What is to get through is waited
for until it does; what is not, for a moment.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from guest_agent.engines.network_port import Desired, Endpoint, Namespace, Settings, Whole
from guest_agent.engines.nftables.namespace import run_inside
from hauberk.policy.rules import Action, ObjectKind, Origin, PeerMatch, Rule, RuleSet, Section, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from guest_agent.engines.network_port import Attachment, NameAnswer, NetworkEngine, NetworkEvent
    from hauberk.policy.rules import PeerGroup

LONG: Final = 20.0
SHORT: Final = 0.4
HERE: Final = {4: "10.9.0.1", 6: "fd09::1"}
THERE: Final = {4: "10.9.0.2", 6: "fd09::2"}
SECOND: Final = {4: "10.9.0.3", 6: "fd09::3"}
"""Another address of the peer."""
EGRESS: Final = Section.EGRESS
INGRESS: Final = Section.INGRESS
_FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}


def run(*command: str, given: str = "") -> str:
    """Run a program that is expected to succeed."""
    done = subprocess.run(command, input=given, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}{done.stdout}"
    return done.stdout


class Place:
    """A network namespace, held by a process that does nothing."""

    def __init__(self) -> None:
        """Make it."""
        self._holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "ip link set lo up && echo ready && exec sleep infinity"],
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"ready\n"
        self.path = f"/proc/{self._holder.pid}/ns/net"
        self.namespace = Namespace(os.stat(self.path).st_ino, self.path)  # noqa: PTH116 - follows a link of /proc
        self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)

    @property
    def pid(self) -> int:
        """The process that holds it."""
        return self._holder.pid

    def end_process(self) -> None:
        """End what holds the namespace."""
        self._holder.kill()
        self._holder.wait()

    def close(self) -> None:
        """Let go of it."""
        self.end_process()
        assert self._holder.stdout is not None
        self._holder.stdout.close()
        os.close(self._descriptor)

    def run(self, *command: str, given: str = "") -> str:
        """Run a program inside."""
        return run("nsenter", f"--net={self.path}", *command, given=given)

    def nft(self, text: str) -> str:
        """Run commands of nft inside."""
        return self.run("nft", "-f", "-", given=text)

    def listing(self, table: str = "inet hauberk", *, program: str | None = None) -> str:
        """List a table as nft does; 1.0.6 cannot list all that later ones wrote."""
        return self.run(program or "nft", "list", "table", *table.split())

    def socket(self, kind: int, family: int = 4, protocol: int = 0) -> socket.socket:
        """Make a socket inside."""
        made = run_inside(self._descriptor, lambda: socket.socket(_FAMILIES[family], kind, protocol))
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return made


class Pair:
    """Two places and what is between them; a context manager."""

    def __enter__(self) -> Self:
        """Make both and join them."""
        self._stack = contextlib.ExitStack()
        with self._stack:
            self.here, self.there = Place(), Place()
            self._stack.callback(self.here.close)
            self._stack.callback(self.there.close)
            run("nsenter", f"--net={self.here.path}", "ip", "link", "add", "eth0", "type", "veth", "peer", "name",
                "eth0", "netns", str(self.there.pid))  # fmt: skip
            for place, addresses in ((self.here, [HERE]), (self.there, [THERE, SECOND])):
                lines = ["link set eth0 up"]
                lines += [f"addr add {both[4]}/24 dev eth0" for both in addresses]
                lines += [f"addr add {both[6]}/64 dev eth0 nodad" for both in addresses]
                place.run("ip", "-batch", "-", given="\n".join(lines) + "\n")
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """End both."""
        self._stack.close()

    # ---- packets -------------------------------------------------------------------------------------------------

    def tcp_out(self, port: int, family: int = 4, *, to: Mapping[int, str] = THERE) -> Flow:
        """Connect from here to there, which is expected to be possible."""
        return self._connected(self._tcp(self.here, self.there, to[family], port, family, LONG))

    def tcp_in(self, port: int, family: int = 4) -> Flow:
        """Connect from there to here, which is expected to be possible."""
        return self._connected(self._tcp(self.there, self.here, HERE[family], port, family, LONG))

    def no_tcp_out(self, port: int, family: int = 4, *, to: Mapping[int, str] = THERE) -> bool:
        """Tell that connecting from here to there is not possible."""
        return self._tcp(self.here, self.there, to[family], port, family, SHORT) is None

    def no_tcp_in(self, port: int, family: int = 4) -> bool:
        """Tell that connecting from there to here is not possible."""
        return self._tcp(self.there, self.here, HERE[family], port, family, SHORT) is None

    @staticmethod
    def _connected(flow: Flow | None) -> Flow:
        assert flow is not None, "no connection"
        return flow

    def _tcp(  # noqa: PLR0913, PLR0917 - who, to whom, and how long
        self, source: Place, target: Place, address: str, port: int, family: int, patience: float
    ) -> Flow | None:
        with target.socket(socket.SOCK_STREAM, family) as listener:
            listener.bind((address, port))
            listener.listen()
            client = self._stack.enter_context(source.socket(socket.SOCK_STREAM, family))
            client.settimeout(patience)
            try:
                client.connect((address, port))
            except TimeoutError:
                return None
            listener.settimeout(LONG)
            server = self._stack.enter_context(listener.accept()[0])
        return Flow(client, server)

    def udp_out(self, port: int, family: int = 4, *, to: Mapping[int, str] = THERE, expected: bool = True) -> bool:
        """Send a datagram from here to there; tell whether it arrived."""
        return self._udp(self.here, self.there, to[family], port, family, expected=expected)

    def udp_in(self, port: int, family: int = 4, *, expected: bool = True) -> bool:
        """Send a datagram from there to here; tell whether it arrived."""
        return self._udp(self.there, self.here, HERE[family], port, family, expected=expected)

    @staticmethod
    def _udp(source: Place, target: Place, address: str, port: int, family: int, *, expected: bool) -> bool:  # noqa: PLR0913
        with target.socket(socket.SOCK_DGRAM, family) as there, source.socket(socket.SOCK_DGRAM, family) as here:
            there.bind((address, port))
            try:
                here.sendto(b"x", (address, port))
            except PermissionError:
                return False
            there.settimeout(LONG if expected else SHORT)
            try:
                return there.recv(10) == b"x"
            except TimeoutError:
                return False

    def ping(self, family: int = 4, *, inward: bool = False, expected: bool = True) -> bool:
        """Ask for an echo; tell whether it came."""
        source = self.there if inward else self.here
        address = (HERE if inward else THERE)[family]
        protocol, request, reply = (socket.IPPROTO_ICMP, 8, 0) if family == 4 else (socket.IPPROTO_ICMPV6, 128, 129)
        with source.socket(socket.SOCK_RAW, family, protocol) as raw:
            raw.settimeout(LONG if expected else SHORT)
            data = struct.pack(">BBHHH", request, 0, 0, 4711, 1)
            if family == 4:
                data = data[:2] + struct.pack(">H", 0xFFFF - sum(struct.unpack(">4H", data)) % 0xFFFF) + data[4:]
            try:
                raw.sendto(data, (address, 0))
                while True:
                    got = raw.recv(2000)
                    if got[20 if family == 4 else 0] == reply:
                        return True
            except (TimeoutError, PermissionError):
                return False


@dataclass
class Flow:
    """An established connection."""

    client: socket.socket
    server: socket.socket

    def lives(self) -> bool:
        """Tell whether something sent from either end still arrives at the other."""
        return self._passes(self.client, self.server) or self._passes(self.server, self.client)

    def reaches_the_server(self) -> bool:
        """Tell whether something that the client sends arrives."""
        return self._passes(self.client, self.server)

    @staticmethod
    def _passes(one: socket.socket, other: socket.socket) -> bool:
        other.settimeout(SHORT)
        try:
            one.send(b"more")
            return bool(other.recv(100))
        except OSError:
            return False

    def works(self) -> bool:
        """Tell whether both directions still get through."""
        for one, other in ((self.client, self.server), (self.server, self.client)):
            other.settimeout(LONG)
            one.send(b"more")
            if not other.recv(100):
                return False
        return True


# ---- rules -----------------------------------------------------------------------------------------------------------


def rule(  # noqa: PLR0913 - the parts of a rule
    section: Section,
    action: Action,
    *cidrs: str,
    ports: Iterable[tuple[int, int, str]] = (),
    policy: str = "p",
    exceptions: tuple[str, ...] = (),
    interfaces: tuple[str, ...] = (),
    icmp: tuple[tuple[int, int | None], ...] = (),
    groups: tuple[PeerGroup, ...] = (),
    quota: tuple[int, int, str] | None = None,
) -> Rule:
    """Make a rule about packets."""
    match = PeerMatch(cidrs, interfaces, tuple(ports), quota, exceptions, icmp, groups)
    return Rule(section, ObjectKind.PEER, ",".join(cidrs) or "any", action, Origin(policy, "spec"), match=match)


def tcp(*ports: int) -> tuple[tuple[int, int, str], ...]:
    """Give single ports of TCP."""
    return tuple((port, port, "tcp") for port in ports)


def udp(*ports: int) -> tuple[tuple[int, int, str], ...]:
    """Give single ports of UDP."""
    return tuple((port, port, "udp") for port in ports)


LOUD: Final = Settings(log_rate=100_000, log_burst=100_000)


def desired(
    *rules: Rule, attachment: Attachment | None = None, identifier: int = 0, posture: Verdict = Verdict.DENY
) -> Desired:
    """Give what is desired where one endpoint has these rules."""
    endpoint = Endpoint(identifier, (RuleSet(rules, posture),), attachment or Whole())
    return Desired((endpoint,), LOUD)


def collect(
    engine: NetworkEngine, enough: Callable[[list[NetworkEvent | NameAnswer]], bool]
) -> list[NetworkEvent | NameAnswer]:
    """Take events until there are enough."""
    events: list[NetworkEvent | NameAnswer] = []
    end = time.monotonic() + LONG
    while not enough(events):
        left = end - time.monotonic()
        assert left > 0, f"no more events came; there are {events}"
        select.select([engine.fileno()], [], [], min(left, 0.2))
        events += engine.drain()
    return events


# ---- cgroups ---------------------------------------------------------------------------------------------------------

CGROUPS: Final = next(
    path for path in (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup")) if (path / "cgroup.controllers").exists()
)


@contextlib.contextmanager
def cgroup(*names: str) -> Iterator[Path]:
    """Make a cgroup below one of its own, and remove it."""
    top = Path(tempfile.mkdtemp(prefix="hauberk-test-", dir=CGROUPS))
    path = top.joinpath(*names)
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield path
    finally:
        for directory in sorted(top.rglob("*/"), reverse=True):
            if directory.is_dir():
                directory.rmdir()
        top.rmdir()


_IN_CGROUP: Final = """
import socket, sys
kind, family, address, port = sys.argv[1:]
made = socket.socket(socket.AF_INET6 if family == "6" else socket.AF_INET, getattr(socket, kind))
made.settimeout(0.4)
try:
    made.connect((address, int(port)))
    made.send(b"x")
except OSError as error:
    print(type(error).__name__)
else:
    print("sent", flush=True)
    sys.stdin.readline()
"""
_LISTEN_IN_CGROUP: Final = """
import socket, sys
kind, family, address, port = sys.argv[1:]
made = socket.socket(socket.AF_INET6 if family == "6" else socket.AF_INET, getattr(socket, kind))
made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
made.bind((address, int(port)))
made.listen()
print("listening", flush=True)
while True:
    taken, _ = made.accept()
    taken.sendall(b"hello")
    sys.stdin.readline()
"""


class Inside:
    """A process in a cgroup and a namespace, with a socket of its own."""

    def __init__(self, place: Place, path: Path, code: str, *arguments: object) -> None:
        """Start it."""
        script = 'echo 0 >"$0" && exec nsenter --net="$1" /usr/bin/python3 -ISc "$2" "$3" "$4" "$5" "$6"'
        words = [str(path / "cgroup.procs"), place.path, code, *map(str, arguments)]
        self._process = subprocess.Popen(
            ["sh", "-c", script, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.said = self.line()

    def line(self) -> str:
        """Wait for what it says next."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def __enter__(self) -> Self:
        """Use it."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


def connect_inside(place: Place, path: Path, address: str, port: int, family: int = 4) -> Inside:
    """Connect by TCP from a cgroup; ``said`` is "sent", or the error."""
    return Inside(place, path, _IN_CGROUP, "SOCK_STREAM", family, address, port)


def listen_inside(place: Place, path: Path, address: str, port: int, family: int = 4) -> Inside:
    """Listen in a cgroup, and greet who connects."""
    return Inside(place, path, _LISTEN_IN_CGROUP, "SOCK_STREAM", family, address, port)
