# SPDX-License-Identifier: Apache-2.0
"""Texts of network policies -> values: addresses, ports, types of ICMP, interfaces, names, quotas.

Decided once here, for the check and for the rules. The readings are those of nftables and of Go's ``time`` package,
which KubeArmor hands these texts to, without what these would take besides: host names, sets, service names of the
machine at hand.
"""

from __future__ import annotations

import ipaddress
import re
from fractions import Fraction
from typing import Final, NoReturn

from hauberk.errors import HauberkError
from hauberk.policy.vocabulary import ICMP_TYPES, SERVICES

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAXIMUM_QUOTA = 2**63 - 1
"""Most bytes of a quota: what the kernel's counter holds (nft_quota refuses more)."""
MAXIMUM_DURATION = 2**32 - 1
"""Longest period of a quota in seconds."""
MAXIMUM_PORT = 65535
MAXIMUM_ICMP_TYPE = 255
_MAXIMUM_INTERFACE_NAME = 15
_MAXIMUM_DURATION_TEXT = 100

_UNITS = {"K": 1024, "M": 1024**2, "G": 1024**3, "": 1024**3}
_LIMIT = re.compile(r"([0-9]{1,20})(?:([KMG])B?)?")
_DURATION = re.compile(r"([0-9]{1,20}(?:\.[0-9]{0,20})?|\.[0-9]{1,20})(ns|us|\u00b5s|\u03bcs|ms|s|m|h)")
_SECONDS = {
    "ns": Fraction(1, 10**9), "us": Fraction(1, 10**6), "\u00b5s": Fraction(1, 10**6), "\u03bcs": Fraction(1, 10**6),
    "ms": Fraction(1, 1000), "s": Fraction(1), "m": Fraction(60), "h": Fraction(3600),
}  # fmt: skip
_INTERFACE = re.compile(r"[^\s/:*\x00]+\*?")
_MAXIMUM_NAME = 253
_NAME = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*")
_NAME_PATTERN = re.compile(r"\*|(\*\*\.)?[a-z0-9_*-]{1,63}(\.[a-z0-9_*-]{1,63})*")


_MAPPED: Final = ipaddress.ip_network("::ffff:0:0/96")  # RFC 4291, 2.5.5.2


class TrafficError(HauberkError):
    """A text is not what a network policy takes at its place. ``expected`` and ``advice`` are parts of a message."""

    def __init__(self, expected: str, advice: str) -> None:
        """Take what would be right, and what to do."""
        self.expected = expected
        self.advice = advice
        super().__init__(f"expected {expected}. {advice}")


def network(text: str) -> Network:
    """Give the network of a ``cidr``.

    An address without a prefix length stands for itself alone; bits behind the prefix are cleared, as the kernel
    compares: ``10.1.2.3/8`` is ``10.0.0.0/8``. :func:`has_host_bits` tells that there were some. IPv4 in the form of
    IPv6 is refused, since no packet has such an address: a Block rule would match nothing. Raises
    :class:`TrafficError`.
    """
    address, slash, length = text.partition("/")
    decimal = length.isascii() and length.isdigit() and len(length) <= 3  # noqa: PLR2004 - 128 is the longest
    if "%" in text or (slash and not decimal):
        _refuse_network()
    try:
        found = ipaddress.ip_network(f"{address}/{int(length)}" if slash else address, strict=False)
    except ValueError:
        _refuse_network()
    if holds(_MAPPED, found):
        _refuse("a network of IPv4 written as one, since no packet has such an address", "Write it as 10.0.0.0/8")
    return found


def _refuse(expected: str, advice: str) -> NoReturn:
    raise TrafficError(expected, advice)


def _refuse_network() -> NoReturn:
    _refuse("an IPv4 or IPv6 network such as 10.0.0.0/8 or fd00::/8", "Write an address, '/' and a prefix length")


def has_host_bits(text: str) -> bool:
    """Tell whether an accepted ``cidr`` names an address within its network rather than the network itself."""
    return ipaddress.ip_address(text.partition("/")[0]) != network(text).network_address


def holds(whole: Network, part: Network) -> bool:
    """Tell whether a network is a part of another, or the same."""
    return whole.version == part.version and whole.prefixlen <= part.prefixlen and part.network_address in whole


