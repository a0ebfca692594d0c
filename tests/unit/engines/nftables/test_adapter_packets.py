# SPDX-License-Identifier: Apache-2.0
"""The reader of packets: right for what is right, and total for all the rest."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from guest_agent.engines.nftables.nflog_packets import Packet, parse

FOUR = (IPv4Address("192.0.2.1"), IPv4Address("198.51.100.7"))
SIX = (IPv6Address("2001:db8::1"), IPv6Address("2001:db8::2"))


def ipv4(protocol: int, payload: bytes, *, options: bytes = b"", fragment: int = 0) -> bytes:
    words = 5 + len(options) // 4
    head = struct.pack(">BBHHHBBH", 0x40 | words, 0, 4 * words + len(payload), 1, fragment, 64, protocol, 0)
    return head + FOUR[0].packed + FOUR[1].packed + options + payload


def ipv6(kind: int, payload: bytes) -> bytes:
    return struct.pack(">IHBB", 6 << 28, len(payload), kind, 64) + SIX[0].packed + SIX[1].packed + payload


def udp(payload: bytes) -> bytes:
    return struct.pack(">HHHH", 1000, 53, 8 + len(payload), 0) + payload


def test_ports_and_payload_of_a_datagram() -> None:
    expected = Packet("192.0.2.1", "198.51.100.7", 17, 1000, 53, payload=b"hello")
    assert parse(ipv4(17, udp(b"hello"))) == expected
    assert parse(ipv4(17, udp(b"hello"), options=b"\1" * 8)) == expected
    assert parse(ipv4(17, udp(b"hello") + b"padding of the frame")) == expected


@pytest.mark.parametrize("protocol", [6, 33, 132, 136])
def test_ports_of_other_transports(protocol: int) -> None:
    found = parse(ipv6(protocol, struct.pack(">HH", 5, 6) + b"\0" * 16))
    assert found == Packet("2001:db8::1", "2001:db8::2", protocol, 5, 6)


def test_types_of_icmp() -> None:
    assert parse(ipv4(1, b"\x08\x01\0\0")) == Packet("192.0.2.1", "198.51.100.7", 1, icmp_type=8, icmp_code=1)
    assert parse(ipv6(58, b"\x87\x00\0\0")) == Packet("2001:db8::1", "2001:db8::2", 58, icmp_type=135, icmp_code=0)


def test_extension_headers_are_passed_over() -> None:
    chain = (
        bytes([43, 0]) + b"\0" * 6  # hop by hop, then routing
        + bytes([44, 1]) + b"\0" * 14  # 16 bytes, then fragment
        + bytes([51, 0, 0, 1]) + b"\0" * 4  # the first fragment, then authentication
        + bytes([60, 1]) + b"\0" * 10  # 12 bytes, then destination options
        + bytes([17, 0]) + b"\0" * 6
    )  # fmt: skip
    found = parse(ipv6(0, chain + udp(b"x")))
    assert found == Packet("2001:db8::1", "2001:db8::2", 17, 1000, 53, payload=b"x")


def test_a_later_fragment_has_no_ports() -> None:
    assert parse(ipv4(17, udp(b"x"), fragment=1)) == Packet("192.0.2.1", "198.51.100.7", 17)
    later = bytes([17, 0]) + struct.pack(">H", 8) + b"\0" * 4
    assert parse(ipv6(44, later + udp(b"x"))) == Packet("2001:db8::1", "2001:db8::2", 17)
    assert parse(ipv4(17, udp(b"x"), fragment=0x2000)) == parse(ipv4(17, udp(b"x"))), "the first one has"


def test_extension_headers_without_end() -> None:
    found = parse(ipv6(60, (bytes([60, 0]) + b"\0" * 6) * 100))
    assert found is not None
    assert found.source_port is None


@pytest.mark.parametrize("data", [b"", b"\x00" * 40, b"\x45" * 19, b"\x60" * 39, b"\xff" * 100])
def test_what_is_no_packet(data: bytes) -> None:
    assert parse(data) is None


def test_a_header_that_says_it_is_shorter_than_one_is() -> None:
    data = b"\x41" + ipv4(17, udp(b"x"))[1:]
    assert parse(data) == Packet("192.0.2.1", "198.51.100.7", 17)


WHOLE = (
    ipv4(17, udp(b"hello")),
    ipv4(1, b"\x08\x00\0\0"),
    ipv6(58, b"\x87\x00\0\0"),
    ipv6(6, b"\0\5\0\6" + b"\0" * 16),
)


@given(st.sampled_from(WHOLE), st.integers(0, 80))
def test_what_is_cut_short_never_says_another_thing(data: bytes, length: int) -> None:
    whole, cut = parse(data), parse(data[:length])
    assert whole is not None
    if cut is None:
        return
    for name in ("source", "destination", "protocol", "source_port", "destination_port", "icmp_type", "icmp_code"):
        assert getattr(cut, name) in {None, getattr(whole, name)}
    assert whole.payload.startswith(cut.payload)


@given(st.binary(max_size=200) | st.builds(lambda head, rest: head[:40] + rest, st.sampled_from(WHOLE), st.binary()))
@example(ipv6(44, b""))
@example(ipv6(44, b"\x11"))
@example(ipv6(51, b"\x11"))
@example(ipv6(0, b"\x11"))
@example(ipv4(17, b"\0\1\0\2\0\0\0\0payload"))
def test_nothing_raises(data: bytes) -> None:
    found = parse(data)
    if found is None:
        return
    for port in (found.source_port, found.destination_port):
        assert port is None or 0 <= port < 65536
    assert 0 <= found.protocol < 256
    assert len(found.payload) <= len(data)
