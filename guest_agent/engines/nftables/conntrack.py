# SPDX-License-Identifier: Apache-2.0
"""Ends flows that were allowed once and are forbidden now.

Rules are asked about the first packet of a flow only, so a flow that is established outlives its rule. After every
change each entry of the namespace's connection tracking is judged as its first packet would be now: in its original
direction, by the addresses that a filter sees (the destination after translation), with the cgroup of its socket where
rules go by that. What fails is removed, so that its next packet is a first one again.

That alone would leave a way: connection tracking picks up a TCP connection in its middle, from whichever side speaks
first, and then what the client may not begin would go on as what the server may. So the socket is closed too, which
resets the connection.

What is judged is read as it comes, a few hundred bytes at a time, however many entries there are. Formats:
``include/uapi/linux/netfilter/nfnetlink_conntrack.h``, ``linux/inet_diag.h``, ``linux/rtnetlink.h``.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from guest_agent.engines.nftables import netlink
from guest_agent.engines.nftables.netlink import Message, NetlinkError, NetlinkSocket, attribute, netfilter

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from guest_agent.engines.nftables.ruleset import Hook

CGROUP_MOUNTS: Final = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
_GET, _DELETE = 1, 2
_ORIGINAL, _REPLY, _STATUS, _ID, _MASTER, _ZONE = 1, 2, 3, 12, 14, 18
_EXPECTED: Final = 1
_TUPLE_ADDRESSES, _TUPLE_PROTOCOL = 1, 2
_SOURCES, _DESTINATIONS = (1, 3), (2, 4)  # IPv4, IPv6
_NUMBER, _SOURCE_PORT, _DESTINATION_PORT = 1, 2, 3
_TYPES, _CODES = (5, 8), (6, 9)

_TCP, _UDP = 6, 17
_DIAG_BY_FAMILY, _DIAG_DESTROY = 20, 21
_DIAG_CGROUP: Final = 21
_DIAG_REQUEST: Final = struct.Struct("=BBBxI")
_DIAG_HEADER: Final = 72
_DIAG_IDENTITY_END: Final = 52
_LISTEN: Final = 10
_DIAG_PORTS: Final = struct.Struct(">HH")
_NO_COOKIE: Final = b"\xff" * 8
_ALL_STATES: Final = 0xFFFF_FFFF
_GET_ADDRESS, _GET_ROUTE = 22, 26
_ADDRESS_HEADER, _ROUTE_HEADER = 8, 12
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RTA_DESTINATION, _RTA_SOURCE, _RTA_INTERFACE = 1, 2, 4
_ADDRESS_INDEX: Final = 4
_INDEX: Final = struct.Struct("=i")
_MULTICAST_4, _MULTICAST_6 = 0xE0, 0xFF
_LOOPBACK_4: Final = 127
_IPV4_BYTES: Final = 4
_IPV6_BYTES: Final = 16
_MAPPED: Final = b"\0" * 10 + b"\xff\xff"
_FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}

Cgroups = tuple[int, ...]
"""The numbers of the cgroups that a socket is in, from the root's child on."""


@dataclass(frozen=True, slots=True)
class Flow:
    """An entry: whence its first packet came and whither it went, as a filter saw it, and what names it for deletion.

    Addresses are in network order. ``asked`` is the destination before translation.
    """

    family: int  # 4 or 6
    protocol: int
    source: bytes
    destination: bytes
    source_port: int | None
    port: int | None
    icmp_type: int | None
    icmp_code: int | None
    asked: bytes
    asked_port: int | None
    identity: bytes
    name: bytes
    master: bytes | None = None


# ---- entries ---------------------------------------------------------------------------------------------------------


def flows(channel: NetlinkSocket) -> Iterator[Flow]:
    """Read the entries of a namespace. Nothing else may be asked of the channel meanwhile. Raises NetlinkError."""
    request = netfilter(netlink.SUBSYSTEM_CONNTRACK, _GET, socket.AF_UNSPEC)
    for message in channel.stream(request):
        read = netlink.netfilter_attributes(message)
        if _ORIGINAL in read and _REPLY in read:
            yield _flow(read)