def port_number(text: str) -> int:
    """Give the port that a number or a service's name stands for. Raises :class:`TrafficError`."""
    if re.fullmatch(r"[1-9][0-9]{0,4}", text) and int(text) <= MAXIMUM_PORT:
        return int(text)
    if text.lower() in SERVICES:
        return SERVICES[text.lower()]
    if re.fullmatch(r"[0-9]+ *[-:] *[0-9]+", text):
        _refuse("one port", "Write a range's first port as port, and its last as endPort")
    if re.fullmatch(r"[-+]?[0-9]+", text):
        _refuse(f"a port from 1 to {MAXIMUM_PORT}", "Choose one of them")
    _refuse("a port number or the name of a well-known service", "Write the number, in quotes")


def is_service(text: str) -> bool:
    """Tell whether a ``port`` that was accepted is a service's name rather than a number."""
    return text.lower() in SERVICES


def icmp_type(family: int, text: str | int) -> int:
    """Give the type of ICMP (``family`` 4) or ICMPv6 (6) that a number or a name stands for.

    Raises :class:`TrafficError`.
    """
    names = ICMP_TYPES[family]
    if isinstance(text, str) and text in names:
        return names[text]
    if isinstance(text, int) or re.fullmatch(r"0|[1-9][0-9]{0,2}", text):
        number = int(text)
        if 0 <= number <= MAXIMUM_ICMP_TYPE:
            return number
    _refuse(
        f"a type of ICMP for IPv{family}: a number from 0 to {MAXIMUM_ICMP_TYPE} or a name such as EchoRequest",
        f"Write the number, or one of {', '.join(names)}",
    )


def domain_name(text: str) -> str:
    """Give a domain name as names are compared: in lower case and without a dot at its end.

    Raises :class:`TrafficError`.
    """
    name = text.lower().removesuffix(".")
    if len(name) > _MAXIMUM_NAME or not _NAME.fullmatch(name):
        _refuse("a domain name such as www.example.com", "Write the whole name in ASCII, other letters as xn--…")
    return name


def domain_pattern(text: str) -> str:
    """Give a pattern of domain names in lower case and without a dot at its end.

    ``*`` stands for any part of one label, alone for every name, and ``**.`` at the beginning for one label or more.
    Raises :class:`TrafficError`.
    """
    pattern = text.lower().removesuffix(".")
    labels = pattern.removeprefix("**.")
    if len(pattern) > _MAXIMUM_NAME or not _NAME_PATTERN.fullmatch(pattern) or "**" in labels:
        _refuse(
            "a pattern of domain names such as *.example.com",
            "Write letters, digits, '-', '.' and '*'; '**.' may stand at the beginning",
        )
    return pattern


def check_interface(text: str) -> None:
    """Raise :class:`TrafficError` unless ``text`` names a network interface, or with ``*`` at its end several."""
    name = text.removesuffix("*")
    fits = len(name.encode(errors="surrogateescape")) <= _MAXIMUM_INTERFACE_NAME
    if not (_INTERFACE.fullmatch(text) and fits) or text in (".", ".."):
        _refuse(
            f"the name of a network interface, at most {_MAXIMUM_INTERFACE_NAME} bytes without '/', ':' and spaces",
            "Write a name as `ip link` shows it; '*' may stand at its end alone",
        )


def quota_bytes(text: str) -> int:
    """Give the bytes of a ``limit``: digits and K, KB, M, MB, G, GB (powers of 1024); without a unit, gigabytes.

    Raises :class:`TrafficError`.
    """
    found = _LIMIT.fullmatch(text)
    if not found:
        _refuse("an amount such as 500MB, 2G or 64K", "Write digits and one of the units KB, MB, GB, K, M, G")
    number = int(found[1]) * _UNITS[found[2] or ""]
    if number > MAXIMUM_QUOTA:
        _refuse(f"at most {MAXIMUM_QUOTA} bytes", "Write a smaller amount; the kernel counts no further")
    return number


def duration_seconds(text: str) -> int:
    """Give the seconds of a ``duration`` in Go's notation, such as ``1h30m``. Whole seconds, at least one.

    Raises :class:`TrafficError`.
    """
    parts = list(_DURATION.finditer(text[:_MAXIMUM_DURATION_TEXT]))
    if not text or "".join(part[0] for part in parts) != text:
        _refuse("a duration such as 45s, 30m or 1h30m", "Write numbers, each with its unit: h, m or s")
    total = sum(Fraction(part[1]) * _SECONDS[part[2]] for part in parts)
    if not 1 <= total <= MAXIMUM_DURATION or total.denominator != 1:
        _refuse(f"whole seconds from 1 to {MAXIMUM_DURATION}", "Write a duration of whole seconds")
    return int(total)
