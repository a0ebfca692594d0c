# SPDX-License-Identifier: Apache-2.0
"""What a case of the truth table is: policies, workloads, and which packets are tried.

A case has one state after another; each is put in force as it stands, whatever was before. A state is data that a
reader of policies gets as text, so that nothing of the path from YAML to the packet is left out. Where the author of a
case states verdicts, they count beside what ``decide`` says: a stated verdict has been written down from the meaning of
the policy and not computed.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from hauberk.policy.rules import Verdict
from tests.host.network.topology import NINE, PORTS, STRANGERS, everybody

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from tests.host.network.topology import Places, Probe, Protocol

Document = dict[str, Any]
"""One policy as plain values."""

Group = Literal[
    "targets", "rules", "peers", "ports", "example", "actions", "conflicts", "namespaces", "upstream", "extended",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Workload:
    """A pod as the agent knows it. Its namespace can be another than the one that its name starts with.

    ``host``: not a pod, but the machine that has its addresses, which host policies cover.
    """

    name: str  # the pod of the topology
    labels: tuple[tuple[str, str], ...]
    namespace: str
    host: bool = False

    @classmethod
    def of(cls, name: str, namespace: str | None = None, **labels: str) -> Workload:
        """Give a pod with the label ``pod`` and others."""
        home, _, pod = name.partition("/")
        return cls(name, tuple(sorted(({"pod": pod} | labels).items())), namespace or home)


def hosts(**labels: str) -> tuple[Workload, ...]:
    """Give the nine as machines with labels of nodes: ``name`` is ``x-a``, ``zone`` is ``x``."""
    return tuple(
        Workload(
            name,
            tuple(sorted(({"name": name.replace("/", "-"), "zone": name[0]} | labels).items())),
            "",
            host=True,
        )
        for name in NINE
    )


NINE_WORKLOADS: Final = tuple(Workload.of(name) for name in NINE)


class Attempt(NamedTuple):
    """Some packets: between which pods, of which protocols, to which ports, over which interfaces."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    protocols: tuple[Protocol, ...] = ("tcp", "udp", "sctp")
    ports: tuple[int, ...] = PORTS
    families: tuple[int, ...] = (4, 6)
    source_interface: str = "eth0"
    target_interface: str = "eth0"

    def probes(self, places: Places) -> Iterator[Probe]:
        """Give the packets, one by one."""
        for source, target, family in itertools.product(self.sources, self.targets, self.families):
            for protocol, port in itertools.product(self.protocols, self.ports):
                yield places.probe(
                    source,
                    target,
                    protocol,
                    port,
                    family=family,
                    source_interface=self.source_interface,
                    target_interface=self.target_interface,
                )


class Stated(NamedTuple):
    """A verdict that the author of a case states: whether these packets get through."""

    source: str
    target: str
    protocol: Protocol
    port: int
    passes: bool
    family: int = 4
    source_interface: str = "eth0"
    target_interface: str = "eth0"

    def probe(self, places: Places) -> Probe:
        """Give the packet."""
        return places.probe(
            self.source,
            self.target,
            self.protocol,
            self.port,
            family=self.family,
            source_interface=self.source_interface,
            target_interface=self.target_interface,
        )


def yes(  # noqa: PLR0913 - the parts of a packet
    source: str, target: str, protocol: Protocol = "tcp", port: int = 80, family: int = 4, *, over: str = "eth0"
) -> Stated:
    """State that packets get through, over an interface of ``x/a``, which alone has several."""
    own, other = (over if pod == "x/a" else "eth0" for pod in (source, target))
    return Stated(source, target, protocol, port, True, family, own, other)  # noqa: FBT003 - the verdict


def no(  # noqa: PLR0913 - the parts of a packet
    source: str, target: str, protocol: Protocol = "tcp", port: int = 80, family: int = 4, *, over: str = "eth0"
) -> Stated:
    """State that packets do not get through, as with :func:`yes`."""
    return yes(source, target, protocol, port, family, over=over)._replace(passes=False)


