# SPDX-License-Identifier: Apache-2.0
"""What our netlink reads of a kernel is what pyroute2 reads of it: flows, links, and where a link leads."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

import pytest
from pyroute2 import Conntrack, IPRoute

from guest_agent.engines.nftables import conntrack
from guest_agent.engines.nftables.engine import NftablesEngine
from guest_agent.engines.nftables.namespace import open_namespace, run_inside
from guest_agent.engines.nftables.netlink import NetlinkSocket
from guest_agent.network.places import KernelLinks
from hauberk.policy.rules import Action

from .engine_pair import EGRESS, INGRESS, Pair, desired, rule

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def pair() -> Iterator[Pair]:
    with Pair() as made:
        yield made


def test_the_same_flows(pair: Pair) -> None:
    with contextlib.closing(NftablesEngine()) as engine:
        _compare_flows(engine, pair)


def _compare_flows(engine: NftablesEngine, pair: Pair) -> None:
    tracked = desired(rule(EGRESS, Action.BLOCK, "192.0.2.1/32"), rule(INGRESS, Action.BLOCK, "192.0.2.1/32"))
    engine.apply(pair.here.namespace, tracked)
    kept = [pair.tcp_out(8080, family) for family in (4, 6)]
    assert pair.udp_out(5353)
    assert pair.ping()

    def ours() -> set[tuple[object, ...]]:
        with NetlinkSocket() as channel:
            return {
                (flow.protocol, _text(flow.source), _text(flow.destination), flow.source_port, flow.port)
                for flow in conntrack.flows(channel)
                if flow.family == 4  # pyroute2 asks for these alone
            }

    def theirs() -> set[tuple[object, ...]]:
        found: set[tuple[object, ...]] = set()
        with Conntrack() as other:
            for entry in other.dump():
                origin = entry.get_attr("CTA_TUPLE_ORIG")
                addresses, transport = origin.get_attr("CTA_TUPLE_IP"), origin.get_attr("CTA_TUPLE_PROTO")
                found.add(
                    (
                        transport.get_attr("CTA_PROTO_NUM"),
                        addresses.get_attr("CTA_IP_V4_SRC"),
                        addresses.get_attr("CTA_IP_V4_DST"),
                        transport.get_attr("CTA_PROTO_SRC_PORT"),
                        transport.get_attr("CTA_PROTO_DST_PORT"),
                    )
                )
        return found

    descriptor = open_namespace(pair.here.namespace)
    found = run_inside(descriptor, ours)
    assert len(found) >= 3
    assert {protocol for protocol, *_ in found} >= {6, 17, 1}
    assert found == run_inside(descriptor, theirs)
    assert all(flow.works() for flow in kept)


def test_the_same_ends_of_pairs(pair: Pair) -> None:
    descriptor = open_namespace(pair.here.namespace)
    there = {pair.there.namespace.inode: pair.there.pid}

    def theirs() -> list[str]:
        with IPRoute() as route:
            links = [link for link in route.get_links() if link.get_attr("IFLA_LINK_NETNSID") is not None]
            return [str(link.get_attr("IFLA_IFNAME")) for link in links]

    found = run_inside(descriptor, lambda: dict(KernelLinks().routed(there)))
    (name,) = run_inside(descriptor, theirs)
    assert found == {pair.there.namespace.inode: name}


def _text(address: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET, address)
