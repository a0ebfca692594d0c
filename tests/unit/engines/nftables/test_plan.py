# SPDX-License-Identifier: Apache-2.0
"""The ruleset's shape: who is asked where, what is counted, what does not fit."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings

from guest_agent.engines.network_port import Attachment, Cgroup, Desired, Endpoint, Interface, Settings, Whole
from guest_agent.engines.nftables import boxes, matching, ranges
from guest_agent.engines.nftables.evaluation import Evaluation, Packet
from guest_agent.engines.nftables.plan import PlanError, difference, plan
from guest_agent.engines.nftables.ruleset import MAXIMUM_NAME, LogMark, Ruleset
from hauberk.policy import exemptions
from hauberk.policy.rules import Action, Origin, PeerMatch, Rule, RuleSet, Section, Verdict
from tests.unit.engines.nftables.policies import GROUPS, MEMBERS, rule, rule_sets

if TYPE_CHECKING:
    from collections.abc import Iterable

IN, OUT = Section.INGRESS, Section.EGRESS
OURS = "10.99.99.99"


def of(*rules: Rule, endpoint: int = 0, attachment: Attachment | None = None, **parts: Any) -> Desired:  # noqa: ANN401
    return Desired((Endpoint(endpoint, (RuleSet(rules),), attachment or Whole()),), **parts)


def incoming(source: str, port: int = 80, **parts: Any) -> Packet:  # noqa: ANN401 - parts of a packet
    packet = Packet(source, OURS, 6, 40000, port, interface_in="eth0")
    return replace(packet, **parts)


def outgoing(destination: str, port: int = 80, **parts: Any) -> Packet:  # noqa: ANN401 - parts of a packet
    packet = Packet(OURS, destination, 6, 40000, port, interface_out="eth0")
    return replace(packet, **parts)


def passes(ruleset: Ruleset, hook: Any, packet: Packet) -> bool:  # noqa: ANN401 - a hook's name
    return Evaluation(ruleset).packet(hook, packet).passes


def hooks(ruleset: Ruleset) -> set[str]:
    return {chain.name for chain in ruleset.chains if chain.hook}


# Nothing to hold


@pytest.mark.parametrize(
    "rules",
    [
        (),
        (rule(IN, Action.BLOCK, nothing=True),),
        (rule(IN, Action.ALLOW, default_deny=False),),
        (rule(IN, Action.ALLOW, groups=(GROUPS[3],), default_deny=False),),
    ],
)
def test_what_refuses_and_tells_nothing_costs_nothing(rules: tuple[Rule, ...]) -> None:
    assert plan(of(*rules)) == Ruleset()


def test_an_allow_list_that_allows_everything_by_default_costs_nothing() -> None:
    rules = RuleSet((rule(OUT, Action.ALLOW, cidrs=("10.0.0.0/8",)),), Verdict.ALLOW)
    assert plan(Desired((Endpoint(0, (rules,), Whole()),))) == Ruleset()


# Families


def test_a_rule_for_one_family_says_nothing_of_the_other() -> None:
    ruleset = plan(of(rule(OUT, Action.BLOCK, cidrs=("192.168.1.0/24",), ports=((3000, 4000, "udp"),))))
    assert not any("ipv6_addr" in one.fields for one in ruleset.sets.values() if one.name.startswith("s"))
    assert passes(ruleset, "output", outgoing("fd00::1", 3500, source="fd99::99", protocol=17))
    assert not passes(ruleset, "output", outgoing("192.168.1.7", 3500, protocol=17))


def test_an_allow_list_of_one_family_refuses_the_other() -> None:
    ruleset = plan(of(rule(IN, Action.ALLOW, cidrs=("10.0.0.0/8",))))
    assert passes(ruleset, "input", incoming("10.1.1.1"))
    assert not passes(ruleset, "input", incoming("fd00::1", destination="fd99::99"))


# Who is asked where


def test_the_machines_rules_are_not_about_what_it_forwards_but_a_workloads_are() -> None:
    block = rule(OUT, Action.BLOCK, cidrs=("10.0.0.0/8",))
    assert hooks(plan(of(block))) == {"h0.0o.output"}
    inside = plan(of(block, endpoint=9))
    assert hooks(inside) == {"h9.0o.output", "h9.0o.forward"}
    assert not passes(inside, "forward", outgoing("10.1.1.1"))


def test_from_outside_a_workload_sends_what_comes_in_by_its_interface() -> None:
    rules = (rule(OUT, Action.BLOCK, cidrs=("10.0.0.0/8",)), rule(IN, Action.BLOCK, cidrs=("10.2.0.0/16",)))
    ruleset = plan(of(*rules, endpoint=3, attachment=Interface("veth3")))
    assert hooks(ruleset) == {"v.0o.input", "v.0o.forward", "v.0i.output", "v.0i.forward"}
    sent = Packet("10.9.9.9", "10.1.1.1", 6, 40000, 80, interface_in="veth3", interface_out="eth0")
    assert not passes(ruleset, "forward", sent)
    assert not passes(ruleset, "input", replace(sent, interface_out=""))
    assert passes(ruleset, "forward", replace(sent, interface_in="veth4"))
    received = Packet("10.2.1.1", "10.9.9.9", 6, 40000, 80, interface_in="eth0", interface_out="veth3")
    assert not passes(ruleset, "forward", received)
    assert passes(ruleset, "forward", replace(received, interface_out="eth1"))
    mark = Evaluation(ruleset).packet("forward", sent).told[0]
    assert mark == LogMark(3, OUT, "deny", "rule")


def test_of_two_workloads_seen_from_outside_both_must_let_pass() -> None:
    sender = Endpoint(1, (RuleSet((rule(OUT, Action.ALLOW, ports=((80, 80, "tcp"),)),)),), Interface("a"))
    receiver = Endpoint(2, (RuleSet((rule(IN, Action.ALLOW, ports=((80, 90, "tcp"),)),)),), Interface("b"))
    ruleset = plan(Desired((sender, receiver)))
    packet = Packet("10.0.0.1", "10.0.0.2", 6, 40000, 80, interface_in="a", interface_out="b")
    assert passes(ruleset, "forward", packet)
    assert not passes(ruleset, "forward", replace(packet, destination_port=85))
    assert not passes(ruleset, "forward", replace(packet, destination_port=91))


def test_cgroups_are_asked_at_their_level() -> None:
    endpoints = tuple(
        Endpoint(
            number, (RuleSet((rule(OUT, Action.BLOCK, ports=((port, port, "tcp"),)),)),), Cgroup(100 + number, level)
        )
        for number, port, level in ((1, 81, 1), (2, 82, 2), (3, 83, 2))
    )
    ruleset = plan(Desired(endpoints))
    below = (101, 102, 999)
    assert not passes(ruleset, "output", outgoing("10.0.0.1", 81, cgroups=below))
    assert not passes(ruleset, "output", outgoing("10.0.0.1", 82, cgroups=below))
    assert passes(ruleset, "output", outgoing("10.0.0.1", 83, cgroups=below))
    assert not passes(ruleset, "output", outgoing("10.0.0.1", 83, cgroups=(500, 103)))
    assert passes(ruleset, "output", outgoing("10.0.0.1", 81, cgroups=(102, 101)))
    assert passes(ruleset, "output", outgoing("10.0.0.1", 81))


def test_the_machine_and_a_cgroup_of_it_both_must_let_pass() -> None:
    host = Endpoint(0, (RuleSet((rule(OUT, Action.ALLOW, ports=((80, 90, "tcp"),)),)),), Whole())
    inner = Endpoint(4, (RuleSet((rule(OUT, Action.ALLOW, ports=((85, 99, "tcp"),)),)),), Cgroup(44, 1))
    ruleset = plan(Desired((inner, host)))
    for port, inside, expected in ((80, False, True), (80, True, False), (85, True, True), (95, True, False)):
        cgroups = (44,) if inside else (45,)
        assert passes(ruleset, "output", outgoing("10.0.0.1", port, cgroups=cgroups)) is expected


def test_transports_without_a_socket_to_find_are_refused_where_a_cgroup_restricts_what_comes_in() -> None:
    desired = of(rule(IN, Action.ALLOW, ports=((80, 80, "tcp"),)), endpoint=5, attachment=Cgroup(7, 1))
    ruleset = plan(desired)
    sctp = incoming("10.0.0.1", protocol=132)
    outcome = Evaluation(ruleset).packet("input", sctp)
    assert not outcome.passes
    assert outcome.told == [LogMark(0, IN, "deny", "unattributed")]
    assert passes(ruleset, "input", replace(sctp, state="established"))
    assert passes(ruleset, "input", replace(sctp, interface_in="lo"))
    assert passes(ruleset, "input", replace(sctp, protocol=1))
    assert passes(plan(replace(desired, settings=Settings(drop_unknown_transport=False))), "input", sctp)
    outward = of(rule(OUT, Action.BLOCK), endpoint=5, attachment=Cgroup(7, 1))
    assert passes(plan(outward), "input", sctp)


def test_what_udp_sends_to_many_reaches_nobody_where_a_cgroup_restricts_what_comes_in() -> None:
    ruleset = plan(of(rule(IN, Action.BLOCK, cidrs=("192.0.2.0/24",)), endpoint=5, attachment=Cgroup(7, 1)))
    to_many = replace(incoming("10.0.0.1", 5353, protocol=17), destination="224.0.0.251", source_port=5353)
    for packet in (to_many, replace(to_many, state="established"), replace(to_many, destination="255.255.255.255")):
        outcome = Evaluation(ruleset).packet("input", packet)
        assert not outcome.passes
        assert outcome.told == [LogMark(0, IN, "deny", "unattributed")]
    assert passes(ruleset, "input", replace(to_many, interface_in="lo"))
    assert passes(ruleset, "input", replace(to_many, protocol=2))
    assert passes(ruleset, "input", replace(to_many, destination="10.0.0.2"))
    offer = replace(to_many, destination="255.255.255.255", source_port=67, destination_port=68)
    assert passes(ruleset, "input", offer)
    assert not passes(ruleset, "input", replace(offer, source_port=68))


@pytest.mark.parametrize("direction", [IN, OUT])
def test_where_namespaces_are_shared_only_connections_and_answers_stay_with_who_was_judged(direction: Section) -> None:
    ruleset = plan(of(rule(direction, Action.BLOCK), endpoint=5, attachment=Cgroup(7, 1)))
    hook = "input" if direction is IN else "output"
    packet = (incoming if direction is IN else outgoing)("10.0.0.1", 80, protocol=17, cgroups=(7,), state="established")
    assert not passes(ruleset, hook, packet)
    assert passes(ruleset, hook, replace(packet, reply=True))
    assert passes(ruleset, hook, replace(packet, protocol=6))
    assert passes(ruleset, hook, replace(packet, state="related"))
    assert not passes(ruleset, hook, replace(packet, protocol=6, state="new"))


def test_of_a_flow_that_is_judged_again_only_the_first_packet_is_audited() -> None:
    ruleset = plan(of(rule(OUT, Action.AUDIT), endpoint=5, attachment=Cgroup(7, 1)))
    packet = outgoing("10.0.0.1", 80, protocol=17, cgroups=(7,))
    assert Evaluation(ruleset).packet("output", packet).told == [LogMark(5, OUT, "audit", "rule")]
    assert Evaluation(ruleset).packet("output", replace(packet, state="established")).told == []


def test_what_is_known_of_an_endpoint_in_two_ways_can_differ() -> None:
    inside = RuleSet((rule(OUT, Action.BLOCK, cidrs=("10.0.0.0/8",), ports=((80, 80, "tcp"),)),))
    outside = RuleSet((rule(OUT, Action.BLOCK, cidrs=("11.0.0.0/8",), ports=((80, 80, "tcp"),)),))
    ruleset = plan(Desired((Endpoint(5, (inside,), Cgroup(7, 1)), Endpoint(5, (outside,), Interface("v5")))))
    assert not passes(ruleset, "output", outgoing("10.0.0.1", cgroups=(7,)))
    assert passes(ruleset, "output", outgoing("11.0.0.1", cgroups=(7,)))
    assert not passes(ruleset, "forward", outgoing("11.0.0.1", interface_in="v5"))
    assert passes(ruleset, "forward", outgoing("10.0.0.1", interface_in="v5"))


# States


def test_established_flows_and_loopback_pass_and_what_conntrack_calls_invalid_does_not() -> None:
    ruleset = plan(of(rule(IN, Action.BLOCK)))
    assert passes(ruleset, "input", incoming("10.0.0.1", state="established"))
    assert passes(ruleset, "input", incoming("10.0.0.1", state="related"))
    assert passes(ruleset, "input", incoming("127.0.0.1", interface_in="lo"))
    assert not passes(ruleset, "input", incoming("10.0.0.1"))
    outcome = Evaluation(plan(of(rule(IN, Action.AUDIT)))).packet("input", incoming("10.0.0.1", state="invalid"))
    assert (outcome.passes, outcome.told) == (False, [])


def test_what_only_seems_to_go_out_by_loopback_is_asked_about() -> None:
    """The destination was translated, and the kernel still says where the packet was to go before."""
    ruleset = plan(of(rule(OUT, Action.BLOCK)))
    seeming = outgoing("10.0.0.1", interface_out="lo", translated=True)
    assert not passes(ruleset, "output", seeming)
    assert passes(ruleset, "output", replace(seeming, translated=False))
    assert passes(ruleset, "output", replace(seeming, destination="127.0.0.11"))
    assert passes(ruleset, "output", replace(seeming, source="::1", destination="::1"))
    assert not passes(ruleset, "output", replace(seeming, source="fd00::1", destination="fd00::2"))


def test_a_packet_without_readable_ports_matches_only_what_is_about_every_port() -> None:
    ports = plan(of(rule(IN, Action.ALLOW, ports=((1, 65535, "tcp"),))))
    whole = plan(of(rule(IN, Action.ALLOW, ports=((0, 65535, "tcp"),))))
    unreadable = incoming("10.0.0.1", source_port=None, destination_port=None)
    assert not passes(ports, "input", unreadable)
    assert passes(whole, "input", unreadable)


# Quotas


QUOTA = (1000, 60, "pod")


def test_a_quota_counts_established_packets_and_refuses_beyond() -> None:
    evaluation = Evaluation(plan(of(rule(OUT, Action.BLOCK, cidrs=("10.0.0.0/8",), quota=QUOTA))))
    packet = outgoing("10.1.1.1", length=400, state="established")
    assert [evaluation.packet("output", packet).passes for _ in range(4)] == [True, True, False, False]
    assert evaluation.packet("output", replace(packet, destination="11.0.0.1")).passes
    assert not evaluation.packet("output", replace(packet, state="new")).passes
    assert evaluation.packet("output", packet).told == [LogMark(0, OUT, "deny", "quota")]
    assert evaluation.packet("output", replace(packet, interface_out="lo")).passes


def test_every_quota_counts_what_the_others_let_pass() -> None:
    rules = (
        rule(OUT, Action.BLOCK, quota=(10_000, 60, "pod")),
        rule(OUT, Action.AUDIT, ports=((80, 80, "tcp"),), quota=(200, 60, "pod")),
        rule(OUT, Action.AUDIT, cidrs=("10.0.0.0/8",), quota=(200, 60, "pod")),
        rule(OUT, Action.ALLOW, quota=(20_000, 60, "policy")),
    )
    evaluation = Evaluation(plan(of(*rules)))
    for state in ("new", "established", "new", "established"):
        evaluation.packet("output", outgoing("10.1.1.1", state=state))
    assert set(evaluation.used.values()) == {400}
    told = evaluation.packet("output", outgoing("10.1.1.1")).told
    assert set(told) == {LogMark(0, OUT, "audit", "quota")}
    assert set(evaluation.used.values()) == {500}


def names(desired: Desired) -> list[str]:
    return sorted(plan(desired).quotas)


def test_a_quota_keeps_its_name_while_its_rule_says_the_same_but_for_the_limit() -> None:
    one = rule(OUT, Action.BLOCK, cidrs=("10.0.0.0/8", "11.0.0.0/8"), quota=QUOTA)
    held = names(of(one))
    assert isinstance(one.match, PeerMatch)
    for same in (
        replace(one.match, quota=(2000, 60, "pod")),
        replace(one.match, cidrs=("11.0.0.0/8", "10.0.0.0/8")),
    ):
        assert names(of(rule(IN, Action.AUDIT), replace(one, match=same))) == held
    for other in (
        replace(one, match=replace(one.match, quota=(1000, 61, "pod"))),
        replace(one, match=replace(one.match, quota=(1000, 60, "policy"))),
        replace(one, match=replace(one.match, cidrs=("10.0.0.0/8",))),
        replace(one, origin=Origin("another", "spec.egress[0]")),
        replace(one, action=Action.ALLOW),
    ):
        assert names(of(other)) != held
    assert names(of(one, endpoint=1)) != held
    twice = of(one, replace(one, match=replace(one.match, quota=(5000, 60, "pod"))))
    assert len(names(twice)) == 2
    assert set(held) < set(names(twice))


def test_workloads_share_a_quota_of_their_policy_and_have_their_own_of_pods() -> None:
    for level, count in (("policy", 1), ("pod", 2)):
        rules = RuleSet((rule(OUT, Action.BLOCK, quota=(1000, 60, level)),))
        endpoints = tuple(Endpoint(number, (rules,), Cgroup(100 + number, 1)) for number in (1, 2))
        quotas = plan(Desired(endpoints)).quotas
        assert len(quotas) == count
        assert {quota.endpoint for quota in quotas.values()} == ({None} if level == "policy" else {1, 2})


def test_while_rules_change_a_quota_is_counted_once_with_the_smaller_limit() -> None:
    first = RuleSet((rule(OUT, Action.BLOCK, quota=(1000, 60, "pod")),))
    second = RuleSet((rule(OUT, Action.BLOCK, quota=(500, 60, "pod")),))
    for sets in ((first, second), (second, first)):
        ruleset = plan(Desired((Endpoint(1, sets, Whole()),)))
        assert [quota.limit for quota in ruleset.quotas.values()] == [500]
        evaluation = Evaluation(ruleset)
        evaluation.packet("output", outgoing("10.0.0.1"))
        assert set(evaluation.used.values()) == {100}


def test_management_is_not_counted_in_either_direction() -> None:
    listed = exemptions.management(PeerMatch(cidrs=("10.0.0.0/8",), ports=((22, 22, "tcp"),)), IN)
    ruleset = plan(of(rule(OUT, Action.BLOCK, quota=QUOTA), rule(IN, Action.BLOCK, quota=QUOTA),
                      settings=Settings(management=(listed,))))  # fmt: skip
    evaluation = Evaluation(ruleset, dict.fromkeys(ruleset.quotas, 5000))
    asked = incoming("10.0.0.1", 22, state="established")
    answer = outgoing("10.0.0.1", 40000, source_port=22, state="established", reply=True)
    assert evaluation.packet("input", asked).passes
    assert evaluation.packet("output", answer).passes
    assert not evaluation.packet("output", replace(answer, reply=False)).passes
    assert not evaluation.packet("output", replace(answer, source_port=23)).passes


# Groups


def test_members_are_elements_with_the_longest_of_their_times() -> None:
    ruleset = plan(of(rule(OUT, Action.ALLOW, groups=GROUPS[:2]), groups=MEMBERS))
    four, six = (next(one for one in ruleset.sets.values() if one.timeout and one.fields == (field,))
                 for field in ("ipv4_addr", "ipv6_addr"))  # fmt: skip
    first = int.from_bytes(bytes((192, 168, 1, 1)), "big")
    assert four.timeouts == {((first, first),): 5, ((first + 1, first + 1),): 5, ((0x0A010203, 0x0A010203),): 60}
    assert set(four.elements) - set(four.timeouts) == {((first + 2, first + 2),)}
    assert list(six.timeouts.values()) == [60]
    ended = {**MEMBERS, GROUPS[0]: (("10.1.2.3", 0),)}
    changes = difference(ruleset, plan(of(rule(OUT, Action.ALLOW, groups=GROUPS[:2]), groups=ended)))
    assert changes is not None
    assert [(len(change.removed), len(change.added)) for change in changes] == [(1, 0), (1, 0)]


def test_a_group_that_nothing_is_known_of_allows_nobody_and_blocks_everybody() -> None:
    world = GROUPS[3]
    assert not passes(plan(of(rule(OUT, Action.ALLOW, groups=(world,)))), "output", outgoing("10.0.0.1"))
    blocking = of(rule(OUT, Action.BLOCK, groups=(world,), ports=((80, 80, "tcp"),)))
    held = plan(blocking)
    assert not passes(held, "output", outgoing("10.0.0.1"))
    assert passes(held, "output", outgoing("10.0.0.1", 81))
    known = plan(replace(blocking, groups={world: (("11.0.0.0/8", None),)}), held)
    assert passes(known, "output", outgoing("10.0.0.1"))
    assert not passes(known, "output", outgoing("11.0.0.1"))


def test_answers_of_resolvers_are_copied_where_rules_name_peers() -> None:
    resolvers = Settings(resolvers=("10.0.0.53", "fd00::53"))
    named = rule(OUT, Action.ALLOW, groups=GROUPS[:1])
    ruleset = plan(of(named, settings=resolvers))
    answer = Packet("10.0.0.53", OURS, 17, 53, 40000, interface_in="eth0", state="established", reply=True)
    evaluation = Evaluation(ruleset)
    assert evaluation.packet("input", answer).answers == 1
    assert evaluation.packet("input", replace(answer, source="fd00::53", destination="fd00::1")).answers == 1
    for other in (
        {"source": "10.0.0.54"},
        {"source_port": 54},
        {"state": "new"},
        {"protocol": 6},
        {"interface_in": "lo"},
    ):
        assert evaluation.packet("input", replace(answer, **other)).answers == 0
    assert not [one for one in plan(of(named)).chains if one.name.startswith("answers")]
    assert "answers.forward" not in hooks(ruleset)
    outside = plan(of(named, endpoint=1, attachment=Interface("v1"), settings=resolvers))
    assert {"answers.input", "answers.forward"} <= hooks(outside)
    unnamed = of(rule(OUT, Action.ALLOW), settings=Settings(resolvers=("10.0.0.53",)))
    assert not [one for one in hooks(plan(unnamed)) if one.startswith("answers")]


# What does not fit


@pytest.mark.parametrize(
    ("desired", "said"),
    [
        (of(rule(IN, Action.BLOCK, ports=((80, 80, "dccp"),))), "found ports of dccp"),
        (of(rule(IN, Action.BLOCK, ports=((0, 65535, "quic"),))), "found the protocol 'quic'"),
        (of(rule(IN, Action.BLOCK, cidrs=("10.0.0.0/x",))), "invalid literal"),
        (of(rule(IN, Action.BLOCK, cidrs=("host",), quota=QUOTA)), "illegal IP address"),
        (of(rule(OUT, Action.BLOCK, groups=GROUPS[:1])), "names of peers can only allow"),
        (
            of(rule(IN, Action.BLOCK, interfaces=("eth0",)), endpoint=1, attachment=Interface("v")),
            "names of interfaces",
        ),
        (of(replace(rule(IN, Action.BLOCK), match=None)), "found no peer"),
        (of(replace(rule(IN, Action.BLOCK), sources=("/bin/a",))), "a condition on who acts"),
        (
            of(*(rule(IN, Action.BLOCK, ports=((port, port, "tcp"),), quota=QUOTA) for port in range(1, 66))),
            "found 65 quotas",
        ),
    ],
)
def test_what_does_not_fit_is_an_error_that_names_the_rule(desired: Desired, said: str) -> None:
    with pytest.raises(PlanError, match=re.escape(said)) as error:
        plan(desired)
    assert str(error.value).startswith("file.yaml:3:0: a-policy spec.egress[0]: ")


def test_an_error_names_the_policy_where_there_is_no_file() -> None:
    bare = replace(rule(IN, Action.BLOCK, groups=GROUPS[:1]), origin=Origin("a-policy", "spec"))
    with pytest.raises(PlanError, match=r"^a-policy spec: names of peers"):
        plan(of(bare))


@pytest.mark.parametrize("level", [0, 256])
def test_a_cgroup_too_deep_is_an_error(level: int) -> None:
    with pytest.raises(PlanError, match=f"found a cgroup {level} directories below the root"):
        plan(of(rule(IN, Action.BLOCK), endpoint=1, attachment=Cgroup(5, level)))


def test_two_endpoints_cannot_be_known_by_the_same_thing() -> None:
    rules = RuleSet((rule(IN, Action.BLOCK),))
    with pytest.raises(PlanError, match="found two endpoints with"):
        plan(Desired(tuple(Endpoint(number, (rules,), Cgroup(5, 1)) for number in (1, 2))))
    others = (rules, RuleSet((rule(IN, Action.AUDIT),)))
    with pytest.raises(PlanError, match="found two rule sets for"):
        plan(Desired(tuple(Endpoint(1, (one,), Cgroup(number, 1)) for number, one in enumerate(others, 5))))
    ruleset = plan(Desired(tuple(Endpoint(1, (rules,), Interface(name)) for name in ("a", "b"))))
    assert len(ruleset.sets["v.0i"].elements) == 2


def test_too_many_boxes_or_ways_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = [rule(IN, Action.BLOCK, cidrs=(f"10.0.{n}.0/24",), ports=((n, n, "tcp"),)) for n in range(1, 9)]
    monkeypatch.setattr(boxes, "MAXIMUM_ELEMENTS", 7)
    with pytest.raises(PlanError, match="found 8 pairs of a network and a range of ports"):
        plan(of(*rules))
    monkeypatch.setattr(matching, "MAXIMUM_CHAINS", 7)
    with pytest.raises(PlanError, match="found 8 combinations of rules for different ports"):
        plan(of(*(replace(one, match=PeerMatch(ports=one.match.ports, groups=GROUPS[2:3])) for one in rules
                  if isinstance(one.match, PeerMatch)), groups=MEMBERS))  # fmt: skip


# Size and form


def networks(count: int) -> Iterable[str]:
    return (f"10.{number >> 8}.{number & 255}.0/25" for number in range(count))


def test_ten_thousand_rules_take_few_rules_of_the_kernel() -> None:
    rules = [
        rule(IN, Action.ALLOW, cidrs=(cidr,), ports=((1000 + number, 1000 + number, "tcp"),))
        for number, cidr in enumerate(networks(10_000))
    ]
    ruleset = plan(of(*rules))
    assert len(ruleset.rules) < 50
    assert max(len(one.elements) for one in ruleset.sets.values()) <= boxes.SHARD
    assert passes(ruleset, "input", incoming("10.3.4.5", 1000 + 3 * 256 + 4))
    assert not passes(ruleset, "input", incoming("10.3.4.5", 1000 + 3 * 256 + 5))
    more = plan(of(*rules, rule(IN, Action.ALLOW, cidrs=("10.38.4.128/26",), ports=((7, 7, "tcp"),))), ruleset)
    changes = difference(ruleset, more)
    assert changes is not None
    assert [(len(change.added), change.removed) for change in changes] == [(1, ())]


def test_no_address_is_in_many_boxes_of_one_set() -> None:
    rules = [rule(IN, Action.ALLOW, cidrs=("10.0.0.0/8",), ports=((port, port, "tcp"),)) for port in range(1, 999, 2)]
    rules += [
        rule(IN, Action.ALLOW, cidrs=(cidr,), ports=((5000 + n, 5000 + n, "udp"),))
        for n, cidr in enumerate(networks(99))
    ]
    rules += [
        rule(
            IN, Action.ALLOW, cidrs=(f"10.0.0.0/{length}",), ports=tuple((p, p, "udp") for p in range(length, 900, 120))
        )
        for length in range(10, 32, 3)
    ]
    ruleset = plan(of(*rules))
    for one in ruleset.sets.values():
        if len(one.fields) > 1:
            held = max(sum(low <= key[0][0] <= high for (low, high), *_ in one.elements) for key in one.elements)
            assert held <= boxes.HELD
    assert passes(ruleset, "input", incoming("10.200.1.1", 997))
    assert not passes(ruleset, "input", incoming("10.200.1.1", 998))
    assert passes(ruleset, "input", incoming("10.0.5.1", 5005, protocol=17))


@settings(max_examples=100)
@given(rule_sets(), rule_sets())
def test_names_are_short_and_nothing_of_a_policy_is_text(first: RuleSet, second: RuleSet) -> None:
    endpoints = (
        Endpoint(0, (first,), Whole()),
        Endpoint(0xFFFF_FFFF, (second, first), Cgroup(1 << 40, 255)),
        Endpoint(0xFFFF_FFFE, (first,), Whole()),
    )
    ruleset = plan(Desired(endpoints, groups=MEMBERS))
    found = [chain.name for chain in ruleset.chains] + [*ruleset.sets, *ruleset.quotas]
    assert all(re.fullmatch(r"[a-z][a-z0-9.-]*", name) and len(name) <= MAXIMUM_NAME for name in found)
    assert len({chain.name for chain in ruleset.chains}) == len(ruleset.chains)
    text = json.dumps(ruleset.commands())
    for word in ("a-policy", "file.yaml", "example", "10.1.", "fd00:", "eth", "wlan0", "abcdefghijklmno", "cluster"):
        assert word not in text


@settings(max_examples=100)
@given(rule_sets(), rule_sets())
def test_sets_hold_what_the_kernel_takes(first: RuleSet, second: RuleSet) -> None:
    ruleset = plan(Desired((Endpoint(0, (first, second), Whole()),), groups=MEMBERS))
    for one in ruleset.sets.values():
        assert one.timeouts.keys() <= one.elements.keys()
        if one.verdicts:
            assert all(one.elements.values())
        if len(one.fields) == 1:
            keys = sorted(key[0] for key in one.elements)
            assert all(before[1] < after[0] for before, after in itertools.pairwise(keys))
            if not one.verdicts and not one.timeout:
                assert ranges.merge(keys) == tuple(keys)
        for key in one.elements:
            overlapping = [
                other
                for other in one.elements
                if all(a[0] <= b[1] and b[0] <= a[1] for a, b in zip(key, other, strict=True))
            ]
            assert overlapping == [key]


@settings(max_examples=60)
@given(rule_sets(), rule_sets())
def test_a_previous_plan_changes_nothing_but_the_time(first: RuleSet, second: RuleSet) -> None:
    before = Desired((Endpoint(0, (first,), Whole()), Endpoint(3, (second,), Cgroup(9, 2))), groups=MEMBERS)
    after = Desired((Endpoint(0, (first, second), Whole()), Endpoint(4, (second,), Cgroup(10, 2))))
    alone = plan(after)
    assert plan(after, plan(before)) == alone
    assert plan(after, plan(before)).digest == alone.digest
    again = plan(after, alone)
    assert all(again.sets[name] is one for name, one in alone.sets.items())
