# SPDX-License-Identifier: Apache-2.0
"""Many packets, few alerts: what repeats is counted, and told when its window ends. Pure.

Who is refused tries again, and who floods does so from addresses that are made up. So packets are folded:

* The first packet of its kind is told at once. A *kind* is endpoint, direction, verdict and reason, the peer's address,
  the protocol and the port that was asked for (or the type of ICMP). Ports of clients and addresses of the workload
  itself do not make a kind: they change with every try.
* Further ones are counted for :data:`WINDOW_NS` and then told as one, with the count. A kind that goes on is told once
  a window; one that has stopped is forgotten.
* Of one endpoint, direction and verdict at most :data:`KINDS_OF_ONE` kinds are told in a window, and
  :data:`MAXIMUM_KINDS` of all. What is beyond is counted for the endpoint as a whole and told as :data:`OTHERS`,
  without addresses. So memory has a bound that no sender of packets moves, only the number of workloads; so has the
  work of finding the rule of each alert; and no count is lost.

Time is that of the events, CLOCK_BOOTTIME.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from guest_agent.engines.network_port import NetworkEvent
from hauberk.policy.rules import Section

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

WINDOW_NS: Final = 10_000_000_000
KINDS_OF_ONE: Final = 32
MAXIMUM_KINDS: Final = 4096
OTHERS: Final = "others"
"""``detail`` of an event that stands for packets of many peers: beyond what is told one by one."""


@dataclass(slots=True)
class _Kind:
    """What was counted in the window that began at ``since``. ``event`` is the last one."""

    event: NetworkEvent
    since: int
    count: int = 0


@dataclass(slots=True)
class _Group:
    """The kinds of one endpoint, direction and verdict. ``others``: what is beyond them."""

    kinds: dict[Hashable, _Kind] = field(default_factory=dict)
    others: _Kind | None = None


@dataclass(slots=True)
class Folding:
    """Counts what repeats. Not thread-safe.

    ``window_ns`` is how long; ``folded`` how many packets were counted instead of told one by one, and ``beyond`` how
    many of them without their peer.
    """

    window_ns: int = WINDOW_NS
    folded: int = 0
    beyond: int = 0
    _groups: dict[Hashable, _Group] = field(default_factory=dict)
    _kinds: int = 0

    def add(self, event: NetworkEvent) -> NetworkEvent | None:
        """Take an event; give it back if it is to be told now."""
        group = self._groups.setdefault(_group(event), _Group())
        key = kind_of(event)
        kind = group.kinds.get(key)
        if kind is None and len(group.kinds) < KINDS_OF_ONE and self._kinds < MAXIMUM_KINDS:
            group.kinds[key] = _Kind(event, event.timestamp_ns)
            self._kinds += 1
            return event
        self.folded += event.count
        if kind is None:
            self.beyond += event.count
            if group.others is None:
                group.others = _Kind(event, event.timestamp_ns)
            kind = group.others
        kind.event = event
        kind.count += event.count
        return None

    def due(self, now_ns: int) -> Iterator[NetworkEvent]:
        """Give what was counted in the windows that have ended by ``now_ns``, each with its count."""
        for of_group, group in tuple(self._groups.items()):
            for key, kind in tuple(group.kinds.items()):
                if now_ns - kind.since < self.window_ns:
                    continue
                if kind.count:
                    yield replace(kind.event, count=kind.count)
                    kind.since, kind.count = now_ns, 0
                else:
                    del group.kinds[key]
                    self._kinds -= 1
            others = group.others
            if others is not None and now_ns - others.since >= self.window_ns:
                yield _without_peer(others)
                group.others = None
            if not group.kinds and group.others is None:
                del self._groups[of_group]

    def flush(self) -> Iterator[NetworkEvent]:
        """Give all that was counted and not told, and forget everything: before the agent stops."""
        for group in self._groups.values():
            for kind in group.kinds.values():
                if kind.count:
                    yield replace(kind.event, count=kind.count)
            if group.others is not None:
                yield _without_peer(group.others)
        self._groups.clear()
        self._kinds = 0

    def statistics(self) -> dict[str, int]:
        """Give the counters, for status."""
        return {"packets_folded": self.folded, "packets_told_without_peer": self.beyond}


def peer_of(event: NetworkEvent) -> str:
    """Give the address of the other end, as the endpoint sees it."""
    return event.source_address if event.direction is Section.INGRESS else event.destination_address


def kind_of(event: NetworkEvent) -> Hashable:
    """Give what makes two packets of one endpoint, direction and verdict the same for whoever reads of them."""
    asked = (event.destination_port, event.icmp_type, event.icmp_code)
    interfaces = (event.interface_in, event.interface_out)
    return (event.reason, peer_of(event), event.protocol, *asked, *interfaces, event.detail)


def _group(event: NetworkEvent) -> Hashable:
    return (event.namespace, event.endpoint, event.direction, event.verdict)


def _without_peer(kind: _Kind) -> NetworkEvent:
    last = kind.event
    return NetworkEvent(
        timestamp_ns=last.timestamp_ns,
        namespace=last.namespace,
        verdict=last.verdict,
        endpoint=last.endpoint,
        direction=last.direction,
        count=kind.count,
        detail=OTHERS,
    )
