# SPDX-License-Identifier: Apache-2.0
"""Reads the beginning of an IP packet: whose, to whom, which protocol, which ports. Pure, and total.

The bytes come from the network, are cut off anywhere, and may say anything. Nothing here raises: what cannot be read is
None, and a packet that is none at all is None as a whole. Sources: RFC 791, RFC 8200 (extension headers), RFC 792,
RFC 4443.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Final

ICMP: Final = 1
TCP: Final = 6
UDP: Final = 17
ICMPV6: Final = 58
_PORTED: Final = frozenset({TCP, UDP, 33, 132, 136})  # and DCCP, SCTP, UDP-Lite: ports in their first four bytes
_MAXIMUM_EXTENSIONS: Final = 16

_IPV4_HEADER: Final = 20
_IPV6_HEADER: Final = 40
_UDP_HEADER: Final = 8
_FRAGMENT: Final = 44
_AUTHENTICATION: Final = 51
_EXTENSIONS: Final = frozenset({0, 43, 60, 135, 139, 140})  # their length in eights of bytes, the first not counted


@dataclass(frozen=True, slots=True)
class Packet:
    """What could be read. ``protocol`` is the number of what IP carries; ``payload`` what UDP does, as far as told."""

    source: str
    destination: str
    protocol: int
    source_port: int | None = None
    destination_port: int | None = None
    icmp_type: int | None = None
    icmp_code: int | None = None
    payload: bytes = b""


def parse(data: bytes) -> Packet | None:
    """Read a packet from its IP header on; None when it has none."""
    version = data[0] >> 4 if data else 0
    if version == 4:  # noqa: PLR2004 - IPv4
        return _ipv4(data)
    return _ipv6(data) if version == 6 else None  # noqa: PLR2004 - IPv6


def _ipv4(data: bytes) -> Packet | None:
    if len(data) < _IPV4_HEADER:
        return None
    source, destination = str(ipaddress.IPv4Address(data[12:16])), str(ipaddress.IPv4Address(data[16:20]))
    length = 4 * (data[0] & 0xF)
    fragment = int.from_bytes(data[6:8], "big") & 0x1FFF
    if length < _IPV4_HEADER or fragment:
        return Packet(source, destination, data[9])
    return _transport(source, destination, data[9], data[length:])


def _ipv6(data: bytes) -> Packet | None:
    if len(data) < _IPV6_HEADER:
        return None
    source, destination = str(ipaddress.IPv6Address(data[8:24])), str(ipaddress.IPv6Address(data[24:40]))
    kind, rest = data[6], data[_IPV6_HEADER:]
    for _ in range(_MAXIMUM_EXTENSIONS):
        if kind == _FRAGMENT:
            if len(rest) < 8 or int.from_bytes(rest[2:4], "big") & 0xFFF8:  # noqa: PLR2004 - bytes of this header
                return Packet(source, destination, rest[0] if rest else kind)
            length = 8
        elif kind == _AUTHENTICATION and len(rest) > 1:
            length = 4 * (rest[1] + 2)
        elif kind in _EXTENSIONS and len(rest) > 1:
            length = 8 * (rest[1] + 1)
        else:
            break
        kind, rest = rest[0], rest[length:]
    return _transport(source, destination, kind, rest)


def _transport(source: str, destination: str, protocol: int, data: bytes) -> Packet:
    if protocol in {ICMP, ICMPV6} and len(data) > 1:
        return Packet(source, destination, protocol, icmp_type=data[0], icmp_code=data[1])
    if protocol not in _PORTED or len(data) < 4:  # noqa: PLR2004 - two ports
        return Packet(source, destination, protocol)
    first, second = int.from_bytes(data[:2], "big"), int.from_bytes(data[2:4], "big")
    payload = b""
    if protocol == UDP and len(data) >= _UDP_HEADER:
        payload = data[_UDP_HEADER : max(_UDP_HEADER, int.from_bytes(data[4:6], "big"))]
    return Packet(source, destination, protocol, first, second, payload=payload)
