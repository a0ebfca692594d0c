# SPDX-License-Identifier: Apache-2.0
"""Quotas count what the kernel lets pass, survive changes, restarts and other people; the log counts what it loses."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from guest_agent.engines.network_port import NetworkEvent, Settings
from guest_agent.engines.nftables import netlink
from guest_agent.engines.nftables import netlink_table as kernel
from guest_agent.engines.nftables.engine import NftablesEngine
from guest_agent.engines.nftables.namespace import run_inside
from hauberk.policy.rules import Action

from .engine_pair import EGRESS, INGRESS, THERE, Pair, collect, desired, rule, tcp, udp

if TYPE_CHECKING:
    from collections.abc import Iterator

ALLOW, AUDIT, BLOCK = Action.ALLOW, Action.AUDIT, Action.BLOCK
LIMIT = 10_000


@pytest.fixture
def engine() -> Iterator[NftablesEngine]:
    with contextlib.closing(NftablesEngine()) as made:
        yield made


@pytest.fixture
def pair() -> Iterator[Pair]:
    with Pair() as made:
        yield made


def used(engine: NftablesEngine, pair: Pair) -> int:
    (usage,) = engine.usage(pair.here.namespace)
    return usage.used_bytes


def send(pair: Pair, size: int, port: int = 53) -> None:
    """Send a datagram of so many bytes, headers included."""
    with pair.here.socket(socket.SOCK_DGRAM) as made:
        made.sendto(b"x" * (size - 28), (THERE[4], port))


def test_bytes_are_counted_to_the_last_and_then_refused(engine: NftablesEngine, pair: Pair) -> None:
    limited = rule(EGRESS, BLOCK, ports=udp(53), quota=(LIMIT, 60, "pod"))
    engine.apply(pair.here.namespace, desired(limited, identifier=4))
    for number in range(1, LIMIT // 1000 + 1):
        send(pair, 1000)
        assert used(engine, pair) == 1000 * number
    with pytest.raises(PermissionError):
        send(pair, 100)
    assert pair.udp_out(54)
    (usage,) = engine.usage(pair.here.namespace)
    assert (usage.endpoint, usage.direction, usage.policy, usage.limit_bytes, usage.seconds) == (
        4, EGRESS, "p", LIMIT, 60,
    )  # fmt: skip
    event = next(event for event in collect(engine, bool) if isinstance(event, NetworkEvent))
    assert (event.verdict, event.reason, event.endpoint) == ("deny", "quota", 4)
    engine.reset_quota(pair.here.namespace, usage.name)
    assert used(engine, pair) == 0
    send(pair, 100)
    assert used(engine, pair) == 100
    engine.reset_quota(pair.here.namespace, "a quota that is not there")


def test_established_flows_are_counted(engine: NftablesEngine, pair: Pair) -> None:
    engine.apply(pair.here.namespace, desired(rule(EGRESS, BLOCK, ports=tcp(80), quota=(10**9, 60, "pod"))))
    flow = pair.tcp_out(80)
    before = used(engine, pair)
    assert flow.works()
    assert used(engine, pair) > before
    engine.apply(pair.here.namespace, desired(rule(EGRESS, BLOCK, ports=tcp(80), quota=(1, 60, "pod"))))
    assert not flow.reaches_the_server()


def test_usage_survives_other_rules_a_new_limit_and_a_restart(engine: NftablesEngine, pair: Pair) -> None:
    limited = rule(EGRESS, BLOCK, ports=udp(53), quota=(LIMIT, 60, "pod"))
    engine.apply(pair.here.namespace, desired(limited))
    send(pair, 6000 // 10)
    assert used(engine, pair) == 600
    engine.apply(pair.here.namespace, desired(limited, rule(INGRESS, ALLOW, ports=tcp(22)), rule(EGRESS, BLOCK)))
    assert used(engine, pair) == 600
    assert limited.match is not None
    wider = rule(EGRESS, BLOCK, ports=udp(53), quota=(2 * LIMIT, 60, "pod"))
    engine.apply(pair.here.namespace, desired(wider))
    (usage,) = engine.usage(pair.here.namespace)
    assert (usage.used_bytes, usage.limit_bytes) == (600, 2 * LIMIT)
    engine.close()
    with contextlib.closing(NftablesEngine()) as again:
        assert again.apply(pair.here.namespace, desired(wider)).change == "nothing"
        assert used(again, pair) == 600


def test_usage_survives_somebody_who_deletes_the_table(engine: NftablesEngine, pair: Pair) -> None:
    engine.apply(pair.here.namespace, desired(rule(EGRESS, BLOCK, ports=udp(53), quota=(LIMIT, 60, "pod"))))
    send(pair, 700)
    assert used(engine, pair) == 700
    pair.here.nft("flush ruleset")
    assert engine.verify() == [pair.here.namespace]
    assert used(engine, pair) == 700


def test_every_quota_that_matches_counts(engine: NftablesEngine, pair: Pair) -> None:
    quotas = (
        rule(EGRESS, ALLOW, ports=udp(53), quota=(LIMIT, 60, "pod"), policy="one"),
        rule(EGRESS, BLOCK, f"{THERE[4]}/32", quota=(10 * LIMIT, 60, "pod"), policy="two"),
        rule(EGRESS, AUDIT, interfaces=("eth0",), quota=(300, 60, "policy"), policy="three"),
    )
    engine.apply(pair.here.namespace, desired(*quotas))
    for _ in range(2):
        send(pair, 400)
    assert {usage.policy: usage.used_bytes for usage in engine.usage(pair.here.namespace)} == {
        "one": 800, "two": 800, "three": 300,  # the kernel tells of no more than the limit
    }  # fmt: skip
    event = next(event for event in collect(engine, bool) if isinstance(event, NetworkEvent))
    assert (event.verdict, event.reason) == ("audit", "quota")


def test_what_the_log_loses_is_counted(pair: Pair) -> None:
    with contextlib.closing(NftablesEngine(log_buffer=4096)) as engine:
        engine.apply(pair.here.namespace, desired(rule(EGRESS, AUDIT, ports=udp(9))))
        sent = 20_000
        with pair.here.socket(socket.SOCK_DGRAM) as made:
            for _ in range(sent):
                made.sendto(b"x", (THERE[4], 9))
        first = sum(isinstance(event, NetworkEvent) for event in engine.drain())
        assert 0 < first < sent
        # The number of the next packet tells how many there were before it.
        with pair.here.socket(socket.SOCK_DGRAM) as made:
            made.sendto(b"x", (THERE[4], 9))

        def accounted() -> int:
            counts = engine.statistics()
            return counts["events"] + counts["events_lost"]

        rest = len(collect(engine, lambda _: accounted() >= sent + 1))
        assert accounted() == sent + 1
        assert engine.statistics()["events"] == first + rest


def test_a_flood_of_refusals_is_told_at_the_rate_that_was_asked_for(engine: NftablesEngine, pair: Pair) -> None:
    wanted = replace(desired(rule(EGRESS, BLOCK, ports=udp(9))), settings=Settings(log_rate=1, log_burst=5))
    engine.apply(pair.here.namespace, wanted)
    for _ in range(50):
        assert not pair.udp_out(9, expected=False)
    told = collect(engine, lambda events: len(events) >= 5)
    assert 5 <= len(told) < 50


def test_a_group_that_somebody_else_reads_is_counted_and_taken_later(engine: NftablesEngine, pair: Pair) -> None:
    with contextlib.closing(NftablesEngine()) as other:
        wanted = desired(rule(EGRESS, AUDIT, ports=udp(9)))
        other.apply(pair.here.namespace, wanted)
        engine.apply(pair.here.namespace, wanted)
        assert engine.statistics()["logs_unread"] == 1
    engine.verify()
    assert pair.udp_out(9)
    assert collect(engine, bool)


def test_nobody_but_the_kernel_is_believed(engine: NftablesEngine, pair: Pair) -> None:
    """Who administers the namespace can send our sockets messages; they are no packets and no changes."""
    engine.apply(pair.here.namespace, desired(rule(EGRESS, AUDIT, ports=udp(9))))
    ports = [int(line.split()[2]) for line in pair.here.run("cat", "/proc/net/netlink").splitlines() if " 12 " in line]
    prefix = netlink.attribute(10, b"hb 0 iar\0")
    logged = netlink.netfilter(netlink.SUBSYSTEM_LOG, 0, 2, prefix, netlink.u32(12, 4711))
    changed = netlink.netfilter(netlink.SUBSYSTEM_NFTABLES, kernel.DELETE_TABLE, 1, netlink.text(1, "hauberk"))
    with _netlink_socket(pair) as made:
        for port in ports:
            for forged in (logged, changed):
                made.sendto(netlink.encode(forged, 1, 0), (port, 0))
    assert list(engine.drain()) == []
    assert pair.udp_out(9)
    (event,) = collect(engine, bool)
    assert isinstance(event, NetworkEvent)
    assert event.destination_port == 9
    assert engine.statistics()["events_lost"] == 0


def _netlink_socket(pair: Pair) -> socket.socket:
    with open(pair.here.path) as opened:  # noqa: PTH123 - of /proc
        made = run_inside(opened.fileno(), lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12))
    made.bind((0, 0))
    return made
