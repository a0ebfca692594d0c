# SPDX-License-Identifier: Apache-2.0
"""What a rule about packets is about: held against the words of its parts, taken one by one."""

from __future__ import annotations

import ipaddress
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hauberk.policy import peers
from hauberk.policy.index import RuleIndex
from hauberk.policy.rules import (
    Action,
    LabelRequirement,
    ObjectKind,
    Origin,
    Peer,
    PeerGroup,
    PeerMatch,
    PeerSelector,
    Rule,
    Section,
)
from tests.unit.policy.test_peer_classes import matches, said_peers


def in_words(match: PeerMatch, peer: Peer) -> bool:
    """Say the definition again, as slowly as it reads."""
    address = ipaddress.ip_address(peer.address)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped

    def within(cidrs: tuple[str, ...]) -> bool:
        networks = map(ipaddress.ip_network, cidrs)
        return any(network.version == address.version and address in network for network in networks)

    whole = range(65536)
    kinds = [
        peer.protocol == protocol
        and (peer.port in range(first, last + 1) if peer.port is not None else range(first, last + 1) == whole)
        for first, last, protocol in match.ports
    ]
    kinds += [
        (peer.protocol, address.version) == ({4: "icmp", 6: "icmpv6"}[family], family)
        and (kind is None or kind == peer.icmp_type)
        for family, kind in match.icmp
    ]
    on_interface = [
        peer.interface != "" and (peer.interface == name or (name[-1] == "*" and peer.interface.startswith(name[:-1])))
        for name in match.interfaces
    ]
    of_peer = [within(match.cidrs) and not within(match.exceptions)] if match.cidrs else []
    of_peer += [peers.belongs(group, peer) for group in match.groups]
    return not match.nothing and all(any(part) or not part for part in (kinds, on_interface, of_peer))


@given(matches, said_peers)
def test_a_rule_is_about_what_its_parts_say(match: PeerMatch, peer: Peer) -> None:
    assert peers.matches(match, peer) is in_words(match, peer)


@given(st.lists(matches, max_size=5), said_peers)
def test_the_index_finds_the_rules_about_a_packet(some: list[PeerMatch], peer: Peer) -> None:
    rules = [
        Rule(Section.EGRESS, ObjectKind.PEER, str(number), Action.BLOCK, Origin("p", "f"), match=match)
        for number, match in enumerate(some)
    ]
    assert RuleIndex(rules).matching_object(peer) == tuple(
        rule for rule, match in zip(rules, some, strict=True) if peers.matches(match, peer)
    )


@pytest.mark.parametrize(
    ("pattern", "names", "others"),
    [
        ("www.example.com", ("www.example.com",), ("example.com", "a.www.example.com", "wwwxexample.com")),
        ("*.example.com", ("a.example.com", "a-b_1.example.com"), ("example.com", "a.b.example.com", ".example.com")),
        ("**.example.com", ("a.example.com", "a.b.example.com"), ("example.com", "aexample.com")),
        ("*", ("com", "a.b.c"), ("",)),
        ("a*.com", ("a.com", "ab.com"), ("ba.com", "a.b.com", "a")),
        ("*a.b*c.com", ("a.bc.com", "xa.bxc.com"), ("a.b.com", "a.bc.com.x")),
        ("a.*", ("a.com",), ("a", "a.", "a.b.com")),
    ],
)
def test_patterns_of_names(pattern: str, names: tuple[str, ...], others: tuple[str, ...]) -> None:
    assert all(peers.name_matches(pattern, name) for name in names)
    assert not any(peers.name_matches(pattern, name) for name in others)


LABEL = st.text("ab*", min_size=1, max_size=3).filter(lambda label: "**" not in label)
NAME = st.lists(st.text("ab-", min_size=1, max_size=3), min_size=1, max_size=3).map(".".join)


@given(st.lists(LABEL, min_size=2, max_size=3).map(".".join), NAME)
def test_patterns_of_names_are_what_their_regular_expressions_are(pattern: str, name: str) -> None:
    expression = re.escape(pattern).replace(r"\*", "[-a-z0-9_]*")
    assert peers.name_matches(pattern, name) is (re.fullmatch(expression, name) is not None)


def test_a_name_made_to_stall_does_not() -> None:
    assert not peers.name_matches("*a*a*a*a*a*a*a*a*a*b.com", "a" * 63 + ".com")


@pytest.mark.parametrize(
    ("requirement", "text", "held", "refused"),
    [
        (LabelRequirement("app", "In", ("a", "b")), "app in (a,b)", [{"app": "a"}], [{}, {"app": "c"}]),
        (LabelRequirement("app", "In", ("a",)), "app=a", [{"app": "a"}], [{}, {"app": ""}]),
        (LabelRequirement("app", "In", ()), "app in ()", [], [{}, {"app": ""}]),
        (LabelRequirement("app", "NotIn", ("a",)), "app notin (a)", [{}, {"app": "b"}], [{"app": "a"}]),
        (LabelRequirement("app", "Exists"), "app", [{"app": ""}], [{}, {"x": "app"}]),
        (LabelRequirement("app", "DoesNotExist"), "!app", [{}], [{"app": ""}]),
    ],
)
def test_requirements_hold_as_with_kubernetes(
    requirement: LabelRequirement, text: str, held: list[dict[str, str]], refused: list[dict[str, str]]
) -> None:
    assert str(requirement) == text
    assert all(requirement.holds(labels) for labels in held)
    assert not any(requirement.holds(labels) for labels in refused)


def test_workloads_are_selected_by_labels_and_namespace() -> None:
    web = LabelRequirement("app", "In", ("web",))
    selector = PeerSelector((web,), ("shop", "default"))
    assert str(PeerGroup.of_workloads(selector)) == "workloads app=web in namespaces shop,default"
    assert selector.selects({"app": "web"}, "shop")
    assert selector.selects({"app": "web"}, "")  # one that is not known is the default
    assert not selector.selects({"app": "web"}, "other")
    assert not selector.selects({}, "shop")
    named = LabelRequirement("kubernetes.io/metadata.name", "NotIn", ("shop",))
    assert str(PeerSelector(namespace_labels=(named,))) == (
        "any in namespaces with kubernetes.io/metadata.name notin (shop)"
    )
    assert PeerSelector(namespace_labels=(named,)).selects({}, "other")
    assert not PeerSelector(namespace_labels=(named,)).selects({}, "shop")
    # of labels that cannot be known here, nothing is believed
    assert not PeerSelector(namespace_labels=(LabelRequirement("team", "DoesNotExist"),)).selects({}, "other")
    assert not PeerSelector(namespaces=()).selects({}, "shop")
    assert str(PeerSelector(namespaces=())) == "any in namespaces none"


def test_exceptions_without_networks_cannot_be_said() -> None:
    with pytest.raises(ValueError, match=r"10\.0\.0\.0/8 and no networks"):
        PeerMatch(exceptions=("10.0.0.0/8",))
