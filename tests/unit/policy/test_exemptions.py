# SPDX-License-Identifier: Apache-2.0
"""What no network policy is about passes, for whom it should, and nothing else does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hauberk.policy import exemptions, objects
from hauberk.policy.explain import Explainer, Question
from hauberk.policy.rules import (
    Action,
    Circumstances,
    ObjectKind,
    Operation,
    Origin,
    Peer,
    PeerMatch,
    Rule,
    RuleSet,
    Section,
    Verdict,
    decide,
)
from hauberk.policy.selectors import Scope

EVERYTHING = tuple(
    Rule(section, ObjectKind.PEER, "any", Action.BLOCK, Origin("p", "f"), match=PeerMatch())
    for section in (Section.INGRESS, Section.EGRESS)
)
SSH = exemptions.management(PeerMatch(("192.0.2.0/24",), ports=((22, 22, "tcp"),)), Section.INGRESS)
CGROUP = exemptions.holding(whole=False, machine=False, listed=(SSH,))
POD = exemptions.holding(whole=True, machine=False, listed=(SSH,))
MACHINE = exemptions.holding(whole=True, machine=True, listed=(SSH,))
RECEIVE, SEND = Operation.RECEIVE, Operation.SEND


def passes(held: tuple[exemptions.Exemption, ...] | None, operation: Operation, text: str) -> bool:
    peer = objects.read(operation, text)
    assert isinstance(peer, Peer)
    known = Circumstances(peer=peer, exemptions=held)
    decision = decide(RuleSet(EVERYTHING), EVERYTHING, operation, source=None, owner=True, known=known)
    assert (decision.rule is None) is (decision.verdict is Verdict.ALLOW)
    return decision.verdict is Verdict.ALLOW


@pytest.mark.parametrize(
    ("operation", "text", "who"),
    [
        (SEND, "127.0.0.1 tcp/80 on lo", "everybody"),
        (RECEIVE, "10.0.0.1 on lo", "everybody"),
        (SEND, "127.0.0.1 tcp/80", "nobody"),
        (SEND, "fe80::1 icmpv6/135", "namespaces"),
        (RECEIVE, "fe80::1 icmpv6/136 on eth0", "namespaces"),
        (RECEIVE, "fe80::1 icmpv6/134", "namespaces"),
        (SEND, "ff02::16 icmpv6/143", "namespaces"),
        (RECEIVE, "fe80::1 icmpv6/130", "namespaces"),
        (RECEIVE, "fe80::1 icmpv6/128", "nobody"),
        (RECEIVE, "fe80::1 icmpv6/138", "nobody"),
        (RECEIVE, "fe80::1 icmpv6", "nobody"),
        (RECEIVE, "10.0.0.1 icmp/8", "nobody"),
        (SEND, "255.255.255.255 udp/67 from 68", "the machine"),
        (RECEIVE, "10.0.0.1 udp/68 from 67", "the machine"),
        (SEND, "255.255.255.255 udp/67", "nobody"),
        (SEND, "10.0.0.1 udp/68 from 67", "nobody"),
        (RECEIVE, "10.0.0.1 udp/67 from 68", "nobody"),
        (SEND, "10.0.0.1 tcp/67 from 68", "nobody"),
        (SEND, "fe80::1 udp/67 from 68", "nobody"),
        (SEND, "ff02::1:2 udp/547 from 546", "the machine"),
        (RECEIVE, "fe80::1 udp/546 from 547", "the machine"),
        (RECEIVE, "10.0.0.1 udp/546 from 547", "nobody"),
        (RECEIVE, "192.0.2.7 tcp/22", "the machine"),
        (SEND, "192.0.2.7 tcp/22", "nobody"),
        (RECEIVE, "192.0.3.7 tcp/22", "nobody"),
        (RECEIVE, "192.0.2.7 tcp/23", "nobody"),
    ],
)
def test_who_is_exempt(operation: Operation, text: str, who: str) -> None:
    found = [passes(held, operation, text) for held in (None, CGROUP, POD, MACHINE)]
    assert (
        found
        == {
            "nobody": [False, False, False, False],
            "the machine": [False, False, False, True],
            "namespaces": [False, False, True, True],
            "everybody": [True, True, True, True],
        }[who]
    )


@given(
    st.builds(
        Peer,
        st.ip_addresses().map(str),
        st.sampled_from(("tcp", "udp", "icmpv6", "icmp", "")),
        st.none() | st.sampled_from((67, 68, 546, 547, 22)),
        st.sampled_from(("", "eth0", "lo", "lo0")),
        st.none() | st.integers(0, 255),
        source_port=st.none() | st.sampled_from((67, 68, 546, 547)),
    ),
    st.sampled_from((Section.INGRESS, Section.EGRESS)),
)
def test_less_is_exempt_for_those_who_are_less(peer: Peer, direction: Section) -> None:
    held = [exemptions.exempting(peer, direction, some) is not None for some in (None, CGROUP, POD, MACHINE)]
    assert held == sorted(held)
    assert held[0] is held[1] is (peer.interface == "lo")


def test_an_answer_says_what_is_exempt_and_where_it_would_be() -> None:
    question = Question(SEND, "fe80::1 icmpv6/135")
    answer = Explainer(RuleSet(EVERYTHING), scope=Scope.HOST).ask(question)
    assert answer.decision.verdict is Verdict.ALLOW
    assert "neighbour discovery" in answer.decision.reason
    answer = Explainer(RuleSet(EVERYTHING)).ask(question)
    assert answer.decision.verdict is Verdict.DENY
    assert "in a network namespace of its own it passes before any rule: neighbour discovery" in answer.notes[0]
    answer = Explainer(RuleSet(EVERYTHING), exemptions=POD).ask(question)
    assert answer.decision.verdict is Verdict.ALLOW
    assert answer.notes == ()
