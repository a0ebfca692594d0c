# SPDX-License-Identifier: Apache-2.0
"""Judges the established flows of a namespace by the rules in force, and ends those that fail.

The kernel asks a flow's socket for its cgroup, so the socket is looked up here too. Of a flow whose socket cannot be
told apart from others' (several processes share its port) all of them have to pass; one without any socket is nobody's.
"""

from __future__ import annotations

import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from guest_agent.engines.nftables import conntrack
from guest_agent.engines.nftables.conntrack import Flow, Sockets, Surroundings
from guest_agent.engines.nftables.namespace import run_inside
from guest_agent.engines.nftables.netlink import NETLINK_ROUTE, NETLINK_SOCK_DIAG, NetlinkSocket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from guest_agent.engines.nftables.conntrack import Cgroups

_TCP: Final = 6

Judge = "Callable[[Flow, str, str, str, Cgroups], bool]"
"""Whether a flow's first packet would pass now: the flow, the hook, the interfaces it comes in and goes out by, the
cgroups of its socket."""


def cut(descriptor: int, judge: Callable[[Flow, str, str, str, Cgroups], bool], *, by_cgroup: bool) -> int:
    """End the flows of a namespace that ``judge`` refuses, and give their number.

    ``by_cgroup``: whether the rules ask for cgroups at all. Raises OSError, EngineError.
    """
    return run_inside(descriptor, lambda: _Cut(judge, by_cgroup=by_cgroup).run())


class _Cut:
    """One pass over the entries, by a thread inside the namespace."""

    def __init__(self, judge: Callable[[Flow, str, str, str, Cgroups], bool], *, by_cgroup: bool) -> None:
        self._judge = judge
        self._by_cgroup = by_cgroup
        self._sockets = Sockets()
        self._tree: dict[int, Cgroups] = {}

    def run(self) -> int:
        with ExitStack() as stack:
            reading, deleting = (stack.enter_context(NetlinkSocket()) for _ in range(2))
            diagnosis = stack.enter_context(NetlinkSocket(NETLINK_SOCK_DIAG))
            surroundings = Surroundings(stack.enter_context(NetlinkSocket(NETLINK_ROUTE)), _interface_name)
            if self._by_cgroup:
                self._sockets = conntrack.sockets(diagnosis)
                self._tree = conntrack.cgroup_tree()
            refused = list(self._refused(conntrack.flows(reading), surroundings))
            for flow, hook in refused:
                if flow.protocol == _TCP:
                    _close(diagnosis, flow, hook)
            return sum(conntrack.delete(deleting, flow) for flow, _ in refused)

    def _refused(self, flows: Iterator[Flow], surroundings: Surroundings) -> Iterator[tuple[Flow, str]]:
        gone: set[bytes] = set()
        related: list[tuple[Flow, str]] = []
        for flow in flows:
            hook = surroundings.hook(flow)
            if hook is None:
                continue
            if flow.master is not None:
                related.append((flow, hook))  # passes as long as what it belongs to does
            elif not self._passes(flow, hook, surroundings):
                gone.add(flow.identity)
                yield flow, hook
        yield from ((flow, hook) for flow, hook in related if flow.master in gone)

    def _passes(self, flow: Flow, hook: str, surroundings: Surroundings) -> bool:
        came = surroundings.interface(flow.source) if hook != "output" else ""
        went = surroundings.interface(flow.destination) if hook != "input" else ""
        owners = self._owners(flow, hook)
        return all(self._judge(flow, hook, came, went, owner) for owner in owners or [()])

    def _owners(self, flow: Flow, hook: str) -> list[Cgroups]:
        if not self._by_cgroup or hook == "forward":
            return []
        source, destination = (flow.source, flow.source_port or 0), (flow.destination, flow.port or 0)
        local, peer = (source, destination) if hook == "output" else (destination, source)
        found = self._sockets.owners(flow.protocol, *local, *peer)
        return [self._tree[number] for number in sorted(found) if number in self._tree]


def _close(channel: NetlinkSocket, flow: Flow, hook: str) -> None:
    """Close the socket of a TCP flow, as it knows the flow: its own peer before translation."""
    if hook == "output":
        asked = (flow.asked, flow.asked_port or 0)
        conntrack.close_socket(channel, flow.family, (flow.source, flow.source_port or 0), asked)
    elif hook == "input":
        local = (flow.destination, flow.port or 0)
        conntrack.close_socket(channel, flow.family, local, (flow.source, flow.source_port or 0))


def _interface_name(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return ""