def _flow(read: dict[int, bytes]) -> Flow:
    original, reply = _tuple(read[_ORIGINAL]), _tuple(read[_REPLY])
    name = b"".join(attribute(kind, read[kind]) for kind in (_ORIGINAL, _ZONE, _ID) if kind in read)
    expected = netlink.read_number(read.get(_STATUS, b"")) & _EXPECTED
    return Flow(
        family=4 if len(original.source) == _IPV4_BYTES else 6,
        protocol=original.protocol,
        source=original.source,
        destination=reply.source,
        source_port=original.source_port,
        port=reply.source_port if original.source_port is not None else None,
        icmp_type=original.icmp_type,
        icmp_code=original.icmp_code,
        asked=original.destination,
        asked_port=original.port,
        identity=read[_ORIGINAL],
        name=name,
        master=read.get(_MASTER, b"") if expected else None,
    )


@dataclass(frozen=True, slots=True)
class _Tuple:
    source: bytes
    destination: bytes
    protocol: int
    source_port: int | None
    port: int | None
    icmp_type: int | None
    icmp_code: int | None


def _tuple(payload: bytes) -> _Tuple:
    shape = _SHAPES.get(len(payload))
    if shape is not None:  # nearly every entry: TCP or UDP, of which a busy machine has a hundred thousand
        heads, source, destination, number, source_port, port = _split(shape.unpack(payload))
        if heads == _HEADS[len(payload)]:
            return _Tuple(source, destination, number, source_port, port, None, None)
    parts = netlink.attributes(payload)
    addresses, protocol = netlink.attributes(parts[_TUPLE_ADDRESSES]), netlink.attributes(parts[_TUPLE_PROTOCOL])
    return _Tuple(
        _one(addresses, _SOURCES),
        _one(addresses, _DESTINATIONS),
        netlink.read_number(protocol.get(_NUMBER, b"")),
        _number(protocol, (_SOURCE_PORT,)),
        _number(protocol, (_DESTINATION_PORT,)),
        _number(protocol, _TYPES),
        _number(protocol, _CODES),
    )


def _split(parts: tuple[Any, ...]) -> tuple[tuple[int, ...], bytes, bytes, int, int, int]:
    """Take apart what a shape unpacks: the attributes' headers, and what they hold."""
    one, two, source, three, destination, four, five, number, six, source_port, seven, port = parts
    return (one, two, three, four, five, six, seven), source, destination, number, source_port, port


def _heads(kinds: tuple[int, int], width: int) -> tuple[int, ...]:
    """Give the headers of a tuple with ports, each as length and type in one number."""

    def head(length: int, kind: int) -> int:
        return int.from_bytes(struct.pack("=HH", length + 4, kind), "big")

    addresses = head(2 * (width + 4), _TUPLE_ADDRESSES | 0x8000)
    ports = (head(2, _SOURCE_PORT), head(2, _DESTINATION_PORT))
    return (addresses, *(head(width, kind) for kind in kinds), head(24, _TUPLE_PROTOCOL | 0x8000), head(1, 1), *ports)


_SHAPES: Final = {8 + 3 * 8 + 2 * (4 + width): struct.Struct(f">II{width}sI{width}sIIB3xIH2xIH2x") for width in (4, 16)}
_HEADS: Final = {48: _heads((1, 2), 4), 72: _heads((3, 4), 16)}


def _one(read: dict[int, bytes], kinds: Iterable[int]) -> bytes:
    return next((read[kind] for kind in kinds if kind in read), b"")


def _number(read: dict[int, bytes], kinds: Iterable[int]) -> int | None:
    return next((netlink.read_number(read[kind]) for kind in kinds if kind in read), None)


