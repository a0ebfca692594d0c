# SPDX-License-Identifier: Apache-2.0
"""Rules about packets and packets near their edges, for tests of the planner."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Final, TypeVar

from hypothesis import strategies as st

from guest_agent.engines.nftables import protocols
from guest_agent.engines.nftables.evaluation import Packet
from hauberk.policy import exemptions, peers
from hauberk.policy.rules import (
    Action,
    Circumstances,
    ObjectKind,
    Operation,
    Origin,
    Peer,
    PeerGroup,
    PeerMatch,
    Rule,
    RuleSet,
    Section,
    Verdict,
    decide,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from guest_agent.engines.network_port import GroupMembers

Item = TypeVar("Item")

CIDRS: Final = (
    "0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.1.2.3/32", "10.1.2.4/30", "10.1.3.0/24",
    "192.168.0.0/16", "192.168.1.0/24", "255.255.255.255/32", "::/0", "fd00::/8", "fd00::/64", "fd00::1/128",
    "fd00:0:0:1::/64", "fe80::/10",
)  # fmt: skip
PORTS: Final = (
    (80, 80, "tcp"), (1, 1000, "tcp"), (443, 8443, "tcp"), (0, 65535, "tcp"), (53, 53, "udp"), (80, 80, "udp"),
    (1, 65535, "udp"), (0, 65535, "igmp"), (0, 65535, "icmp"), (3868, 3868, "sctp"), (81, 90, "tcp"),
    (65535, 65535, "tcp"),
)  # fmt: skip
ICMP: Final = ((4, 8), (4, None), (6, 128), (6, 135), (6, None))
INTERFACES: Final = ("eth0", "eth*", "wlan0", "abcdefghijklmno")
GROUPS: Final = (
    PeerGroup("name", "www.example.com"), PeerGroup("name", "*.example.org"), PeerGroup("entity", "cluster"),
    PeerGroup("entity", "world"),
)  # fmt: skip
MEMBERS: Final[dict[PeerGroup, GroupMembers]] = {
    GROUPS[0]: (("10.1.2.3", 30), ("fd00::1", 60), ("10.1.2.3", 60)),
    GROUPS[1]: (("192.168.1.1", 5), ("192.168.1.2", 5), ("192.168.1.3", None)),
    GROUPS[2]: (("10.0.0.0/8", None), ("fd00::/64", None)),
}
"""The members of each group that is known; the last group is unresolved."""


def rule(section: Section, action: Action, **parts: object) -> Rule:
    """Give a rule about packets; ``parts`` are those of its match, and ``default_deny``."""
    default_deny = parts.pop("default_deny", None)
    match = PeerMatch(**parts)  # type: ignore[arg-type]
    origin = Origin("a-policy", "spec.egress[0]", "file.yaml", 3)
    made = Rule(section, ObjectKind.PEER, "peer", action, origin, match=match)
    return replace(made, default_deny=default_deny)  # type: ignore[arg-type]


def _subset(pool: tuple[Item, ...], most: int) -> st.SearchStrategy[tuple[Item, ...]]:
    return st.lists(st.sampled_from(pool), max_size=most, unique=True).map(tuple)


@st.composite
def rules(draw: st.DrawFn, *, quotas: bool = True) -> Rule:
    """Draw one rule."""
    action = draw(st.sampled_from(Action))
    cidrs = draw(_subset(CIDRS, 4))
    given, excepted = draw(st.booleans()), draw(st.booleans())
    named = draw(_subset(GROUPS if action is not Action.BLOCK else GROUPS[2:3], 2))
    levels = st.sampled_from(("pod", "policy"))
    return rule(
        draw(st.sampled_from((Section.INGRESS, Section.EGRESS))),
        action,
        cidrs=cidrs,
        exceptions=draw(_subset(CIDRS[1:], 2)) if cidrs and excepted else (),
        ports=draw(_subset(PORTS, 3)),
        icmp=draw(_subset(ICMP, 2)) if draw(st.booleans()) else (),
        interfaces=draw(_subset(INTERFACES, 2)) if draw(st.booleans()) else (),
        groups=named if given else (),
        nothing=draw(st.integers(0, 9)) == 0,
        quota=draw(st.none() | st.tuples(st.sampled_from((10**6, 10**7)), st.just(60), levels)) if quotas else None,
        default_deny=draw(st.sampled_from((None, None, True, False))),
    )


def rule_sets(most: int = 6, *, quotas: bool = True) -> st.SearchStrategy[RuleSet]:
    """Draw a rule set about packets."""
    return st.builds(
        RuleSet,
        st.lists(rules(quotas=quotas), max_size=most).map(tuple),
        st.sampled_from(Verdict),
        st.lists(
            st.tuples(st.sampled_from((Section.INGRESS, Section.EGRESS)), st.sampled_from(Verdict)), max_size=1
        ).map(tuple),
    )


def _edges(cidr: str) -> list[str]:
    network = ip_network(cidr)
    first, last = int(network.network_address), int(network.broadcast_address)
    kind = type(network.network_address)
    return [
        str(kind(number)) for number in {first - 1, first, last, last + 1} if 0 <= number < 1 << network.max_prefixlen
    ]


ADDRESSES: Final = tuple(
    sorted({edge for cidr in (*CIDRS, "192.168.1.2/31") for edge in _edges(cidr)} - {"255.255.255.255"}, key=str)
)
"""The edges of every network."""
_EDGE_PORTS = tuple(
    sorted({edge for low, high, _ in PORTS for edge in (low - 1, low, high, high + 1) if 0 < edge < 65536})
)


def _near(match: PeerMatch | None) -> tuple[list[str], list[tuple[str, int | None]], list[str]]:
    """Give addresses, protocols with ports, and interfaces at the edges of a match; of any match without one."""
    if match is None or match.nothing:
        match = PeerMatch()
    members = [each for group in match.groups for each, _ in MEMBERS.get(group, ())]
    addresses = [edge for each in (*match.cidrs, *match.exceptions, *members) for edge in _edges(each)]
    kinds: list[tuple[str, int | None]] = [(peers.ICMP_OF[family], None) for family, _ in match.icmp]
    for low, high, protocol in match.ports:
        ported = protocols.number(protocol) in protocols.PORTED
        edges = [edge for edge in (low - 1, low, high, high + 1) if 0 < edge < 65536] if ported else []
        kinds += [(protocol, edge) for edge in (*edges, None)]
    names = [name for each in match.interfaces for name in (each.removesuffix("*"), each.removesuffix("*") + "0")]
    others = ("tcp", "udp", "sctp", "igmp", "icmp", "icmpv6", "esp")
    return (
        [each for each in addresses if each != "255.255.255.255"] or list(ADDRESSES),
        kinds or [(each, port) for each in others for port in _EDGE_PORTS if each in others[:3]] + [("icmpv6", None)],
        names or ["eth0", "eth1", "eth", "wlan0", "wlan", "lo", "abcdefghijklmno"],
    )


@st.composite
def packets(draw: st.DrawFn, section: Section, rules_near: Iterable[Rule]) -> tuple[Packet, Peer]:
    """Draw the first packet of a flow, near what one of some rules says, and the question about it."""
    found = [each.match for each in rules_near if each.section is section and isinstance(each.match, PeerMatch)]
    near, anywhere = _near(draw(st.sampled_from([None, *found, *found]))), _near(None)
    address = draw(st.sampled_from((near if draw(st.integers(0, 4)) else anywhere)[0]))
    protocol, port = draw(st.sampled_from((near if draw(st.integers(0, 4)) else anywhere)[1]))
    interface = draw(st.sampled_from((near if draw(st.integers(0, 4)) else anywhere)[2]))
    version = ip_address(address).version
    ours = "10.99.99.99" if version == 4 else "fd99::99"
    number = protocols.number(protocol)
    icmp_type = draw(st.sampled_from((0, 8, 128, 135))) if number == protocols.ICMP[version] else None
    source_port = draw(st.sampled_from((67, 68, 546, 547, 40000))) if port is not None else None
    incoming = section is Section.INGRESS
    packet = Packet(
        address if incoming else ours,
        ours if incoming else address,
        number,
        source_port,
        port,
        icmp_type,
        255,
        interface if incoming else "",
        "" if incoming else interface,
    )
    known = [group for group in MEMBERS if any(ip_address(address) in ip_network(each) for each, _ in MEMBERS[group])]
    peer = Peer(
        address,
        protocol,
        port,
        interface,
        icmp_type,
        tuple("a.example.org" if "*" in group.value else group.value for group in known if group.kind == "name"),
        tuple(group.value for group in known if group.kind == "entity"),
        source_port=source_port,
    )
    return packet, peer


def decided(
    rule_set: RuleSet, section: Section, peer: Peer, *, beyond: bool, exempt: Iterable[exemptions.Exemption]
) -> Verdict:
    """Give what policies say of a packet that begins a flow."""
    matching = [
        each
        for each in rule_set.rules
        if each.section is section and isinstance(each.match, PeerMatch) and peers.matches(each.match, peer)
    ]
    known = Circumstances(peer=peer, beyond_quota=beyond, exemptions=tuple(exempt))
    operation = Operation.RECEIVE if section is Section.INGRESS else Operation.SEND
    return decide(rule_set, matching, operation, source=None, owner=False, known=known).verdict
