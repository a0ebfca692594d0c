# SPDX-License-Identifier: Apache-2.0
"""Addresses, ports, interfaces and quotas: what texts mean, and which mean nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hauberk.policy import traffic
from hauberk.policy.traffic import TrafficError
from hauberk.policy.vocabulary import CAPABILITIES, DEVICE_CLASSES, SERVICES, device_class

if TYPE_CHECKING:
    import ipaddress


@pytest.mark.parametrize(
    ("text", "network", "host_bits"),
    [
        ("10.0.0.0/8", "10.0.0.0/8", False),
        ("10.1.2.3/8", "10.0.0.0/8", True),
        ("192.0.2.7", "192.0.2.7/32", False),
        ("192.0.2.7/32", "192.0.2.7/32", False),
        ("0.0.0.0/0", "0.0.0.0/0", False),
        ("192.0.2.7/0", "0.0.0.0/0", True),
        ("fd00::/8", "fd00::/8", False),
        ("fd00:0::1/8", "fd00::/8", True),
        ("::1", "::1/128", False),
        ("10.0.0.0/08", "10.0.0.0/8", False),
    ],
)
def test_networks(text: str, network: str, host_bits: bool) -> None:  # noqa: FBT001 - an expected value
    assert str(traffic.network(text)) == network
    assert traffic.has_host_bits(text) is host_bits


@pytest.mark.parametrize(
    "text",
    ["", "/8", "10.0.0.0/", "10.0.0.0/33", "10.0.0.0/-1", "fd00::/129", "10.0.0.0/255.0.0.0", "10.0.0/8", "010.0.0.1",
     "10.0.0.0/8/8", "fe80::1%eth0", "host.example", "10.0.0.1-10.0.0.9", "{10.0.0.1}", "10.0.0.0/ 8", " 10.0.0.0/8",
     "10.0.0.0/8\n", "10.0.0.0/\u0668"],
)  # fmt: skip
def test_what_is_no_network(text: str) -> None:
    with pytest.raises(TrafficError, match="expected an IPv4 or IPv6 network"):
        traffic.network(text)


@pytest.mark.parametrize("text", ["::ffff:10.0.0.1", "::ffff:10.0.0.0/104", "::ffff:0:0/96"])
def test_ipv4_is_written_as_such(text: str) -> None:
    """Who blocks such a network would block nothing."""
    with pytest.raises(TrafficError, match=r"expected a network of IPv4 written as one.*Write it as 10"):
        traffic.network(text)


_AS_PACKETS_HAVE_THEM = st.ip_addresses().filter(lambda one: getattr(one, "ipv4_mapped", None) is None)


@given(_AS_PACKETS_HAVE_THEM, st.integers(0, 128))
def test_a_network_holds_the_address_it_was_written_with(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, length: int
) -> None:
    length = min(length, address.max_prefixlen)
    network = traffic.network(f"{address}/{length}")
    assert address in network
    assert network.prefixlen == length
    assert traffic.has_host_bits(f"{address}/{length}") == (network.network_address != address)


@pytest.mark.parametrize(("text", "port"), [("1", 1), ("65535", 65535), ("ssh", 22), ("HTTPS", 443), ("dns", 53)])
def test_ports(text: str, port: int) -> None:
    assert traffic.port_number(text) == port


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0", "from 1 to 65535"), ("65536", "from 1 to 65535"), ("-1", "from 1 to 65535"), ("080", "from 1 to 65535"),
        ("80-90", "one port"), ("80:90", "one port"), ("", "port number"), ("htpp", "port number"),
        ("80 accept", "port number"), ("\u0668", "port number"),
    ],
)  # fmt: skip
def test_what_is_no_port(text: str, words: str) -> None:
    with pytest.raises(TrafficError, match=words):
        traffic.port_number(text)


@pytest.mark.parametrize("text", ["eth0", "wg*", "br-0a1b2c3d4e5f", "veth.1", "sixteen-letters*", "ü"])
def test_interfaces(text: str) -> None:
    traffic.check_interface(text)


@pytest.mark.parametrize(
    "text", ["", "*", "a b", "a/b", "a:b", ".", "..", "a*b", "**", "sixteen-letters-", "a\0", "a\n", "üüüüüüüü"]
)
def test_what_is_no_interface(text: str) -> None:
    with pytest.raises(TrafficError, match="network interface"):
        traffic.check_interface(text)


@pytest.mark.parametrize(
    ("text", "octets"),
    [("0", 0), ("1", 1024**3), ("5G", 5 * 1024**3), ("5GB", 5 * 1024**3), ("500MB", 500 * 1024**2), ("64K", 65536),
     ("8589934591G", 8589934591 * 1024**3)],
)  # fmt: skip
def test_quotas(text: str, octets: int) -> None:
    assert traffic.quota_bytes(text) == octets


@pytest.mark.parametrize(
    "text", ["", "KB", "5kb", "5 MB", "-5MB", "1.5GB", "5TB", "5B", "8589934592G", "9" * 30, "\u0665GB"]
)
def test_what_is_no_quota(text: str) -> None:
    with pytest.raises(TrafficError):
        traffic.quota_bytes(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1s", 1), ("45s", 45), ("1h30m", 5400), ("1.5h", 5400), (".5m", 30), ("1.m", 60), ("1000ms", 1), ("24h", 86400),
     ("1m1m", 120), ("1000000us", 1), ("1000000µs", 1), ("1000000μs", 1), ("1000000000ns", 1)],
)  # fmt: skip
def test_durations(text: str, seconds: int) -> None:
    assert traffic.duration_seconds(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "0", "5", "0s", "-1h", "1d", "1 h", "h", "1h30", "500ms", "1.5s", "1h ", ".s", "1..5h", "1H", "1e3s",
     "9" * 25 + "s",
     "2000000h", "\u0665s"],
)  # fmt: skip
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(TrafficError):
        traffic.duration_seconds(text)


@given(st.integers(0, 1000), st.integers(0, 5000), st.integers(1, 5000))
def test_durations_add_up(hours: int, minutes: int, seconds: int) -> None:
    assert traffic.duration_seconds(f"{hours}h{minutes}m{seconds}s") == hours * 3600 + minutes * 60 + seconds


@given(st.text(max_size=12))
def test_any_text_is_read_or_refused_with_advice(text: str) -> None:
    for read in (
        traffic.network,
        traffic.port_number,
        traffic.check_interface,
        traffic.quota_bytes,
        traffic.duration_seconds,
    ):
        try:
            read(text)
        except TrafficError as error:
            told = (error.expected, error.advice)
            if not all(told):
                pytest.fail(f"{text!r} is refused without a word")


@pytest.mark.parametrize(
    ("text", "number"),
    [("HID", 3), ("hid", 3), ("Audio/Video", 16), ("8", 8), ("0x0E", 14), ("0XfF", 255), ("ALL", None), ("all", None)],
)
def test_device_classes(text: str, number: int | None) -> None:
    assert device_class(text) == number


@pytest.mark.parametrize("text", ["", "0", "256", "-1", "0x", "0x100", "0xzz", "STICK", "1 ", "1_0", "\u0665", "0x-1"])
def test_what_is_no_device_class(text: str) -> None:
    with pytest.raises(ValueError, match=r"invalid literal|no class of USB devices"):
        device_class(text)


def test_the_vocabulary_is_the_kernels() -> None:
    assert CAPABILITIES.index("net_raw") == 13  # linux/capability.h
    assert CAPABILITIES.index("checkpoint_restore") == 40
    assert len(CAPABILITIES) == 41
    assert len(set(DEVICE_CLASSES.values())) == len(DEVICE_CLASSES) == 24
    assert all(1 <= port <= 65535 for port in SERVICES.values())