def delete(channel: NetlinkSocket, flow: Flow) -> bool:
    """Remove an entry; tell whether it was there still. Raises NetlinkError, OSError."""
    family = _FAMILIES[flow.family]
    try:
        channel.ask(netfilter(netlink.SUBSYSTEM_CONNTRACK, _DELETE, family, flow.name))
    except NetlinkError as error:
        if error.errno == errno.ENOENT:
            return False
        raise
    return True


# ---- sockets ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Sockets:
    """Whose sockets these are: cgroup numbers by both ends, and by the local end alone for those without a peer."""

    connected: dict[tuple[int, bytes, int, bytes, int], set[int]] = field(default_factory=lambda: defaultdict(set))
    bound: dict[tuple[int, bytes, int], set[int]] = field(default_factory=lambda: defaultdict(set))

    def owners(self, protocol: int, local: bytes, port: int, peer: bytes, peer_port: int) -> set[int]:
        """Give the cgroups of the sockets that packets between two ends may belong to."""
        exact = self.connected.get((protocol, local, port, peer, peer_port))
        anywhere = b"\0" * 16
        found = (self.bound.get((protocol, address, port), set()) for address in (local, b"\0\0\0\0", anywhere))
        return exact or set().union(*found)


def sockets(channel: NetlinkSocket) -> Sockets:
    """Read the TCP and UDP sockets of a namespace with their cgroups. Raises NetlinkError, OSError."""
    found = Sockets()
    for family in (socket.AF_INET, socket.AF_INET6):
        for protocol in (_TCP, _UDP):
            request = _DIAG_REQUEST.pack(family, protocol, 0, _ALL_STATES) + b"\0" * 48
            for message in channel.stream(Message(_DIAG_BY_FAMILY, request)):
                _take_socket(found, protocol, message.payload)
    return found


def _take_socket(found: Sockets, protocol: int, payload: bytes) -> None:
    read = netlink.attributes(payload[_DIAG_HEADER:])
    if _DIAG_CGROUP not in read:
        return
    cgroup = int.from_bytes(read[_DIAG_CGROUP], sys.byteorder)
    local, port, peer, peer_port = _ends(payload)
    if peer_port:
        found.connected[protocol, local, port, peer, peer_port].add(cgroup)
    else:
        found.bound[protocol, local, port].add(cgroup)


def _ends(payload: bytes) -> tuple[bytes, int, bytes, int]:
    """Give the addresses and ports of a socket's two ends."""
    port, peer_port = _DIAG_PORTS.unpack_from(payload, 4)
    width = _IPV4_BYTES if payload[0] == socket.AF_INET else _IPV6_BYTES
    return _plain(payload[8 : 8 + width]), port, _plain(payload[24 : 24 + width]), peer_port


def _plain(address: bytes) -> bytes:
    """Give an IPv4 address for one in the form of IPv6: what the packet has."""
    return address.removeprefix(_MAPPED)


def close_socket(channel: NetlinkSocket, family: int, local: tuple[bytes, int], peer: tuple[bytes, int]) -> None:
    """Reset a TCP connection from its local end. None there, or a kernel that cannot: no error. Raises OSError.

    The kernel's look-up gives whoever listens where there is no connection, and would close that: so it is asked
    first, and then told to close exactly the socket that it named.
    """
    ends = _DIAG_PORTS.pack(local[1], peer[1]) + local[0].ljust(16, b"\0") + peer[0].ljust(16, b"\0")
    header = _DIAG_REQUEST.pack(_FAMILIES[family], _TCP, 0, _ALL_STATES)
    try:
        for answer in channel.ask(Message(_DIAG_BY_FAMILY, header + ends + b"\0" * 4 + _NO_COOKIE)):
            found = answer.payload
            if found[1] != _LISTEN and _ends(found) == (*local, *peer):
                named = found[4:_DIAG_IDENTITY_END]
                channel.ask(Message(_DIAG_DESTROY, _DIAG_REQUEST.pack(found[0], _TCP, 0, _ALL_STATES) + named))
    except NetlinkError as error:
        if error.errno not in {errno.ENOENT, errno.EOPNOTSUPP, errno.EINVAL}:
            raise


