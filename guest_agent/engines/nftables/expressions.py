# SPDX-License-Identifier: Apache-2.0
"""Expressions of nft's JSON, as far as the planner needs them (libnftables-json(5)).

Everything here is a constant of ours or a number. What policies name is only ever an element of a set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hauberk.policy.rules import Section

if TYPE_CHECKING:
    from collections.abc import Iterable

    from guest_agent.engines.nftables.ruleset import Expression, Verdict
    from guest_agent.engines.nftables.steps import Lookup, Part

INTERFACE: Final = {Section.INGRESS: "iifname", Section.EGRESS: "oifname"}
"""The interface that packets of a direction come by."""
ACCEPT: Final[Verdict] = ("accept",)
DROP: Final[Verdict] = ("drop",)


def statement(verdict: Verdict) -> Expression:
    """Give a verdict as the end of a rule."""
    return {verdict[0]: {"target": verdict[1]} if len(verdict) > 1 else None}


def equals(left: Expression, right: object) -> Expression:
    """Give a match with a constant, or with ``@set``."""
    return {"match": {"op": "==", "left": left, "right": right}}


def meta(key: str) -> Expression:
    """Give what the kernel knows of a packet beside its bytes."""
    return {"meta": {"key": key}}


def payload(protocol: str, field: str) -> Expression:
    """Give a field of a header."""
    return {"payload": {"protocol": protocol, "field": field}}


def state(*states: str) -> Expression:
    """Give a match with one of conntrack's states; a mask of bits, not a set."""
    right = states[0] if len(states) == 1 else list(states)
    return {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": right}}


def differs(left: Expression, right: str) -> Expression:
    """Give a match with anything but a constant."""
    return {"match": {"op": "!=", "left": left, "right": right}}


def within(left: Expression, network: str, length: int) -> Expression:
    """Give a match with the addresses of a network."""
    return equals(left, {"prefix": {"addr": network, "len": length}})


ESTABLISHED: Final = state("established", "related")
JUDGED: Final = state("established")
RELATED: Final = state("related")
INVALID: Final = state("invalid")
REPLY: Final = equals({"ct": {"key": "direction"}}, "reply")
MANY: Final = ("broadcast", "multicast")
"""Kinds of destinations whose packets go to several sockets; the packet filter finds one of them."""


def destination_is(kind: str) -> Expression:
    """Give a match with what the routing table says of the destination."""
    return equals({"fib": {"result": "type", "flags": ["daddr"]}}, kind)


TRANSLATED: Final = 1 << 5
"""The bit of conntrack's status that says that the destination is another than was asked for (IPS_DST_NAT)."""
UNTRANSLATED: Final = equals({"&": [{"ct": {"key": "status"}}, TRANSLATED]}, 0)


_PEER_ADDRESS: Final = {Section.INGRESS: "saddr", Section.EGRESS: "daddr"}
_ADDRESSES: Final = {"address4": "ip", "address6": "ip6"}
_CONSTANT: Final[dict[str, Expression]] = {
    "protocol": meta("l4proto"),
    "icmp4": payload("icmp", "type"),
    "icmp6": payload("icmpv6", "type"),
}


def part(what: Part, section: Section, *, reply: bool = False) -> Expression:
    """Give what nft calls a part of a packet: of the peer's side, and of a reply's port the other one."""
    if what in _ADDRESSES:
        return payload(_ADDRESSES[what], _PEER_ADDRESS[section])
    if what == "port":
        return payload("th", "sport" if reply else "dport")
    if what == "interface":
        return meta(INTERFACE[section])
    return _CONSTANT[what]


def guards(parts: Iterable[Part]) -> tuple[Expression, ...]:
    """Give what has to hold before parts may be read: ICMP of one family is not looked for in the other."""
    families = {"icmp4": "ipv4", "icmp6": "ipv6"}
    return tuple(equals(meta("nfproto"), families[one]) for one in parts if one in families)


def key(parts: tuple[Part, ...], section: Section, *, reply: bool = False) -> Expression:
    """Give the key of a look-up."""
    keys = [part(one, section, reply=reply) for one in parts]
    return keys[0] if len(keys) == 1 else {"concat": keys}


def lookup(step: Lookup, section: Section, *, reply: bool = False) -> tuple[Expression, ...]:
    """Give the match of a look-up in a set."""
    protocol = () if step.protocol is None else (equals(meta("l4proto"), step.protocol),)
    return (*guards(step.parts), *protocol, equals(key(step.parts, section, reply=reply), f"@{step.set_name}"))
