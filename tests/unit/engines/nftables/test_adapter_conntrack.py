# SPDX-License-Identifier: Apache-2.0
"""Entries of connection tracking as they are read, and where their first packets passed."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest_agent.engines.nftables import conntrack, netlink
from guest_agent.engines.nftables.conntrack import Flow, Sockets, Surroundings
from guest_agent.engines.nftables.netlink import Message, NetlinkSocket, attribute, nested

if TYPE_CHECKING:
    from collections.abc import Iterator

ADDRESSES = st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16)
PORTS = st.integers(0, 65535)


class Channel(NetlinkSocket):
    """A netlink socket that answers what it was told to."""

    def __init__(self, *answers: bytes) -> None:
        """Take the answers."""
        self._told = [Message(0, payload) for payload in answers]

    def stream(self, request: Message) -> Iterator[Message]:
        """Give the answers, whatever is asked."""
        assert request
        yield from self._told

    def interface_name(self, index: int) -> str:
        """Make up a name."""
        return f"eth{index}"

    def dump(self, request: Message) -> list[Message]:
        """Give the answers, whatever is asked."""
        assert request
        return self._told


def tuple_of(source: bytes, destination: bytes, protocol: int, *rest: bytes) -> bytes:
    kinds = (1, 2) if len(source) == 4 else (3, 4)
    addresses = [attribute(kind, address) for kind, address in zip(kinds, (source, destination), strict=True)]
    return nested(1, *addresses) + nested(2, attribute(1, bytes([protocol])), *rest)


def ports(source: int, destination: int) -> tuple[bytes, bytes]:
    return attribute(2, struct.pack(">H", source)), attribute(3, struct.pack(">H", destination))


def entry(original: bytes, reply: bytes, *more: bytes) -> bytes:
    return b"\x02\0\0\0" + nested(1, original) + nested(2, reply) + b"".join(more)


def read(*entries: bytes) -> list[Flow]:
    return list(conntrack.flows(Channel(*entries)))


@given(ADDRESSES, st.data(), PORTS, PORTS, st.sampled_from([6, 17, 132]))
def test_the_short_way_reads_what_the_long_one_does(
    source: bytes, data: st.DataObject, source_port: int, port: int, protocol: int
) -> None:
    destination = data.draw(st.binary(min_size=len(source), max_size=len(source)))
    there = tuple_of(source, destination, protocol, *ports(source_port, port))
    back = tuple_of(destination, source, protocol, *ports(port, source_port))
    longer = nested(99, b"\0" * 4)  # an attribute more, and the shape is another
    (short,), (long,) = read(entry(there, back)), read(entry(there + longer, back + longer))
    for name in ("family", "protocol", "source", "destination", "source_port", "port", "asked", "asked_port"):
        assert getattr(short, name) == getattr(long, name)
    assert (short.source, short.destination, short.source_port, short.port) == (source, destination, source_port, port)


def test_a_translated_flow_is_read_as_the_filter_saw_it() -> None:
    asked, went, client = b"\x0a\0\0\x32", b"\x0a\0\0\2", b"\x0a\0\0\1"
    original = tuple_of(client, asked, 6, *ports(4000, 8080))
    reply = tuple_of(went, client, 6, *ports(80, 4000))
    (flow,) = read(entry(original, reply, netlink.u32(12, 7)))
    assert (flow.destination, flow.port, flow.asked, flow.asked_port) == (went, 80, asked, 8080)
    assert netlink.attributes(flow.name) == {1: original, 12: b"\0\0\0\7"}


def test_types_of_icmp_and_protocols_without_ports() -> None:
    one, other = b"\x0a\0\0\1", b"\x0a\0\0\2"
    echo = tuple_of(one, other, 1, attribute(4, b"\0\1"), attribute(5, b"\x08"), attribute(6, b"\0"))
    (flow,) = read(entry(echo, tuple_of(other, one, 1, attribute(5, b"\0"), attribute(6, b"\0"))))
    assert (flow.icmp_type, flow.icmp_code, flow.port) == (8, 0, None)
    (flow,) = read(entry(tuple_of(one, other, 47), tuple_of(other, one, 47)))
    assert (flow.protocol, flow.port, flow.source_port) == (47, None, None)


def test_what_belongs_to_another_flow_names_it() -> None:
    one = tuple_of(b"\x0a\0\0\1", b"\x0a\0\0\2", 6, *ports(1, 2))
    expected = entry(one, one, netlink.u32(3, 1 | 2), nested(14, one))
    plain = entry(one, one, netlink.u32(3, 2))
    assert [flow.master for flow in read(expected, plain)] == [one, None]


@pytest.mark.parametrize(
    ("source", "destination", "hook"),
    [
        ("0a000001", "0a000002", "output"),
        ("0a000002", "0a000001", "input"),
        ("0a000002", "0a000003", "forward"),
        ("0a000001", "0a000001", None),
        ("7f000001", "7f000002", None),
        ("0a000002", "e0000001", "input"),
        ("0a000002", "ffffffff", "input"),
        ("20010db8" + "00" * 11 + "02", "ff02" + "00" * 13 + "01", "input"),
        ("20010db8" + "00" * 11 + "01", "20010db8" + "00" * 11 + "02", "output"),
    ],
)
def test_where_the_first_packet_passed(source: str, destination: str, hook: str | None) -> None:
    def own(address: str) -> bytes:
        return struct.pack("=BBBBi", 2, 24, 0, 0, 3) + attribute(2, bytes.fromhex(address))

    channel = Channel(own("0a000001"), own("20010db8" + "00" * 11 + "01"))
    surroundings = Surroundings(channel)
    ends = (bytes.fromhex(source), bytes.fromhex(destination))
    (flow,) = read(entry(tuple_of(*ends, 17, *ports(1, 2)), tuple_of(*ends[::-1], 17, *ports(2, 1))))
    assert surroundings.hook(flow) == hook


def test_sockets_are_found_by_both_ends_and_else_by_their_own() -> None:
    def socket(family: int, one: tuple[bytes, int], other: tuple[bytes, int], cgroup: int) -> bytes:
        ends = struct.pack(">HH", one[1], other[1]) + one[0].ljust(16, b"\0") + other[0].ljust(16, b"\0")
        return bytes([family, 1, 0, 0]) + ends + b"\0" * 32 + attribute(21, struct.pack("=Q", cgroup))

    here, there, mapped = b"\x0a\0\0\1", b"\x0a\0\0\2", b"\0" * 10 + b"\xff\xff"
    channel = Channel(
        socket(2, (b"", 80), (b"", 0), 5),
        socket(2, (here, 80), (there, 4000), 6),
        socket(10, (mapped + here, 443), (mapped + there, 4001), 7),
        socket(10, (b"", 53), (b"", 0), 8),
        socket(2, (b"", 53), (b"", 0), 9),
        bytes([2, 1, 0, 0]) + b"\0" * 68,  # one of a kernel that tells no cgroups
    )
    found: Sockets = conntrack.sockets(channel)
    assert found.owners(6, here, 80, there, 4000) == {6}
    assert found.owners(6, here, 80, there, 4002) == {5}
    assert found.owners(6, here, 443, there, 4001) == {7}
    assert found.owners(17, here, 53, there, 1) == {8, 9}
    assert found.owners(17, here, 54, there, 1) == set()
