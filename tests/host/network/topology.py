# SPDX-License-Identifier: Apache-2.0
"""A small network of real network namespaces, and who sends packets through it.

Every *machine* is a network namespace with one virtual Ethernet pair to the *router*, a namespace of its own, which
forwards by host routes: so each machine has its own interface there, and the router sees every packet in its forward
hook. A *pod* is a process (``prober.c``) in a machine, with addresses of its own; several pods can share a machine, and
then have a cgroup each. Nothing has a name outside: a namespace lives as long as the processes in it, and these die
with the test. The machine that the tests run on is never touched.

How it is known what became of a probe, without waiting: what arrives and what is answered is told by the probers, and
the processing of a packet ends before the call that sends it returns, or soon after. So a caller collects what is told
until it has what it expects, and asks each prober to empty its queues before it believes that there is nothing else.
The source port is the number of the round, so that what comes late still counts where it belongs.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import selectors
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from types import TracebackType

PORTS: Final = (80, 8080)
FIRST_SOURCE_PORT: Final = 20000
_ROUNDS: Final = 40000
"""Source ports run from the first one on, one for each round, and then again from the start."""
_SOURCE: Final = Path(__file__).with_name("prober.c")
_BUILT: Final = Path(__file__).resolve().parents[3] / ".cache" / "containers" / "truth_prober"
"""The prober for guests of the vm lane, which have no compiler."""
_PATIENCE_SECONDS: Final = 60.0
"""How long a prober may take to say that it is ready, before something is broken."""

Protocol = Literal["tcp", "udp", "sctp", "icmp", "icmpv6"]


class TopologyError(Exception):
    """The network could not be made, or a prober ended. The message says what was said last."""


@dataclass(frozen=True, slots=True)
class PodPlan:
    """A pod to be: its name, its machine, and its addresses as ``(interface, IPv4 address, IPv6 address)``."""

    name: str
    machine: str
    addresses: tuple[tuple[str, str, str], ...]


class Probe(NamedTuple):
    """One packet, and what may come back: from an address of a pod to an address and a port, or an ICMP type."""

    source: str  # the pod's name
    source_address: str
    target: str
    target_address: str
    protocol: Protocol
    port: int  # of ICMP: the type

    @property
    def family(self) -> int:
        """4 or 6."""
        return 6 if ":" in self.target_address else 4


class Flow(NamedTuple):
    """A flow that a probe opened and that was held."""

    identifier: int
    probe: Probe


class Arrival(NamedTuple):
    """A packet as who got it tells of it."""

    protocol: str
    source_address: str
    source_port: int
    target_address: str
    port: int


@dataclass(slots=True)
class Round:
    """What has been told of the probes of one round so far."""

    source_port: int
    probes: tuple[Probe, ...]
    answered: set[Probe] = field(default_factory=set)
    arrived: set[Probe] = field(default_factory=set)
    failed: dict[Probe, int] = field(default_factory=dict)
    _by_packet: dict[tuple[str, str, str, int], Probe] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Index the probes by what a packet shows."""
        self._by_packet = {
            (probe.protocol, probe.source_address, probe.target_address, probe.port): probe for probe in self.probes
        }

    def find(self, protocol: str, source_address: str, target_address: str, port: int) -> Probe | None:
        """Give the probe that a packet belongs to."""
        return self._by_packet.get((protocol, source_address, target_address, port))


