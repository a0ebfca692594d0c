# SPDX-License-Identifier: Apache-2.0
"""The settings about networks in the agent's configuration, read strictly: a misspelt exemption must not become none.

Each function takes what YAML gave for one key and raises ValueError, whose message says what was found and expected.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hauberk.policy import exemptions
from hauberk.policy.rules import PeerMatch, Section

if TYPE_CHECKING:
    from hauberk.policy.exemptions import Exemption

RESOLVER_FILES: Final = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))
"""The machine's resolvers; and where these are a stub on the loopback interface, whom that stub asks."""
_KNOWN: Final = ("cidr", "ports", "protocol", "direction")
_PROTOCOLS: Final = ("tcp", "udp", "sctp")
_DIRECTIONS: Final = {"ingress": Section.INGRESS, "egress": Section.EGRESS, "both": None}
_RANGE: Final = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?")
_LAST_PORT: Final = 65535
_LABEL: Final = re.compile(r"[A-Za-z0-9][-A-Za-z0-9_./]*")
_ENTITY: Final = re.compile(r"[a-z0-9][-a-z0-9]*")
_GIVEN: Final = frozenset({"all", "host"})
"""Entities that mean the same on every machine."""
_MAXIMUM_RESOLVER_BYTES: Final = 1 << 16


def labels(found: object) -> tuple[tuple[str, str], ...]:
    """Read ``nodeLabels``: the labels of this machine, by which host policies select it."""
    if not isinstance(found, dict) or not all(
        isinstance(key, str) and _LABEL.fullmatch(key) and isinstance(value, str) for key, value in found.items()
    ):
        message = f"found {found!r}, expected a mapping of labels to texts (quote numbers and true or false)"
        raise ValueError(message)
    return tuple(sorted(found.items()))


def management(found: object) -> tuple[Exemption, ...]:
    """Read ``networkManagement``: what reaches, or is reached by, the machine itself whatever a policy says."""
    if not isinstance(found, list):
        message = f"found {found!r}, expected a list of {{cidr, ports, protocol, direction}}"
        raise ValueError(message)  # noqa: TRY004 - what the file holds, not a wrong argument
    return tuple(_exemption(entry) for entry in found)


def entities(found: object) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Read ``networkEntities``: which networks an entity of Cilium's policies is, as far as this machine knows."""
    if not isinstance(found, dict):
        message = f"found {found!r}, expected a mapping of entities to lists of networks"
        raise ValueError(message)  # noqa: TRY004 - as above
    read: list[tuple[str, tuple[str, ...]]] = []
    for name, networks in found.items():
        if not isinstance(name, str) or not _ENTITY.fullmatch(name) or name in _GIVEN:
            message = f"found the entity {name!r}, expected one besides {' and '.join(sorted(_GIVEN))}, like cluster"
            raise ValueError(message)
        if not isinstance(networks, list):
            message = f"{name}: found {networks!r}, expected a list of networks"
            raise ValueError(message)  # noqa: TRY004 - as above
        read.append((name, tuple(network(one) for one in networks)))
    return tuple(sorted(read))


def resolvers(found: object) -> tuple[str, ...]:
    """Read ``networkResolvers``: whose answers the addresses of names are learned from.

    None may be on the loopback interface: in a network namespace of its own a workload could be that resolver itself.
    """
    if not isinstance(found, list):
        message = f"found {found!r}, expected a list of addresses"
        raise ValueError(message)  # noqa: TRY004 - as above
    read = tuple(_address(one) for one in found)
    for address in read:
        if ipaddress.ip_address(address).is_loopback:
            message = (
                f"found {address}, expected no address of the loopback interface, where every workload can answer: "
                "name the resolvers that it asks"
            )
            raise ValueError(message)
    return read


def system_resolvers(paths: tuple[Path, ...] = RESOLVER_FILES) -> tuple[str, ...]:
    """Give the machine's own resolvers, those on its loopback interface left out; none where no file names any."""
    for path in paths:
        read = tuple(one for one in _nameservers(path) if not ipaddress.ip_address(one).is_loopback)
        if read:
            return read
    return ()


def _nameservers(path: Path) -> tuple[str, ...]:
    try:
        with path.open("rb") as file:
            text = file.read(_MAXIMUM_RESOLVER_BYTES).decode("ascii", "replace")
    except OSError:
        return ()
    read: dict[str, None] = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver":
            try:
                read[_address(words[1].partition("%")[0])] = None
            except ValueError:
                continue
    return tuple(read)


def network(found: object) -> str:
    """Give a network in canonical text. Raises ValueError, also for one with bits behind its prefix."""
    try:
        if not isinstance(found, str):
            raise ValueError  # noqa: TRY004, TRY301 - told like any other text that is none
        return str(ipaddress.ip_network(found))
    except ValueError as error:
        message = f"found {found!r}, expected a network like 192.0.2.0/24 or 2001:db8::/64, no bits behind the prefix"
        raise ValueError(message) from error


def _address(found: object) -> str:
    try:
        if not isinstance(found, str):
            raise ValueError  # noqa: TRY004, TRY301 - as above
        return str(ipaddress.ip_address(found))
    except ValueError as error:
        message = f"found {found!r}, expected an address like 192.0.2.1 or 2001:db8::1"
        raise ValueError(message) from error


def _exemption(entry: object) -> Exemption:
    if not isinstance(entry, dict) or "cidr" not in entry or not set(entry) <= set(_KNOWN):
        message = f"found {entry!r}, expected cidr and, if need be, {', '.join(_KNOWN[1:])}"
        raise ValueError(message)
    protocol, direction = entry.get("protocol", "tcp"), entry.get("direction", "ingress")
    if protocol not in _PROTOCOLS:
        message = f"found protocol {protocol!r}, expected one of {', '.join(_PROTOCOLS)}"
        raise ValueError(message)
    if direction not in _DIRECTIONS:
        message = f"found direction {direction!r}, expected one of {', '.join(_DIRECTIONS)}"
        raise ValueError(message)
    listed = entry.get("ports", [f"0-{_LAST_PORT}"])
    if not isinstance(listed, list) or not listed:
        message = f"found ports {listed!r}, expected a list like [22, 8000-8080]; leave it out for all"
        raise ValueError(message)
    ports = tuple((*_ports(one), str(protocol)) for one in listed)
    return exemptions.management(PeerMatch(cidrs=(network(entry["cidr"]),), ports=ports), _DIRECTIONS[str(direction)])


def _ports(found: object) -> tuple[int, int]:
    text = str(found) if isinstance(found, int | str) and not isinstance(found, bool) else ""
    match = _RANGE.fullmatch(text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if not first <= last <= _LAST_PORT:
        message = f"found port {found!r}, expected a number up to {_LAST_PORT} or a range like 8000-8080"
        raise ValueError(message)
    return first, last
