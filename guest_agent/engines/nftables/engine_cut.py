# SPDX-License-Identifier: Apache-2.0
"""Judges the established flows of a namespace by the rules in force, and ends those that fail.

The kernel asks a flow's socket for its cgroup, so the socket is looked up here too. Of a flow whose socket cannot be
told apart from others' (several processes share its port) all of them have to pass; one without any socket is nobody's.
Where the kernel knows the cgroup and we cannot (sockets for echoes are not read; a cgroup that was removed has no place
any more), it may be anybody's: what is not forbidden and goes all the same is asked about again.
"""

from __future__ import annotations

import itertools
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from guest_agent.engines.nftables import conntrack
from guest_agent.engines.nftables.conntrack import Flow, Sockets, Surroundings
from guest_agent.engines.nftables.evaluation import Evaluation, Packet
from guest_agent.engines.nftables.namespace import run_inside
from guest_agent.engines.nftables.netlink import NETLINK_ROUTE, NETLINK_SOCK_DIAG, NetlinkSocket
from guest_agent.engines.nftables.protocols import ICMP

if TYPE_CHECKING:
    from collections.abc import Iterator

    from guest_agent.engines.nftables.conntrack import Cgroups
    from guest_agent.engines.nftables.ruleset import Hook, Ruleset

_TCP: Final = 6
_ICMP: Final = frozenset(ICMP.values())
_IPV4_BYTES: Final = 4
_FIRST_EPHEMERAL_PORT: Final = 1024
_REMEMBERED: Final = 1 << 14


def cut(descriptor: int, ruleset: Ruleset) -> int:
    """End the flows of a namespace that a ruleset refuses, and give their number. Raises OSError, EngineError."""
    if not ruleset.rules:
        return 0
    return run_inside(descriptor, _Cut(ruleset).run)


class _Cut:
    """One pass over the entries, by a thread inside the namespace."""

    def __init__(self, ruleset: Ruleset) -> None:
        self._rules = Evaluation(ruleset)
        dispatches = [one for one in ruleset.sets.values() if "cgroupsv2" in one.fields]
        self._by_cgroup = bool(dispatches)
        self._named = {key[0][0] for one in dispatches for key in one.elements}
        self._by_interface = any(chain.hook == "forward" for chain in ruleset.chains) or any(
            "ifname" in one.fields for one in ruleset.sets.values()
        )
        self._known: dict[object, bool] = {}
        self._sockets = Sockets()
        self._tree: dict[int, Cgroups] = {}

    def run(self) -> int:
        with ExitStack() as stack:
            reading, deleting = (stack.enter_context(NetlinkSocket()) for _ in range(2))
            diagnosis = stack.enter_context(NetlinkSocket(NETLINK_SOCK_DIAG))
            surroundings = Surroundings(stack.enter_context(NetlinkSocket(NETLINK_ROUTE)))
            if self._by_cgroup:
                self._sockets = conntrack.sockets(diagnosis)
                self._tree = conntrack.cgroup_tree()
            cut = 0
            for flow, hook in self._refused(conntrack.flows(reading), surroundings):
                if flow.protocol == _TCP:
                    _close(diagnosis, flow, hook)
                cut += conntrack.delete(deleting, flow)
            return cut

    def _refused(self, flows: Iterator[Flow], surroundings: Surroundings) -> Iterator[tuple[Flow, Hook]]:
        gone: set[int] = set()
        related: list[tuple[Flow, Hook]] = []
        for flow in flows:
            hook = surroundings.hook(flow)
            if hook is None:
                continue
            if flow.master is not None:
                related.append((flow, hook))  # passes as long as what it belongs to does
            elif not self._passes(flow, hook, surroundings):
                gone.add(hash(flow.identity))
                yield flow, hook
        yield from ((flow, hook) for flow, hook in related if hash(flow.master) in gone)

    def _passes(self, flow: Flow, hook: Hook, surroundings: Surroundings) -> bool:
        """Tell whether a flow passes by every way that it may have taken, for everybody whose it may be."""
        came = {""} if hook == "output" else self._ways(surroundings, flow.source, hook, flow.destination)
        went = {""} if hook == "input" else self._ways(surroundings, flow.destination, hook, flow.source)
        owners = self._owners(flow, hook) or [()]
        return all(self._verdict(flow, hook, *ways) for ways in itertools.product(came, went, owners))

    def _ways(self, surroundings: Surroundings, peer: bytes, hook: Hook, own: bytes) -> set[str]:
        if not self._by_interface:
            return {""}
        return surroundings.interfaces(peer, b"" if hook == "forward" else own)

    def _verdict(self, flow: Flow, hook: Hook, came: str, went: str, owner: Cgroups) -> bool:
        # Rules go by the peer, and by no source port but those of services (DHCP).
        peers = (flow.source if hook != "output" else b"", flow.destination if hook != "input" else b"")
        sent = flow.source_port if (flow.source_port or 0) < _FIRST_EPHEMERAL_PORT else None
        question = (hook, *peers, flow.protocol, sent, flow.port, flow.icmp_type, came, went, owner)
        if question not in self._known:
            packet = Packet(
                source=_text(flow.source),
                destination=_text(flow.destination),
                protocol=flow.protocol,
                source_port=flow.source_port,
                destination_port=flow.port,
                icmp_type=flow.icmp_type,
                interface_in=came,
                interface_out=went,
                cgroups=owner,
                length=0,  # which no quota counts
            )
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[question] = self._rules.packet(hook, packet).passes
        return self._known[question]

    def _owners(self, flow: Flow, hook: Hook) -> list[Cgroups]:
        if not self._by_cgroup or hook == "forward":
            return []
        source, destination = (flow.source, flow.source_port or 0), (flow.destination, flow.port or 0)
        local, peer = (source, destination) if hook == "output" else (destination, source)
        found = self._sockets.owners(flow.protocol, *local, *peer)
        if hook == "output" and (asked := (flow.asked, flow.asked_port or 0)) != destination:
            found = found | self._sockets.owners(flow.protocol, *local, *asked)  # the peer that the socket knows
        if found - self._tree.keys() or (hook == "output" and flow.protocol in _ICMP):
            found = found | self._named
        return [self._tree[number] for number in sorted(found) if number in self._tree]


def _close(channel: NetlinkSocket, flow: Flow, hook: str) -> None:
    """Close the socket of a TCP flow, as it knows the flow: its own peer before translation."""
    if hook == "output":
        asked = (flow.asked, flow.asked_port or 0)
        conntrack.close_socket(channel, flow.family, (flow.source, flow.source_port or 0), asked)
    elif hook == "input":
        local = (flow.destination, flow.port or 0)
        conntrack.close_socket(channel, flow.family, local, (flow.source, flow.source_port or 0))


def _text(address: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(address) == _IPV4_BYTES else socket.AF_INET6, address)