class Prober:
    """One process of ``prober.c``. Its output is read by :class:`Network`."""

    def __init__(self, program: Path, arguments: Sequence[str], name: str) -> None:
        """Start it and wait until it is where it belongs. Raises :class:`TopologyError`."""
        self.name = name
        self._process = subprocess.Popen(
            [str(program), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        self._rest = b""
        self.waiting: list[str] = []  # said while something else was waited for
        self._await("ready")
        os.set_blocking(self.fileno(), False)

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def fileno(self) -> int:
        """Descriptor of its output."""
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def say(self, lines: Iterable[str]) -> None:
        """Give it commands."""
        assert self._process.stdin is not None
        text = "".join(f"{line}\n" for line in lines).encode()
        while text:
            try:
                text = text[self._process.stdin.write(text) :]
            except BrokenPipeError:
                self.read()  # what it said last
                self._broken("its input is closed")

    def read(self) -> list[str]:
        """Give the lines that it has written."""
        try:
            got = os.read(self.fileno(), 1 << 18)
        except BlockingIOError:
            return []
        if not got:
            self._broken("its output ended")
        *lines, self._rest = (self._rest + got).split(b"\n")
        told = [line.decode() for line in lines]
        for line in told:
            if line.startswith("error "):
                self._broken(line)
        return told

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()

    def _await(self, wanted: str) -> None:
        while wanted not in self.read():
            pass

    def _broken(self, what: str) -> None:
        message = f"the prober {self.name} cannot go on: {what} (status {self._process.poll()})"
        raise TopologyError(message)


class Places:
    """Where pods are, and the packets that can be between them."""

    def __init__(self, plans: Sequence[PodPlan]) -> None:
        """Take the pods."""
        self.plans = {plan.name: plan for plan in plans}
        self._interfaces = {address: name for plan in plans for name, *both in plan.addresses for address in both}

    def loopback(self, probe: Probe) -> bool:
        """Tell whether a packet never leaves its machine."""
        return self.plans[probe.source].machine == self.plans[probe.target].machine

    def address(self, pod: str, family: int, interface: str = "eth0") -> str:
        """Give a pod's address on an interface."""
        _, four, six = next(entry for entry in self.plans[pod].addresses if entry[0] == interface)
        return six if family == 6 else four

    def interface_of(self, address: str) -> str:
        """Give the interface, as its machine calls it, that has an address."""
        return self._interfaces[address]

    def probe(  # noqa: PLR0913 - from where, to where and what
        self,
        source: str,
        target: str,
        protocol: Protocol,
        port: int,
        *,
        family: int = 4,
        source_interface: str = "eth0",
        target_interface: str = "eth0",
    ) -> Probe:
        """Give a probe between two pods."""
        own = self.address(source, family, source_interface)
        return Probe(source, own, target, self.address(target, family, target_interface), protocol, port)


class Network(Places):
    """Machines, pods and the router between them; a context manager."""

    def __init__(self, plans: Sequence[PodPlan], cgroups: Mapping[str, Path] | None = None) -> None:
        """Take the pods to make, and the cgroup directories of those that are to be in one."""
        super().__init__(plans)
        self._cgroups = cgroups or {}
        self._stack = contextlib.ExitStack()
        self._selector = selectors.DefaultSelector()
        self._probers: dict[str, Prober] = {}
        self._holders: dict[str, Prober] = {}
        self._by_address: dict[str, str] = {}
        self._identifiers = itertools.count(1)
        self._syncs = itertools.count(1)
        self._numbers = itertools.count()
        self._sent: dict[int, tuple[Round, Probe]] = {}
        self._rounds: dict[int, Round] = {}
        self._synced: dict[str, int] = {}
        self._more: set[int] = set()

    def __enter__(self) -> Self:
        """Make everything."""
        with contextlib.ExitStack() as stack:
            self._make(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End every process, and with them the namespaces."""
        self._stack.close()

    def namespace(self, machine: str) -> Path:
        """Give a path that opens a machine's namespace; the router's machine is called ``router``."""
        return Path(f"/proc/{self._holders[machine].pid}/ns/net")

    def router_interface(self, machine: str, interface: str = "eth0") -> str:
        """Give the name that a machine's interface has at its other end, in the router."""
        return self._router_ends[machine, interface]

    def send(self, probes: Sequence[Probe]) -> Round:
        """Begin a round: send all probes at once."""
        number = FIRST_SOURCE_PORT + next(self._numbers) % _ROUNDS
        begun = Round(number, tuple(probes))
        self._rounds[number] = begun
        lines: dict[str, list[str]] = {}
        for probe in probes:
            identifier = next(self._identifiers)
            self._sent[identifier] = (begun, probe)
            protocol = "icmp" if probe.protocol == "icmpv6" else probe.protocol
            words = (identifier, protocol, probe.source_address, number, probe.target_address, probe.port)
            lines.setdefault(probe.source, []).append(" ".join(map(str, ("probe", *words))))
        for source, commands in lines.items():
            self._probers[source].say(commands)
        return begun

    def collect(self, seconds: float) -> None:
        """Take in what is told, waiting so long for the first of it."""
        for key, _ in self._selector.select(seconds):
            key.data()

    def watch(self, descriptor: int, take: Callable[[], None]) -> None:
        """Call ``take`` whenever something else can be read while what is told is taken in."""
        self._selector.register(descriptor, selectors.EVENT_READ, take)

    def round_of(self, source_port: int) -> Round | None:
        """Give the round whose packets have this source port."""
        return self._rounds.get(source_port)

    def _hear(self, prober: Prober) -> None:
        for line in prober.read():
            self._told(prober.name, line)

    def collect_until(self, enough: Callable[[], bool], seconds: float) -> bool:
        """Take in what is told until there is enough of it or the time is over; tell which."""
        deadline = time.monotonic() + seconds
        while not enough():
            if time.monotonic() > deadline:
                return False
            self.collect(0.01)
        return True

    def settle(self) -> None:
        """Let every prober take in what has arrived for it, twice: what was answered late has arrived then."""
        for _ in range(2):
            number = next(self._syncs)
            for prober in self._probers.values():
                prober.say([f"sync {number}"])
            if not self.collect_until(functools.partial(self._in_step, number), _PATIENCE_SECONDS):
                message = f"probers did not answer within {_PATIENCE_SECONDS} s: is the machine overloaded?"
                raise TopologyError(message)

    def _in_step(self, number: int) -> bool:
        return all(self._synced.get(name, 0) >= number for name in self._probers)

    def finish(self) -> None:
        """End a round: close what its probes have opened."""
        for prober in self._probers.values():
            prober.say(["clear"])
        self._sent.clear()

    def hold(self, probes: Iterable[Probe]) -> tuple[Flow, ...]:
        """Keep the flows of probes of the present round; :meth:`finish` leaves them open."""
        identifiers = {probe: identifier for identifier, (_, probe) in self._sent.items()}
        flows = tuple(Flow(identifiers[probe], probe) for probe in probes)
        for flow in flows:
            self._probers[flow.probe.source].say([f"keep {flow.identifier}"])
        return flows

    def send_again(self, flows: Iterable[Flow], going_on: Iterable[Flow], seconds: float) -> set[Flow]:
        """Send once more over flows that were held, and close them; give those over which an answer came.

        As soon as all of ``going_on`` have theirs, it waits for nothing else but what is on its way.
        """
        flows, awaited = tuple(flows), {flow.identifier for flow in going_on}
        self._more.clear()
        for flow in flows:
            self._probers[flow.probe.source].say([f"send {flow.identifier}"])
        self.collect_until(lambda: awaited <= self._more, seconds)
        self.settle()
        for prober in self._probers.values():
            prober.say(["release"])
        return {flow for flow in flows if flow.identifier in self._more}

    def _told(self, name: str, line: str) -> None:
        word, *rest = line.split()
        match word:
            case "sync":
                self._synced[name] = int(rest[0])
            case "more":
                self._more.add(int(rest[0]))
            case "answered" | "failed" if int(rest[0]) in self._sent:
                begun, probe = self._sent[int(rest[0])]
                if word == "answered":
                    begun.answered.add(probe)
                else:
                    begun.failed[probe] = int(rest[1])
            case "got":
                self._arrived(Arrival(rest[0], rest[1], int(rest[2]), rest[3], int(rest[4])))

    def _arrived(self, arrival: Arrival) -> None:
        begun = self._rounds.get(arrival.source_port)
        if begun is None:
            return
        protocol = "icmpv6" if arrival.protocol == "icmp" and ":" in arrival.source_address else arrival.protocol
        probe = begun.find(protocol, arrival.source_address, arrival.target_address, arrival.port)
        if probe is not None:
            begun.arrived.add(probe)

    def _make(self, stack: contextlib.ExitStack) -> None:
        program = _program(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hauberk-truth-"))))
        machines = sorted({plan.machine for plan in self.plans.values()})
        for machine in ("router", *machines):
            holder = Prober(program, ["-n"], machine)
            stack.callback(holder.close)
            self._holders[machine] = holder
            _inside(holder.pid, "sh", "-c", " && ".join(_SYSCTLS + (_FORWARDING if machine == "router" else ())))
        self._wire(machines)
        for plan in self.plans.values():
            inside = ["-j", str(self.namespace(plan.machine))]
            if plan.name in self._cgroups:
                inside += ["-c", str(self._cgroups[plan.name] / "cgroup.procs")]
            prober = Prober(program, inside, plan.name)
            stack.callback(prober.close)
            self._probers[plan.name] = prober
            self._selector.register(prober, selectors.EVENT_READ, functools.partial(self._hear, prober))
            prober.say(_listening(plan))
        stack.callback(self._selector.close)
        self.settle()

    def _wire(self, machines: Sequence[str]) -> None:
        """Give each machine its interfaces, addresses and routes, and the router its ends of them."""
        self._router_ends: dict[tuple[str, str], str] = {}
        making: list[str] = []
        routes: list[str] = []
        inner: dict[str, list[str]] = {}
        for machine in machines:
            here = [plan for plan in self.plans.values() if plan.machine == machine]
            for number, interface in enumerate(sorted({name for plan in here for name, *_ in plan.addresses})):
                end = f"v{len(self._router_ends)}"
                self._router_ends[machine, interface] = end
                pid = self._holders[machine].pid
                making.append(f"link add {end} type veth peer name {interface} netns {pid}")
                routes += [
                    f"address add 169.254.1.1/32 dev {end}",
                    f"address add fe80::1/64 dev {end} nodad",
                    f"link set {end} up",
                ]
                own = [both for plan in here for name, *both in plan.addresses if name == interface]
                routes += [
                    f"{flag}route add {address} dev {end}"
                    for both in own
                    for flag, address in zip(("", "-6 "), both, strict=True)
                ]
                inner.setdefault(machine, []).extend(_interface(interface, number, own))
        router = self._holders["router"].pid
        _batch(router, ["link set lo up", *making])
        for machine, lines in inner.items():
            _batch(self._holders[machine].pid, ["link set lo up", *lines])
        _batch(router, routes)


_SYSCTLS: Final = (
    "echo 0 >/proc/sys/net/ipv4/conf/all/rp_filter",
    "echo 0 >/proc/sys/net/ipv4/conf/default/rp_filter",
    "echo 0 >/proc/sys/net/ipv6/conf/all/disable_ipv6",
    "echo 0 >/proc/sys/net/ipv6/conf/default/disable_ipv6",
    "echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad",
    "echo 0 >/proc/sys/net/ipv6/conf/default/accept_ra",
)
_FORWARDING: Final = (
    "echo 1 >/proc/sys/net/ipv4/ip_forward",
    "echo 1 >/proc/sys/net/ipv6/conf/all/forwarding",
)


def _program(directory: Path) -> Path:
    """Give the compiled prober: made here, or where there is no compiler (in guests), by `make build`."""
    if shutil.which("gcc") is None:
        if not _BUILT.is_file():
            message = f"there is no gcc, and no {_BUILT}: run `make build` where there is one"
            raise TopologyError(message)
        return _BUILT
    program = directory / "prober"
    _run(["gcc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(program), str(_SOURCE)])
    return program


def _interface(name: str, number: int, own: Sequence[Sequence[str]]) -> Iterator[str]:
    """Give the lines that configure one interface of a machine; the first has the default route.

    Packets from an address of another interface leave by that one: its routes are in a table of its own.
    """
    table = "main" if number == 0 else str(100 + number)
    for four, six in own:
        yield f"address add {four}/32 dev {name}"
        yield f"address add {six}/128 dev {name} nodad"
        if number:
            yield f"rule add from {four} table {table}"
            yield f"-6 rule add from {six} table {table}"
    yield f"link set {name} up"
    yield f"route add 169.254.1.1 dev {name} scope link table {table}"
    yield f"route add default via 169.254.1.1 dev {name} onlink table {table}"
    yield f"-6 route add default via fe80::1 dev {name} table {table}"


def _listening(plan: PodPlan) -> Iterator[str]:
    for _, *both in plan.addresses:
        for address in both:
            yield f"listen sctp {address} 0"
            yield f"listen icmp {address} 0"
            for protocol, port in itertools.product(("tcp", "udp"), PORTS):
                yield f"listen {protocol} {address} {port}"


def _batch(pid: int, lines: Sequence[str]) -> None:
    """Run lines of ``ip`` in a namespace: IPv4 and links in one go, what is said of IPv6 in another."""
    plain = [line for line in lines if not line.startswith("-6 ")]
    six = [line.removeprefix("-6 ") for line in lines if line.startswith("-6 ")]
    for flags, some in (([], plain), (["-6"], six)):
        if some:
            _inside(pid, "ip", *flags, "-batch", "-", text="\n".join(some))


def _inside(pid: int, *command: str, text: str = "") -> None:
    _run(["nsenter", f"--net=/proc/{pid}/ns/net", *command], text)


def _run(command: Sequence[str], text: str = "") -> None:
    done = subprocess.run(command, input=text, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        message = f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip() or done.stdout.strip()}"
        raise TopologyError(message)


def everybody(*, shared: bool = False, second: bool = True) -> tuple[PodPlan, ...]:
    """Give the pods that all cases use: nine in three namespaces, four that come and go, two strangers.

    ``shared``: the pods of one Kubernetes namespace share a machine. The addresses are such that the /24 (/112) around
    ``z/c`` holds some of the nine, and its /28 (/124) fewer; ``x/a`` has a second interface, ``net1``, unless
    it is not wanted.
    """
    plans = [
        PodPlan(
            name,
            name.partition("/")[0] if shared else name,
            (("eth0", f"10.77.{third}.{last}", str(IPv6Address(f"fd77::{third}:{last:x}"))),)
            + ((("net1", "10.78.0.10", "fd78::a"),) if second and name == "x/a" else ()),
        )
        for name, (third, last) in _PLACES.items()
    ]
    return (*plans, *(PodPlan(name, name, (("eth0", *both),)) for name, both in STRANGERS.items()))


_PLACES: Final = {
    "x/a": (0, 10), "x/b": (0, 20), "x/c": (0, 30),
    "y/a": (1, 17), "y/b": (1, 18), "y/c": (1, 33),
    "z/a": (1, 34), "z/b": (1, 65), "z/c": (1, 40),
    "x/d": (0, 40), "y-2/a": (2, 1), "y-2/b": (2, 2), "w/a": (3, 1),
}  # fmt: skip
NINE: Final = tuple(itertools.islice(_PLACES, 9))
"""The pods that are there in every case."""
STRANGERS: Final = {
    "office": ("198.51.100.7", "2001:db8:100::7"),
    "internet": ("203.0.113.5", "2001:db8:113::5"),
}
"""Addresses that no workload here has."""
