# SPDX-License-Identifier: Apache-2.0
"""Alerts of packets name what decided; what repeats is counted and told at its window's end, in bounded memory."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest_agent.engines.network_port import NetworkEvent
from guest_agent.events.alerts import DEFAULT_POSTURE, OWN_POLICY, Subject
from guest_agent.events.folding import KINDS_OF_ONE, MAXIMUM_KINDS, OTHERS, WINDOW_NS, Folding, kind_of
from guest_agent.events.network import NetworkAlertMaker, PeerFacts
from hauberk.policy.rules import Action, ObjectKind, Origin, PeerGroup, PeerMatch, Rule, RuleSet, Section, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable

WORLD = PeerGroup("entity", "world")
PAGES = PeerGroup("name", "*.example.com")


def rule(section: Section, action: Action, field: str, match: PeerMatch, **more: object) -> Rule:
    return Rule(
        section, ObjectKind.PEER, field, action, Origin("shop/fence", f"spec.{field}", "f.yaml", 7, 3), match=match,
        **more,  # type: ignore[arg-type]
    )  # fmt: skip


BLOCK = rule(
    Section.EGRESS, Action.BLOCK, "egress[0]", PeerMatch(("192.0.2.0/24",), ports=((443, 443, "tcp"),)),
    severity=7, tags=("net", "x"), message="not there",
)  # fmt: skip
AUDIT = rule(Section.EGRESS, Action.AUDIT, "egress[1]", PeerMatch(groups=(PAGES,)))
QUOTA = rule(Section.EGRESS, Action.ALLOW, "egress[2]", PeerMatch(("198.51.100.0/24",), quota=(1000, 60, "pod")))
ECHO = rule(Section.INGRESS, Action.BLOCK, "ingress[0]", PeerMatch(icmp=((4, 8),)))
INSIDE = rule(Section.INGRESS, Action.BLOCK, "ingress[1]", PeerMatch(interfaces=("eth1",), groups=(WORLD,)))
RULES = RuleSet((BLOCK, AUDIT, QUOTA, ECHO, INSIDE))
SUBJECT = Subject("c1", "app", "shop", "pod-1", "image:1", "app=secrets", RULES)
EVENT = NetworkEvent(
    timestamp_ns=90_000_000_000, namespace=4026531840, verdict="deny", endpoint=3, direction=Section.EGRESS,
    protocol="tcp", source_address="10.0.0.5", destination_address="192.0.2.9", source_port=40000,
    destination_port=443, interface_out="eth0",
)  # fmt: skip
ARRIVING = replace(
    EVENT, direction=Section.INGRESS, source_address="203.0.113.1", destination_address="10.0.0.5", interface_in="eth1",
    interface_out="",
)  # fmt: skip


@pytest.fixture
def maker() -> NetworkAlertMaker:
    # 100 s after boot it is 1,700,000,100.25 s
    return NetworkAlertMaker("host-1", "nftables", lambda: (1_700_000_100_250_000_000, 100_000_000_000))


def test_an_alert_names_policy_rule_peer_and_container(maker: NetworkAlertMaker) -> None:
    assert maker.make(EVENT, SUBJECT) == {
        "Timestamp": 1_700_000_090,
        "UpdatedTime": "2023-11-14T22:14:50.250000Z",
        "HostName": "host-1",
        "NamespaceName": "shop",
        "PodName": "pod-1",
        "ContainerID": "c1",
        "ContainerName": "app",
        "HostPID": 0,
        "PPID": 0,
        "UID": 0,
        "PolicyName": "shop/fence",
        "Severity": "7",
        "Tags": "net,x",
        "ATags": ["net", "x"],
        "Message": "not there",
        "Type": "MatchedNetworkPolicy",
        "Source": "",
        "Operation": "NetworkFirewall",
        "Resource": "EGRESS",
        "Data": "SourceIP=10.0.0.5 SourcePort=40000 DestinationIP=192.0.2.9 DestinationPort=443 Protocol=TCP"
        " OutInterface=eth0",
        "Action": "Block",
        "Result": "Permission denied",
        "ProcessName": "",
        "ParentProcessName": "",
        "Labels": "app=secrets",
        "ContainerImage": "image:1",
        "Enforcer": "nftables",
        "Rule": "spec.egress[0] (f.yaml:7)",
    }


def test_what_is_audited_passed_and_the_peers_names_are_told(maker: NetworkAlertMaker) -> None:
    event = replace(EVENT, verdict="audit", destination_address="198.18.0.1")
    alert = maker.make(event, SUBJECT, PeerFacts(names=("www.example.com",)))
    assert (alert["Rule"], alert["Action"], alert["Result"]) == ("spec.egress[1] (f.yaml:7)", "Audit", "Passed")
    assert alert["Data"].endswith(" PeerNames=www.example.com")


def test_what_comes_in_is_judged_by_its_source_and_interface(maker: NetworkAlertMaker) -> None:
    alert = maker.make(ARRIVING, SUBJECT, PeerFacts(entities=("world",)))
    assert (alert["Resource"], alert["Rule"]) == ("INGRESS", "spec.ingress[1] (f.yaml:7)")
    assert " InInterface=eth1" in alert["Data"]


def test_types_of_icmp_have_no_ports(maker: NetworkAlertMaker) -> None:
    event = replace(
        ARRIVING, protocol="icmp", source_port=None, destination_port=None, icmp_type=8, icmp_code=0, count=4
    )
    alert = maker.make(event, SUBJECT)
    assert alert["Rule"] == "spec.ingress[0] (f.yaml:7)"
    assert alert["Data"] == (
        "SourceIP=203.0.113.1 DestinationIP=10.0.0.5 Protocol=ICMP ICMPType=8 ICMPCode=0 InInterface=eth1 Count=4"
    )


def test_a_quota_that_is_used_up_is_named_with_its_limit(maker: NetworkAlertMaker) -> None:
    event = replace(EVENT, destination_address="198.51.100.1", reason="quota")
    alert = maker.make(event, SUBJECT)
    assert alert["Rule"] == "spec.egress[2] (f.yaml:7)"
    assert alert["Data"].endswith(" QuotaLevel=pod QuotaBytes=1000 QuotaSeconds=60")


@pytest.mark.parametrize(("posture", "verdict"), [(Verdict.DENY, "deny"), (Verdict.AUDIT, "audit")])
def test_what_no_rule_matches_is_the_posture(maker: NetworkAlertMaker, posture: Verdict, verdict: str) -> None:
    subject = replace(SUBJECT, rule_set=replace(RULES, posture=posture))
    event = replace(EVENT, destination_port=80, reason="default", verdict=verdict)  # type: ignore[arg-type]
    alert = maker.make(event, subject)
    assert (alert["PolicyName"], alert["Message"]) == (DEFAULT_POSTURE, "")
    assert "allow-list" in alert["Rule"]


@pytest.mark.parametrize(
    "event",
    [
        replace(EVENT, verdict="audit"),  # the rules refuse it
        replace(EVENT, reason="default"),  # a rule is about it
        replace(EVENT, destination_address="198.51.100.1"),  # a rule allows it
        replace(EVENT, reason="quota"),  # no quota is about it
    ],
)
def test_an_alert_does_not_tell_another_story_than_the_kernel(maker: NetworkAlertMaker, event: NetworkEvent) -> None:
    alert = maker.make(event, SUBJECT)
    assert (alert["PolicyName"], alert["Rule"]) == ("", "")
    assert "say otherwise" in alert["Message"]


def test_a_workload_whose_rules_are_not_known(maker: NetworkAlertMaker) -> None:
    alert = maker.make(EVENT, Subject())
    assert (alert["PolicyName"], alert["Rule"]) == ("", "")
    assert "not known" in alert["Message"]


def test_what_no_policy_said_is_told_in_our_own_name(maker: NetworkAlertMaker) -> None:
    tampered = NetworkEvent(90_000_000_000, 4026531840, "tampered", detail="the table is\x1b gone\udc80")
    alert = maker.make(tampered, Subject())
    assert (alert["PolicyName"], alert["Rule"], alert["Resource"]) == (OWN_POLICY, "tampered", "RULES")
    assert alert["Data"].startswith("NetworkNamespace=4026531840 Found=the table is")
    assert alert["Data"].isascii()
    for event, named in (
        (replace(EVENT, reason="unattributed", protocol="sctp"), "unattributed"),
        (replace(EVENT, detail=OTHERS, count=1, source_address="", destination_address=""), "folded"),
    ):
        alert = maker.make(event, SUBJECT)
        assert (alert["PolicyName"], alert["Rule"]) == (OWN_POLICY, named)
    assert alert["Data"].endswith(" Count=1")


def test_an_answer_is_kept_for_these_rules_and_no_others(maker: NetworkAlertMaker) -> None:
    assert maker.make(EVENT, SUBJECT)["Rule"] == maker.make(EVENT, SUBJECT)["Rule"] == "spec.egress[0] (f.yaml:7)"
    other = replace(BLOCK, origin=Origin("other", "spec.egress[9]"))
    assert maker.make(EVENT, replace(SUBJECT, rule_set=RuleSet((other,))))["Rule"] == "spec.egress[9]"
    for number in range(3000):
        maker.make(replace(EVENT, destination_port=number), SUBJECT)
    assert len(maker._cache) <= 1024  # noqa: SLF001 - the bound is what is tested


# ---- folding -------------------------------------------------------------------------------------------------------


def at(seconds: float, event: NetworkEvent = EVENT, **changes: object) -> NetworkEvent:
    return replace(event, timestamp_ns=int(seconds * 1e9), **changes)  # type: ignore[arg-type]


def counts(events: Iterable[NetworkEvent]) -> list[tuple[str, int]]:
    return [(event.destination_address, event.count) for event in events]


def test_the_first_is_told_at_once_and_the_rest_when_the_window_ends() -> None:
    folding = Folding()
    assert folding.add(at(100)) == at(100)
    assert folding.add(at(101, source_port=40001)) is None
    assert folding.add(at(102, source_port=40002, count=5)) is None
    assert list(folding.due(at(109.9).timestamp_ns)) == []
    assert list(folding.due(at(110).timestamp_ns)) == [at(102, source_port=40002, count=6)]
    assert folding.statistics() == {"packets_folded": 6, "packets_told_without_peer": 0}


def test_what_goes_on_is_told_once_a_window_and_what_stops_is_forgotten() -> None:
    folding = Folding()
    folding.add(at(100))
    folding.add(at(105))
    assert counts(folding.due(at(110).timestamp_ns)) == [("192.0.2.9", 1)]
    assert folding.add(at(111)) is None
    assert counts(folding.due(at(120).timestamp_ns)) == [("192.0.2.9", 1)]
    assert list(folding.due(at(130).timestamp_ns)) == []
    assert folding.add(at(131)) == at(131)


@pytest.mark.parametrize(
    "changes",
    [
        {"namespace": 1}, {"endpoint": 4}, {"direction": Section.INGRESS}, {"verdict": "audit"}, {"reason": "default"},
        {"protocol": "udp"}, {"destination_address": "192.0.2.10"}, {"destination_port": 444}, {"icmp_type": 3},
        {"interface_out": "eth1"},
    ],
    ids=lambda changes: next(iter(changes)),
)  # fmt: skip
def test_what_makes_a_kind(changes: dict[str, object]) -> None:
    folding = Folding()
    folding.add(at(100))
    assert folding.add(replace(at(100), **changes)) is not None  # type: ignore[arg-type]


def test_the_peer_of_what_comes_in_is_its_source() -> None:
    folding = Folding()
    assert folding.add(at(1, ARRIVING)) is not None
    assert folding.add(at(1, ARRIVING, destination_address="10.0.0.6", source_port=1)) is None
    assert folding.add(at(1, ARRIVING, source_address="203.0.113.2")) is not None


def test_a_flood_of_made_up_peers_is_counted_and_costs_others_nothing() -> None:
    folding = Folding()
    told = [folding.add(at(1, ARRIVING, source_address=f"10.{n >> 8}.{n & 255}.1")) for n in range(5000)]
    assert sum(event is not None for event in told) == KINDS_OF_ONE
    assert folding.add(at(1, endpoint=9)) is not None
    assert folding.add(at(1)) is not None  # the other direction of the flooded endpoint
    (rest,) = folding.due(at(11).timestamp_ns)
    assert (rest.detail, rest.count, rest.source_address) == (OTHERS, 5000 - KINDS_OF_ONE, "")
    assert (rest.endpoint, rest.direction, rest.verdict) == (3, Section.INGRESS, "deny")
    assert folding.statistics()["packets_told_without_peer"] == 5000 - KINDS_OF_ONE
    assert folding._groups == {}  # noqa: SLF001 - nothing is kept of a window that is over


def test_of_all_endpoints_together_there_is_a_bound_too() -> None:
    folding = Folding()
    told = 0
    for endpoint in range(1 + MAXIMUM_KINDS // KINDS_OF_ONE):
        told += sum(folding.add(at(1, endpoint=endpoint, destination_port=n)) is not None for n in range(KINDS_OF_ONE))
    assert told == MAXIMUM_KINDS
    assert [event.count for event in folding.flush()] == [KINDS_OF_ONE]
    assert list(folding.flush()) == []
    assert folding.add(at(1)) is not None


STREAMS = st.lists(
    st.tuples(
        st.integers(0, 60), st.integers(0, 2), st.integers(0, 2 * KINDS_OF_ONE), st.integers(1, 5), st.booleans()
    ),
    max_size=120,
)


@given(STREAMS)
def test_no_packet_is_lost_or_told_twice(stream: list[tuple[int, int, int, int, bool]]) -> None:
    folding = Folding()
    given_counts: Counter[int] = Counter()
    told: list[NetworkEvent] = []
    for second, endpoint, port, count, look in sorted(stream):
        event = at(second, endpoint=endpoint, destination_port=port, count=count)
        given_counts[endpoint] += count
        now = folding.add(event)
        told += [now] if now else []
        told += list(folding.due(event.timestamp_ns)) if look else []
    told += folding.flush()
    told_counts: Counter[int] = Counter()
    for event in told:
        told_counts[event.endpoint] += event.count
    assert told_counts == given_counts
    windows: dict[object, list[int]] = {}
    for event in told:
        windows.setdefault((event.endpoint, kind_of(event)), []).append(event.timestamp_ns)
    assert all(times == sorted(times) for times in windows.values())


def test_the_window_can_be_another() -> None:
    folding = Folding(window_ns=1)
    folding.add(at(1))
    folding.add(at(1))
    assert counts(folding.due(at(1).timestamp_ns)) == []
    assert counts(folding.due(at(1).timestamp_ns + 1)) == [("192.0.2.9", 1)]
    assert WINDOW_NS == 10_000_000_000
