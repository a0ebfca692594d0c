# SPDX-License-Identifier: Apache-2.0
"""Protocols on top of IP: names of policies and numbers of packets (IANA, "Protocol Numbers").

A table of our own, since ``/etc/protocols`` differs from machine to machine.
"""

from __future__ import annotations

from typing import Final

NUMBERS: Final = {
    "icmp": 1, "igmp": 2, "ipip": 4, "tcp": 6, "udp": 17, "dccp": 33, "ipv6": 41, "gre": 47, "esp": 50, "ah": 51,
    "icmpv6": 58, "vrrp": 112, "l2tp": 115, "sctp": 132, "udplite": 136,
}  # fmt: skip
"""Number of each protocol that a rule can name."""
PORTED: Final = frozenset({NUMBERS["tcp"], NUMBERS["udp"], NUMBERS["sctp"]})
"""Protocols whose ports a rule can name; all have the destination port in the same place."""
SOCKETS_NOT_FOUND: Final = tuple(sorted(NUMBERS[name] for name in ("dccp", "l2tp", "sctp", "udplite")))
"""Transports that a program gets packets of without a privilege and whose socket the kernel's filter cannot find."""
ICMP: Final = {4: NUMBERS["icmp"], 6: NUMBERS["icmpv6"]}
"""The protocol that carries ICMP, by family."""

_NAMES: Final = {number: name for name, number in NUMBERS.items()}
_LAST: Final = 255


def number(text: str) -> int:
    """Give the number of a protocol's name, or of a number in decimal. Raises ValueError."""
    if text in NUMBERS:
        return NUMBERS[text]
    if text.isascii() and text.isdigit() and int(text) <= _LAST:
        return int(text)
    message = f"found the protocol {text!r}, expected one of {', '.join(NUMBERS)} or a number up to {_LAST}"
    raise ValueError(message)


def name(protocol: int) -> str:
    """Give the name of a protocol's number as rules have it; without one, the number in decimal."""
    return _NAMES.get(protocol, str(protocol))
