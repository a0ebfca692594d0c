# SPDX-License-Identifier: Apache-2.0
"""Networks with exceptions as rules have them, and rules about packets as text."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hauberk.policy import packets, peers
from hauberk.policy.rules import LabelRequirement, Peer, PeerGroup, PeerMatch, PeerSelector

WORLD = PeerGroup("entity", "world")


@st.composite
def networks(draw: st.DrawFn) -> str:
    """Give a network of the few that a small space has, so that many overlap."""
    if draw(st.booleans()):
        return str(ipaddress.ip_network((draw(st.integers(0, 15)), draw(st.integers(28, 32))), strict=False))
    return str(
        ipaddress.ip_network(
            (int(ipaddress.ip_address("fd00::")) + draw(st.integers(0, 15)), draw(st.integers(124, 128))), strict=False
        )
    )


@st.composite
def blocks(draw: st.DrawFn) -> tuple[str, list[str]]:
    """Give a network and parts of it."""
    whole = ipaddress.ip_network(draw(networks()))
    addresses = st.integers(int(whole.network_address), int(whole.broadcast_address))
    lengths = st.integers(whole.prefixlen, whole.max_prefixlen)
    of_family = type(whole)
    parts = [of_family((draw(addresses), draw(lengths)), strict=False) for _ in range(draw(st.integers(0, 3)))]
    return str(whole), [str(part) for part in parts]


ADDRESSES = [
    str(of_family(first + number))
    for of_family, first in ((ipaddress.IPv4Address, 0), (ipaddress.IPv6Address, int(ipaddress.ip_address("fd00::"))))
    for number in range(18)
]


@given(st.lists(blocks(), max_size=8), st.sampled_from(ADDRESSES), st.booleans())
def test_an_exception_is_one_from_its_own_network_alone(
    written: list[tuple[str, list[str]]],
    text: str,
    grouped: bool,  # noqa: FBT001 - drawn
) -> None:
    address = ipaddress.ip_address(text)
    meant = any(
        address in ipaddress.ip_network(cidr) and not any(address in ipaddress.ip_network(part) for part in parts)
        for cidr, parts in written
    )
    given_ = list(packets.with_peers(PeerMatch(), written, [WORLD] if grouped else []))
    peer = Peer(text)
    assert any(peers.matches(match, peer) for match in given_) == meant
    stranger = Peer("9.9.9.9", entities=("world",))
    assert any(peers.matches(match, stranger) for match in given_) == grouped


@given(st.lists(networks(), min_size=1, max_size=8))
def test_networks_without_exceptions_are_one_match(written: list[str]) -> None:
    (match,) = packets.with_peers(PeerMatch(), [(cidr, []) for cidr in written])
    assert match.cidrs == tuple(dict.fromkeys(written))


def test_a_long_list_with_exceptions_that_are_apart_is_one_match() -> None:
    written = [(f"10.{number // 256}.{number % 256}.0/24", [f"10.{number // 256}.{number % 256}.0/28"])
               for number in range(10_000)]  # fmt: skip
    (match,) = packets.with_peers(PeerMatch(), written)
    assert len(match.cidrs) == len(match.exceptions) == 10_000
    assert packets.number_alone(written) == 0
    overlapping = [*written, ("10.0.0.0/8", [])]
    assert len(list(packets.with_peers(PeerMatch(), overlapping))) == 10_001
    assert packets.number_alone(overlapping) == 10_000


def test_no_peers_are_no_match() -> None:
    assert list(packets.with_peers(PeerMatch(), [])) == []


@pytest.mark.parametrize(
    ("match", "text"),
    [
        (PeerMatch(), "any"),
        (PeerMatch(nothing=True), "nothing"),
        (PeerMatch(("10.0.0.0/8",), exceptions=("10.1.0.0/16",), ports=((443, 443, "tcp"),)),
         "10.0.0.0/8 except 10.1.0.0/16 tcp/443"),
        (PeerMatch(ports=((80, 90, "tcp"), (0, 65535, "udp")), interfaces=("eth0",)), "any tcp/80-90, udp on eth0"),
        (PeerMatch(icmp=((4, 8), (6, None))), "any icmp/8, icmpv6"),
        (PeerMatch(ports=((80, 80, "tcp"),), icmp=((4, 8),)), "any tcp/80 icmp/8"),
        (PeerMatch(groups=(WORLD, PeerGroup("name", "*.example.com"))), "entity world, name *.example.com"),
        (PeerMatch(groups=(PeerGroup.of_workloads(PeerSelector((LabelRequirement("app", "In", ("web",)),))),)),
         "workloads app=web"),
        (PeerMatch(quota=(1024, 60, "pod")), "any up to 1024 bytes in 60 s for each pod"),
        (PeerMatch(tuple(f"10.0.{number}.0/24" for number in range(10))),
         ("10.0.0.0/24, 10.0.1.0/24, 10.0.2.0/24, 10.0.3.0/24, 10.0.4.0/24, 10.0.5.0/24, 10.0.6.0/24, 10.0.7.0/24"
         " and 2 more")),
    ],
)  # fmt: skip
def test_packets_are_named(match: PeerMatch, text: str) -> None:
    assert packets.text(match) == text
