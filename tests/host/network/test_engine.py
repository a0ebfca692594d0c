# SPDX-License-Identifier: Apache-2.0
"""The nftables engine on a real kernel: what is desired holds for real packets, by the machine's nft and a newer."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from guest_agent.engines.network_port import Cgroup, Desired, Endpoint, EngineError, NameAnswer, Namespace, NetworkEvent
from guest_agent.engines.nftables.engine import NftablesEngine
from hauberk.policy.rules import Action, PeerGroup, RuleSet, Verdict

from . import nft_release
from .engine_pair import (
    EGRESS,
    HERE,
    INGRESS,
    LOUD,
    SECOND,
    THERE,
    Pair,
    Place,
    cgroup,
    collect,
    connect_inside,
    desired,
    listen_inside,
    rule,
    tcp,
    udp,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

ALLOW, AUDIT, BLOCK = Action.ALLOW, Action.AUDIT, Action.BLOCK


@pytest.fixture(params=["the machine's nft", "a current nft"])
def program(request: pytest.FixtureRequest) -> str | None:
    return str(nft_release.prepare()) if request.param == "a current nft" else None


@pytest.fixture
def engine(program: str | None) -> Iterator[NftablesEngine]:
    made = NftablesEngine(program)
    with contextlib.closing(made):
        yield made


@pytest.fixture
def pair() -> Iterator[Pair]:
    with Pair() as made:
        yield made


def told(engine: NftablesEngine, verdict: str = "deny") -> NetworkEvent:
    """Give the first event with a verdict."""

    def found(events: list[NetworkEvent | NameAnswer]) -> bool:
        return any(isinstance(event, NetworkEvent) and event.verdict == verdict for event in events)

    return next(
        event for event in collect(engine, found) if isinstance(event, NetworkEvent) and event.verdict == verdict
    )


def test_the_probe_finds_everything_here(engine: NftablesEngine) -> None:
    probe = engine.probe()
    assert probe.available, probe.reason
    missing = {what for what, found in probe.details.items() if what not in {"kernel", "nft"} and found != "yes"}
    assert missing == set()


def test_a_machine_without_nft_is_told_what_to_install() -> None:
    with contextlib.closing(NftablesEngine("/nowhere/nft")) as engine:
        probe = engine.probe()
    assert not probe.available
    assert "install nftables" in probe.reason


def test_only_what_is_blocked_is_refused_and_told(engine: NftablesEngine, pair: Pair) -> None:
    engine.apply(pair.here.namespace, desired(rule(EGRESS, BLOCK, f"{THERE[4]}/32", ports=tcp(80)), identifier=7))
    assert pair.no_tcp_out(80)
    event = told(engine)
    assert (event.endpoint, event.direction, event.reason) == (7, EGRESS, "rule")
    assert (event.protocol, event.source_address, event.destination_address) == ("tcp", HERE[4], THERE[4])
    assert (event.destination_port, event.interface_out, event.interface_in) == (80, "eth0", "")
    assert event.namespace == pair.here.namespace.inode
    pair.tcp_out(81)
    pair.tcp_out(80, to=SECOND)
    pair.tcp_out(80, 6)
    pair.tcp_in(80)


def test_an_allow_list_refuses_the_rest_in_its_direction(engine: NftablesEngine, pair: Pair) -> None:
    engine.apply(pair.here.namespace, desired(rule(INGRESS, ALLOW, "fd09::/16", ports=tcp(443))))
    pair.tcp_in(443, 6)
    assert pair.no_tcp_in(443, 4)
    assert told(engine).reason == "default"
    assert pair.no_tcp_in(80, 6)
    pair.tcp_out(80)
    assert not pair.ping(inward=True, expected=False)
    assert not pair.ping(6, inward=True, expected=False)
    assert pair.ping(6)


def test_an_audited_packet_passes_and_is_told(engine: NftablesEngine, pair: Pair) -> None:
    engine.apply(pair.here.namespace, desired(rule(INGRESS, AUDIT, ports=udp(53))))
    assert pair.udp_in(53)
    event = told(engine, "audit")
    assert (event.direction, event.destination_port, event.interface_in) == (INGRESS, 53, "eth0")


def test_an_interface_an_icmp_type_and_exceptions_narrow_a_rule(engine: NftablesEngine, pair: Pair) -> None:
    engine.apply(
        pair.here.namespace,
        desired(
            rule(EGRESS, BLOCK, interfaces=("wlan*",)),
            rule(EGRESS, BLOCK, interfaces=("eth*",), ports=udp(9)),
            rule(INGRESS, BLOCK, icmp=((4, 8),)),
            rule(EGRESS, BLOCK, "10.9.0.0/24", exceptions=(f"{THERE[4]}/32",), ports=udp(10)),
        ),
    )
    assert not pair.udp_out(9, expected=False)
    assert pair.udp_out(11)
    assert not pair.ping(inward=True, expected=False)
    assert pair.ping(6, inward=True)
    assert pair.ping()
    assert pair.udp_out(10)
    assert not pair.udp_out(10, to=SECOND, expected=False)


def test_applying_a_and_then_b_equals_applying_b(program: str | None, engine: NftablesEngine, pair: Pair) -> None:
    one = desired(rule(EGRESS, BLOCK, "10.0.0.0/8", ports=tcp(80)), rule(INGRESS, ALLOW, "fd00::/8"))
    other = desired(rule(EGRESS, ALLOW, "10.9.0.0/24", ports=udp(53)), identifier=3)
    first = engine.apply(pair.there.namespace, other)
    assert engine.apply(pair.here.namespace, one).change == "table"
    second = engine.apply(pair.here.namespace, other)
    assert second.change == "table"
    assert first.digest == second.digest == engine.held(pair.here.namespace) == engine.held(pair.there.namespace)
    assert _objects(pair.here, program) == _objects(pair.there, program)
    assert engine.apply(pair.here.namespace, other).change == "nothing"


def _objects(place: Place, program: str | None) -> list[str]:
    """Give chains, sets and quotas as nft lists them, whatever order they were made in."""
    text = place.listing(program=program).removesuffix("}\n").split("{", 1)[1]
    return sorted(part.strip() for part in text.split("\n\n"))


def test_one_more_address_is_one_element(engine: NftablesEngine, pair: Pair) -> None:
    many = [f"192.0.{third}.{fourth}/32" for third in range(3) for fourth in range(0, 250, 2)]
    engine.apply(pair.here.namespace, desired(rule(EGRESS, BLOCK, *many, ports=tcp(80))))
    more = desired(rule(EGRESS, BLOCK, *many, f"{THERE[4]}/32", ports=tcp(80)))
    applied = engine.apply(pair.here.namespace, more)
    assert applied.change == "elements"
    assert applied.digest == engine.held(pair.here.namespace)
    assert pair.no_tcp_out(80)
    fewer = desired(rule(EGRESS, BLOCK, *many, ports=tcp(80)))
    assert engine.apply(pair.here.namespace, fewer).change == "elements"
    pair.tcp_out(80)
    assert engine.verify() == []


def test_many_addresses_that_go_at_once(engine: NftablesEngine, pair: Pair) -> None:
    many = [f"192.{second}.{third}.0/25" for second in range(20) for third in range(0, 250, 2)]
    engine.apply(pair.here.namespace, desired(rule(EGRESS, BLOCK, *many, f"{THERE[4]}/32", ports=tcp(80))))
    assert pair.no_tcp_out(80)
    applied = engine.apply(pair.here.namespace, desired(rule(EGRESS, BLOCK, *many[:100], ports=tcp(80))))
    assert applied.digest == engine.held(pair.here.namespace)
    pair.tcp_out(80)


def test_after_a_restart_what_the_kernel_holds_is_taken_up(
    program: str | None, engine: NftablesEngine, pair: Pair
) -> None:
    wanted = desired(rule(EGRESS, BLOCK, ports=tcp(80)), rule(INGRESS, BLOCK, "fd00::/8"))
    first = engine.apply(pair.here.namespace, wanted)
    engine.close()
    assert pair.no_tcp_out(80), "the rules outlive the engine"
    with contextlib.closing(NftablesEngine(program)) as again:
        assert again.held(pair.here.namespace) == first.digest
        assert again.apply(pair.here.namespace, wanted) == replace(first, change="nothing")


def test_containers_that_share_a_namespace_are_told_apart_by_cgroup(engine: NftablesEngine, pair: Pair) -> None:
    with cgroup("pod", "one") as one, cgroup("two") as two, pair.there.socket(socket.SOCK_STREAM) as listener:
        listener.bind((THERE[4], 80))
        listener.listen()
        blocked = RuleSet((rule(EGRESS, BLOCK, ports=tcp(80)),))
        allowed = RuleSet((rule(EGRESS, ALLOW, ports=tcp(80)),))
        endpoints = (
            Endpoint(5, (blocked,), Cgroup(one.stat().st_ino, 3)),
            Endpoint(6, (allowed,), Cgroup(two.stat().st_ino, 2)),
        )
        engine.apply(pair.here.namespace, Desired(endpoints, LOUD))
        (one / "child").mkdir()
        for path, said in ((one, "TimeoutError"), (one / "child", "TimeoutError"), (one.parent, "sent"), (two, "sent")):
            with connect_inside(pair.here, path, THERE[4], 80) as process:
                assert process.said == said, path
        assert told(engine).endpoint == 5
        with connect_inside(pair.here, two, THERE[4], 81) as process:
            assert process.said == "TimeoutError"
        assert told(engine).endpoint == 6
        pair.tcp_out(81)  # who is in neither is subject to no rule


def test_what_comes_in_belongs_to_the_cgroup_that_listens(engine: NftablesEngine, pair: Pair) -> None:
    with cgroup() as path:
        blocked = RuleSet((rule(INGRESS, BLOCK, ports=tcp(80, 8080)),))
        engine.apply(pair.here.namespace, Desired((Endpoint(5, (blocked,), Cgroup(path.stat().st_ino, 1)),), LOUD))
        with listen_inside(pair.here, path, HERE[4], 80), pair.there.socket(socket.SOCK_STREAM) as client:
            client.settimeout(0.4)
            with pytest.raises(TimeoutError):
                client.connect((HERE[4], 80))
        pair.tcp_in(8080)  # nobody's listener is subject to no rule


def test_both_rule_sets_of_an_endpoint_hold(engine: NftablesEngine, pair: Pair) -> None:
    one, other = RuleSet((rule(EGRESS, BLOCK, ports=tcp(80)),)), RuleSet((rule(EGRESS, ALLOW, ports=tcp(80, 81)),))
    endpoint = desired(*one.rules).endpoints[0]
    engine.apply(pair.here.namespace, Desired((replace(endpoint, rule_sets=(one, other)),), LOUD))
    assert pair.no_tcp_out(80)
    pair.tcp_out(81)
    assert pair.no_tcp_out(82)
    engine.apply(pair.here.namespace, Desired((replace(endpoint, rule_sets=(other,)),), LOUD))
    pair.tcp_out(80)


def test_members_of_a_group_come_and_go_without_a_reload(engine: NftablesEngine, pair: Pair) -> None:
    name = PeerGroup("name", "www.example.com")
    wanted = desired(rule(EGRESS, ALLOW, groups=(name,), ports=tcp(80)))
    before = engine.apply(pair.here.namespace, wanted)
    assert pair.no_tcp_out(80)
    engine.set_members(pair.here.namespace, name, ((THERE[4], 3600), (THERE[6], None)))
    pair.tcp_out(80)
    pair.tcp_out(80, 6)
    assert pair.no_tcp_out(80, to=SECOND)
    assert engine.verify() == []
    flow = pair.tcp_out(80)
    engine.set_members(pair.here.namespace, name, ())
    assert pair.no_tcp_out(80)
    assert flow.works(), "a name's answer ends, and the flow it allowed goes on"
    assert engine.held(pair.here.namespace) == before.digest


def test_the_time_of_a_member_is_renewed(program: str | None, engine: NftablesEngine, pair: Pair) -> None:
    name = PeerGroup("name", "www.example.com")
    engine.apply(pair.here.namespace, desired(rule(EGRESS, ALLOW, groups=(name,))))
    engine.set_members(pair.here.namespace, name, ((THERE[4], 60),))
    assert "timeout 1m expires" in pair.here.listing(program=program)
    engine.set_members(pair.here.namespace, name, ((THERE[4], 3600),))
    assert "timeout 1h expires" in pair.here.listing(program=program)
    assert engine.verify() == []


def test_the_digest_follows_the_members_of_a_group(engine: NftablesEngine, pair: Pair) -> None:
    world = PeerGroup("entity", "world")
    wanted = desired(rule(EGRESS, BLOCK, groups=(world,)))
    for members in ((("203.0.113.0/24", None), ("2001:db8::/32", None)), ((f"{THERE[4]}/32", None),), ()):
        applied = engine.apply(pair.here.namespace, replace(wanted, groups={world: members}))
        assert applied.digest == engine.held(pair.here.namespace), members
    engine.set_members(pair.here.namespace, world, ((f"{THERE[4]}/32", 100), (f"{SECOND[4]}/32", None)))
    assert pair.no_tcp_out(80)
    assert engine.verify() == []
    again = engine.apply(pair.here.namespace, replace(wanted, groups={world: ((f"{SECOND[4]}/32", None),)}))
    assert again.digest == engine.held(pair.here.namespace)
    pair.tcp_out(80)


def test_members_where_nothing_holds_are_refused(engine: NftablesEngine, pair: Pair) -> None:
    with pytest.raises(EngineError, match="apply them first"):
        engine.set_members(pair.here.namespace, PeerGroup("name", "www.example.com"), ())


def test_removing_takes_our_table_and_no_other(engine: NftablesEngine, pair: Pair) -> None:
    pair.here.nft("table inet theirs { chain c { type filter hook output priority 0; tcp dport 7 drop; }; }")
    others = pair.here.listing("inet theirs")
    engine.apply(pair.here.namespace, desired(rule(EGRESS, BLOCK)))
    assert pair.no_tcp_out(80)
    engine.remove(pair.here.namespace)
    assert engine.held(pair.here.namespace) is None
    pair.tcp_out(80)
    assert pair.here.run("nft", "list", "tables").split() == ["table", "inet", "theirs"]
    assert pair.here.listing("inet theirs") == others
    engine.remove(pair.here.namespace)


def test_no_other_table_is_touched_by_any_change(engine: NftablesEngine, pair: Pair) -> None:
    theirs = "table ip hauberk { set s { type ipv4_addr; elements = { 192.0.2.1 }; }; chain c { counter; }; }\n"
    pair.here.nft(theirs + "table inet hauberk2 { quota q { over 5 bytes; }; chain c { tcp dport 7 drop; }; }")
    before = [pair.here.listing(table) for table in ("ip hauberk", "inet hauberk2")]
    for wanted in (desired(rule(EGRESS, BLOCK)), desired(rule(INGRESS, ALLOW, "10.0.0.0/8")), desired()):
        engine.apply(pair.here.namespace, wanted)
        assert [pair.here.listing(table) for table in ("ip hauberk", "inet hauberk2")] == before
    engine.remove(pair.here.namespace)
    assert [pair.here.listing(table) for table in ("ip hauberk", "inet hauberk2")] == before


def test_a_namespace_whose_processes_ended_can_still_be_changed(engine: NftablesEngine, pair: Pair) -> None:
    engine.apply(pair.here.namespace, desired(rule(EGRESS, BLOCK, ports=tcp(80))))
    pair.here.end_process()
    applied = engine.apply(pair.here.namespace, desired(rule(EGRESS, BLOCK, ports=tcp(81))))
    assert applied.digest == engine.held(pair.here.namespace)
    pair.tcp_out(80)
    assert pair.no_tcp_out(81)
    engine.remove(pair.here.namespace)
    pair.tcp_out(81)
    engine.remove(pair.here.namespace)


def test_a_path_that_leads_elsewhere_by_now_is_refused(engine: NftablesEngine, pair: Pair) -> None:
    elsewhere = Namespace(pair.here.namespace.inode, pair.there.namespace.path)
    with pytest.raises(EngineError, match="expected network namespace"):
        engine.apply(elsewhere, desired(rule(EGRESS, BLOCK)))
    with pytest.raises(EngineError, match="expected network namespace"):
        engine.held(Namespace(os.stat("/proc/self/ns/mnt").st_ino, "/proc/self/ns/mnt"))  # noqa: PTH116
    assert pair.there.run("nft", "list", "ruleset") == ""
    engine.remove(elsewhere)


def test_the_agents_own_threads_stay_where_they_are(engine: NftablesEngine, pair: Pair) -> None:
    before = os.readlink("/proc/thread-self/ns/net")  # noqa: PTH115 - no file of this name
    engine.apply(pair.here.namespace, desired(rule(EGRESS, BLOCK)))
    engine.verify()
    list(engine.drain())
    while len(os.listdir("/proc/self/task")) > threading.active_count():  # noqa: PTH208
        pass  # a thread that was joined is still being taken down
    tasks = {str(link.readlink()) for link in Path("/proc/self/task").glob("*/ns/net")}
    assert tasks == {before}


def test_what_nft_refuses_changes_nothing(pair: Pair) -> None:
    with contextlib.closing(NftablesEngine()) as engine:
        before = engine.apply(pair.here.namespace, desired(rule(EGRESS, BLOCK, ports=tcp(80))))
    with contextlib.closing(NftablesEngine("/bin/false")) as engine:
        with pytest.raises(EngineError, match="exit code 1"):
            engine.apply(pair.here.namespace, desired(rule(EGRESS, ALLOW)))
        assert engine.held(pair.here.namespace) == before.digest
        assert pair.no_tcp_out(80)
        pair.tcp_out(81)


def test_postures_other_than_refusing(engine: NftablesEngine, pair: Pair) -> None:
    engine.apply(pair.here.namespace, desired(rule(EGRESS, ALLOW, ports=tcp(80)), posture=Verdict.AUDIT))
    pair.tcp_out(81)
    assert told(engine, "audit").reason == "default"
    engine.apply(pair.here.namespace, desired(rule(EGRESS, ALLOW, ports=tcp(80)), posture=Verdict.DENY))
    assert pair.no_tcp_out(81)
    pair.tcp_out(80)
