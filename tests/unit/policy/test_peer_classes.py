# SPDX-License-Identifier: Apache-2.0
"""For whatever packet, one is found that any two of its rules are about, and else only some of its others."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hauberk.policy import objects, peer_classes, peers
from hauberk.policy.peer_classes import TooManyPeersError
from hauberk.policy.rules import LabelRequirement, Operation, Peer, PeerGroup, PeerMatch, PeerSelector

CIDRS = (
    "0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/9", "10.128.0.0/9", "10.0.0.1/32", "::/0", "::/1", "fd00::/8", "fd00::1/128",
    "::ffff:10.0.0.0/104",
)  # fmt: skip
ADDRESSES = ("0.0.0.1", "10.0.0.1", "10.1.0.0", "255.255.255.255", "::", "fd00::1", "::ffff:10.0.0.1", "2001:db8::")
NAMES = ("a.b", "x.a.b", "xy.a.b", "b", "x.y.a.b", "a", "q")
KEYS, VALUES = ("app", "tier"), ("a", "b", "")


def few(strategy: st.SearchStrategy[object], most: int = 2) -> st.SearchStrategy[tuple[object, ...]]:
    return st.lists(strategy, max_size=most, unique=True).map(tuple)


requirements = few(
    st.builds(
        LabelRequirement,
        st.sampled_from(KEYS),
        st.sampled_from(("In", "NotIn", "Exists", "DoesNotExist")),
        few(st.sampled_from(VALUES)),
    )
)
namespace_requirements = few(
    st.builds(
        LabelRequirement,
        st.sampled_from(("kubernetes.io/metadata.name", "kubernetes.io/metadata.name", "team")),
        st.sampled_from(("In", "NotIn", "Exists")),
        few(st.sampled_from(("default", "shop"))),
    ),
    1,
)
groups = st.one_of(
    st.builds(PeerGroup, st.just("name"), st.sampled_from(("a.b", "*.a.b", "*", "x*.a.b", "**.b", "*.b", "a*"))),
    st.builds(PeerGroup, st.just("entity"), st.sampled_from(("world", "host", "cluster"))),
    st.builds(
        PeerSelector, requirements, st.none() | few(st.sampled_from(("default", "shop"))), namespace_requirements
    ).map(PeerGroup.of_workloads),
)
matches = st.tuples(few(st.sampled_from(CIDRS)), few(st.sampled_from(CIDRS))).flatmap(
    lambda addresses: st.builds(
        PeerMatch,
        cidrs=st.just(addresses[0]),
        exceptions=st.just(addresses[1] if addresses[0] else ()),
        interfaces=few(st.sampled_from(("eth0", "eth*", "*", "e*", "ethx", "lo", "l*"))),
        ports=few(
            st.sampled_from(((0, 65535, "tcp"), (1, 443, "tcp"), (443, 1000, "tcp"), (53, 53, "udp"),
                             (0, 65535, "vrrp"), (0, 65535, "icmp"))),
        ),
        icmp=few(st.tuples(st.sampled_from((4, 6)), st.sampled_from((None, 0, 8, 255)))),
        groups=few(groups),
        nothing=st.sampled_from((False, False, False, True)),
    )
)  # fmt: skip
said_peers = st.builds(
    Peer,
    st.sampled_from(ADDRESSES),
    st.sampled_from(("tcp", "udp", "sctp")),
    st.none() | st.sampled_from((0, 1, 53, 443, 500, 65535)),
    st.sampled_from(("", "eth0", "eth1", "ethx", "e", "wlan0", "l2")),
    names=few(st.sampled_from(NAMES), 3),
    entities=few(st.sampled_from(("world", "host", "cluster", "health")), 3),
    labels=st.none()
    | st.dictionaries(st.sampled_from(KEYS), st.sampled_from((*VALUES, "new"))).map(lambda found: tuple(found.items())),
    namespace=st.sampled_from(("", "default", "shop", "else")),
) | st.builds(
    Peer,
    st.sampled_from(("10.0.0.1", "11.0.0.1", "::ffff:10.0.0.1")),
    st.sampled_from(("icmp", "vrrp", "esp", "")),
    names=few(st.sampled_from(NAMES), 3),
) | st.builds(
    Peer, st.sampled_from(("fd00::1", "::7")), st.just("icmpv6"), icmp_type=st.none() | st.sampled_from((0, 8, 9))
)  # fmt: skip


def about(some: list[PeerMatch], peer: Peer) -> frozenset[int]:
    return frozenset(number for number, match in enumerate(some) if peers.matches(match, peer))


@given(st.lists(matches, max_size=5), st.lists(said_peers, max_size=8))
@settings(max_examples=300)
def test_a_packet_is_found_for_every_two_rules_about_one(some: list[PeerMatch], asked: list[Peer]) -> None:
    found = peer_classes.peer_classes(some)
    for numbers, peer in found.items():
        assert about(some, peer) == numbers
        assert objects.read(Operation.SEND, objects.peer_text(peer)) is not None
        assert about(some, objects.read(Operation.SEND, objects.peer_text(peer))) == numbers  # type: ignore[arg-type]
    for peer in asked:
        numbers = about(some, peer)
        if not numbers:
            assert numbers in found
        for two in itertools.combinations_with_replacement(numbers, 2):
            assert any(numbers >= other >= frozenset(two) for other in found)


@given(st.lists(matches, max_size=5), st.data())
def test_only_what_is_relevant_is_looked_for(some: list[PeerMatch], data: st.DataObject) -> None:
    relevant = data.draw(st.sets(st.integers(0, max(len(some) - 1, 0))))
    everything = peer_classes.peer_classes(some)
    assert peer_classes.peer_classes(some, relevant).keys() == {numbers for numbers in everything if numbers & relevant}


def test_thousands_of_networks_are_as_many_classes() -> None:
    some = [
        PeerMatch((f"10.{number >> 8}.{number & 255}.0/24",), ports=((443, 443, "tcp"),)) for number in range(3_000)
    ]
    found = peer_classes.peer_classes(some)
    assert found.keys() == {frozenset(), *(frozenset({number}) for number in range(3_000))}
    assert peer_classes.peer_classes(some, {7}) == {frozenset({7}): Peer("10.0.7.0", "tcp", 443)}


def test_many_names_in_rules_of_their_own_do_not_multiply() -> None:
    some = [PeerMatch(groups=(PeerGroup("name", f"{number}.example.com"),)) for number in range(40)]
    found = peer_classes.peer_classes(some)
    assert len(found) == 1 + 40 + 40 * 39 // 2


@pytest.mark.parametrize(
    "some",
    [
        [
            *(PeerMatch((f"10.0.{number}.0/24",)) for number in range(20)),
            *(PeerMatch(interfaces=(f"e{number}",)) for number in range(20)),
        ],
        [
            PeerMatch(groups=(PeerGroup.of_workloads(PeerSelector((LabelRequirement(f"k{number}", "Exists"),))),))
            for number in range(10)
        ],
    ],
    ids=["networks and interfaces", "labels"],
)  # fmt: skip
def test_what_multiplies_ends_in_an_error(some: list[PeerMatch], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_classes, "MAXIMUM_CLASSES", 100)
    with pytest.raises(TooManyPeersError, match="more than 100"):
        peer_classes.peer_classes(some)