def cgroup_tree(mounts: Iterable[str] = CGROUP_MOUNTS) -> dict[int, Cgroups]:
    """Give every cgroup v2 of the machine by its number, with those above it; none where that is not mounted."""
    root = next((mount for mount in mounts if os.path.exists(f"{mount}/cgroup.controllers")), None)  # noqa: PTH110
    found: dict[int, Cgroups] = {}
    waiting: list[tuple[str, Cgroups]] = [(root, ())] if root else []
    while waiting:
        path, above = waiting.pop()
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        line = (*above, entry.inode())
                        found[entry.inode()] = line
                        waiting.append((entry.path, line))
        except OSError:
            continue  # it ended meanwhile
    return found


# ---- the namespace ---------------------------------------------------------------------------------------------------


class Surroundings:
    """Which addresses are the namespace's own, and by which interfaces others are reached."""

    def __init__(self, channel: NetlinkSocket) -> None:
        """``channel`` speaks rtnetlink in the namespace. Raises NetlinkError, OSError."""
        self._channel = channel
        self._routes: dict[tuple[bytes, bytes], str] = {}
        self._own: dict[bytes, set[str]] = defaultdict(set)
        for message in channel.dump(Message(_GET_ADDRESS, b"\0" * _ADDRESS_HEADER)):
            read = netlink.attributes(message.payload[_ADDRESS_HEADER:])
            name = channel.interface_name(_INDEX.unpack_from(message.payload, _ADDRESS_INDEX)[0])
            # Between two points the other one is the peer's address.
            own = read.get(_IFA_LOCAL, read.get(_IFA_ADDRESS))
            if own is not None:
                self._own[own].add(name)

    def hook(self, flow: Flow) -> Hook | None:
        """Give the hook that a flow's first packet passed; None for one that never left the namespace.

        What was sent to an address of its own may have been translated to another one's, and left.
        """
        sent, received = self._is_own(flow.source), self._is_own(flow.destination)
        if sent:
            return None if received else "output"
        to_many = flow.asked[0] >= (_MULTICAST_4 if len(flow.asked) == _IPV4_BYTES else _MULTICAST_6)
        return "input" if received or to_many else "forward"

    def _is_own(self, address: bytes) -> bool:
        return address in self._own or (len(address) == _IPV4_BYTES and address[0] == _LOOPBACK_4)

    def interfaces(self, peer: bytes, own: bytes = b"") -> set[str]:
        """Give the interfaces by which packets between an address and another come and go.

        That is where the route from ``own`` (empty: from anywhere) to the peer leads, and where ``own`` is: on a
        machine with several networks, what is known of a flow does not tell which of them it took.
        """
        if (peer, own) not in self._routes:
            self._routes[peer, own] = self._route(peer, own if own in self._own else b"")
        return {self._routes[peer, own], *self._own.get(own, ())}

    def _route(self, peer: bytes, own: bytes) -> str:
        """Give the name of the interface that an address is reached by; "" where there is no route."""
        bits = 8 * len(peer)
        header = struct.pack("=BBB", _FAMILIES[4 if len(peer) == _IPV4_BYTES else 6], bits, bits if own else 0)
        parts = attribute(_RTA_DESTINATION, peer) + (attribute(_RTA_SOURCE, own) if own else b"")
        try:
            answers = self._channel.ask(Message(_GET_ROUTE, header.ljust(_ROUTE_HEADER, b"\0") + parts))
        except NetlinkError:
            return ""
        for answer in answers:
            read = netlink.attributes(answer.payload[_ROUTE_HEADER:])
            if _RTA_INTERFACE in read:
                return self._channel.interface_name(_INDEX.unpack(read[_RTA_INTERFACE])[0])
        return ""