@dataclass(frozen=True, slots=True)
class State:
    """Policies and workloads as they are at one time."""

    policies: tuple[Document, ...] = ()
    workloads: tuple[Workload, ...] = NINE_WORKLOADS
    stated: tuple[Stated, ...] = ()
    posture: Verdict = Verdict.DENY

    def text(self) -> bytes:
        """Give the policies as a reader gets them. JSON is YAML."""
        return "".join(f"---\n{json.dumps(document, indent=1)}\n" for document in self.policies).encode()

    def applied(self, *policies: Document) -> State:
        """Give the state with policies added, each in place of the one of its kind and name."""
        replaced = {_identity(policy) for policy in policies}
        kept = tuple(policy for policy in self.policies if _identity(policy) not in replaced)
        return replace(self, policies=kept + policies, stated=())

    def without(self, name: str) -> State:
        """Give the state without a policy."""
        kept = tuple(policy for policy in self.policies if policy["metadata"]["name"] != name)
        return replace(self, policies=kept, stated=())

    def changed(self, *workloads: Workload) -> State:
        """Give the state with workloads added, or with other labels."""
        names = {workload.name for workload in workloads}
        kept = tuple(workload for workload in self.workloads if workload.name not in names)
        return replace(self, workloads=kept + workloads, stated=())

    def gone(self, *names: str) -> State:
        """Give the state without some workloads."""
        return replace(self, workloads=tuple(one for one in self.workloads if one.name not in names), stated=())

    def stating(self, *stated: Stated) -> State:
        """Give the state with verdicts stated."""
        return replace(self, stated=stated)


def _identity(policy: Document) -> tuple[str, str, str]:
    return (policy["kind"], policy["metadata"].get("namespace", ""), policy["metadata"]["name"])


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the truth table.

    ``features`` are what a sample has to cover. ``entities`` are networks by the name of an entity, ``names`` the
    addresses that have been learned of a domain name.
    """

    name: str
    group: Group
    states: tuple[State, ...]
    features: frozenset[str] = frozenset()
    attempts: tuple[Attempt, ...] = ()
    entities: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def probes(self, places: Places, state: State) -> list[Probe]:
        """Give the packets to try in a state: between all pods, some from and to strangers, and the case's own."""
        present = tuple(name for name in places.plans if name in {workload.name for workload in state.workloads})
        strangers = tuple(STRANGERS)
        attempts = (
            Attempt(present, present),
            Attempt(present, strangers, ("tcp", "udp"), PORTS[:1]),
            Attempt(strangers, present, ("tcp", "udp"), PORTS[:1]),
            *self.attempts,
        )
        found = dict.fromkeys(probe for attempt in attempts for probe in attempt.probes(places))
        found |= dict.fromkeys(one.probe(places) for one in state.stated)
        for source, target in itertools.product(present, (*present, *strangers)):
            found[places.probe(source, target, "icmp", 8)] = None
            found[places.probe(source, target, "icmpv6", 128, family=6)] = None
        return list(found)


def sample(cases: Iterable[Case], count: int) -> list[Case]:
    """Choose so many cases that every feature of any of them, and every group, is covered, if that can be.

    Greedy and without chance: the case with most features that no other has covered yet comes next, then with most that
    one other has, and so on.
    """
    left = list(cases)
    covered: dict[str, int] = {}
    chosen: list[Case] = []
    while left and len(chosen) < count:
        best = max(left, key=lambda case: _worth(case, covered))
        left.remove(best)
        chosen.append(best)
        for feature in _features(best):
            covered[feature] = covered.get(feature, 0) + 1
    return chosen


def _worth(case: Case, covered: Mapping[str, int]) -> list[int]:
    """Give how many of a case's features are covered never so far, once, and so on; the greater list is better."""
    times = [covered.get(feature, 0) for feature in _features(case)]
    return [times.count(number) for number in range(max(times) + 1)]


def _features(case: Case) -> frozenset[str]:
    return case.features | {case.group}


def addresses_of(name: str) -> tuple[str, ...]:
    """Give every address of a pod or stranger, of both families and all interfaces."""
    (plan,) = [plan for plan in everybody() if plan.name == name]
    return tuple(address for _, *both in plan.addresses for address in both)
