# SPDX-License-Identifier: Apache-2.0
"""From packets on a wire to what the agent makes of them: addresses of names, and alerts that name the rule.

The engine is the real one; a resolver answers in the peer's namespace, as anybody on a network could.
"""

from __future__ import annotations

import contextlib
import socket
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from guest_agent.engines.network_port import NameAnswer, NetworkEvent
from guest_agent.engines.nftables.engine import NftablesEngine
from guest_agent.events.alerts import DEFAULT_POSTURE, Subject
from guest_agent.events.folding import OTHERS, Folding
from guest_agent.events.network import NetworkAlertMaker
from guest_agent.network import names
from guest_agent.network.learning import Learned
from hauberk.policy.rules import Action, PeerGroup
from tests.unit.agent import dns_messages

from .engine_pair import EGRESS, HERE, INGRESS, LONG, SECOND, THERE, Pair, collect, desired, rule, tcp, udp

if TYPE_CHECKING:
    from collections.abc import Iterator

    from guest_agent.engines.network_port import Desired

WWW = PeerGroup("name", "*.example.com")
ANSWER = dns_messages.message(
    "www.example.com",
    dns_messages.A,
    dns_messages.alias(dns_messages.QUESTION, "cdn.example.net"),
    dns_messages.address(dns_messages.name("cdn.example.net"), SECOND[4], 60),
)
MARK = dns_messages.message("end.example", dns_messages.A, dns_messages.address(dns_messages.QUESTION, "192.0.2.1"))
"""What comes last: when it was told, so was everything before it."""


@pytest.fixture
def engine() -> Iterator[NftablesEngine]:
    with contextlib.closing(NftablesEngine()) as made:
        yield made


@pytest.fixture
def pair() -> Iterator[Pair]:
    with Pair() as made:
        yield made


def naming() -> Desired:
    """Give rules that let ask the resolver, and reach what it names."""
    wanted = desired(
        rule(EGRESS, Action.ALLOW, f"{THERE[4]}/32", ports=udp(53)),
        rule(EGRESS, Action.ALLOW, groups=(WWW,), ports=tcp(80)),
    )
    return replace(wanted, settings=replace(wanted.settings, resolvers=(THERE[4],)))


def asks(pair: Pair, answer: bytes, *, port: int = 53) -> None:
    """Ask at the resolver's address, and have it answer."""
    with pair.there.socket(socket.SOCK_DGRAM) as resolver, pair.here.socket(socket.SOCK_DGRAM) as client:
        resolver.bind((THERE[4], port))
        resolver.settimeout(LONG)
        client.settimeout(LONG)
        client.sendto(b"?", (THERE[4], port))
        resolver.sendto(answer, resolver.recvfrom(100)[1])
        assert client.recv(4096) == answer


def answers(engine: NftablesEngine) -> list[names.Answer | None]:
    """Give what was read of the answers up to the mark."""

    def ended(events: list[NetworkEvent | NameAnswer]) -> bool:
        return any(isinstance(event, NameAnswer) and event.payload == MARK for event in events)

    found = [event for event in collect(engine, ended) if isinstance(event, NameAnswer)]
    return [names.read(event.payload) for event in found if event.payload != MARK]


def test_what_a_resolver_names_may_be_reached(engine: NftablesEngine, pair: Pair) -> None:
    namespace = pair.here.namespace
    engine.apply(namespace, naming())
    assert pair.no_tcp_out(80, to=SECOND)
    asks(pair, ANSWER)
    asks(pair, MARK)
    [answer] = answers(engine)
    assert answer == names.Answer("www.example.com", ((SECOND[4], 60),))
    learned = Learned()
    for address, seconds in answer.addresses:
        learned.learn(namespace.inode, answer.name, address, seconds, 100)
    engine.set_members(namespace, WWW, learned.members(namespace.inode, WWW, 100))
    pair.tcp_out(80, to=SECOND)
    assert pair.no_tcp_out(80, to=THERE)
    assert pair.no_tcp_out(81, to=SECOND)


def test_a_long_answer_arrives_whole(engine: NftablesEngine, pair: Pair) -> None:
    engine.apply(pair.here.namespace, naming())
    records = [dns_messages.address(dns_messages.QUESTION, f"198.51.100.{last}") for last in range(1, 85)]
    asks(pair, dns_messages.message("www.example.com", dns_messages.A, *records))
    asks(pair, MARK)
    [answer] = answers(engine)
    assert answer is not None
    assert len(answer.addresses) == len(records)


def test_only_answers_of_the_resolver_to_questions_of_this_side_are_seen(engine: NftablesEngine, pair: Pair) -> None:
    engine.apply(pair.here.namespace, naming())
    with pair.there.socket(socket.SOCK_DGRAM) as forger, pair.here.socket(socket.SOCK_DGRAM) as victim:
        victim.bind((HERE[4], 5353))
        forger.bind((THERE[4], 53))
        forger.sendto(ANSWER, (HERE[4], 5353))  # nobody asked
        victim.settimeout(LONG)
        assert victim.recv(4096) == ANSWER
    with pair.here.socket(socket.SOCK_DGRAM) as server, pair.here.socket(socket.SOCK_DGRAM) as client:
        server.bind((HERE[4], 53))  # to itself
        client.sendto(b"?", (HERE[4], 53))
        server.settimeout(LONG)
        client.settimeout(LONG)
        server.sendto(ANSWER, server.recvfrom(100)[1])
        assert client.recv(4096) == ANSWER
    asks(pair, MARK)
    assert answers(engine) == []


def test_an_answer_to_itself_is_none_though_it_lists_itself(engine: NftablesEngine, pair: Pair) -> None:
    wanted = naming()
    listed = replace(wanted.settings, resolvers=(THERE[4], HERE[4], "127.0.0.53"))
    engine.apply(pair.here.namespace, replace(wanted, settings=listed))
    for address in (HERE[4], "127.0.0.53"):
        with pair.here.socket(socket.SOCK_DGRAM) as server, pair.here.socket(socket.SOCK_DGRAM) as client:
            server.bind((address, 53))
            client.sendto(b"?", (address, 53))
            server.settimeout(LONG)
            client.settimeout(LONG)
            server.sendto(ANSWER, server.recvfrom(100)[1])
            assert client.recv(4096) == ANSWER
    asks(pair, MARK)
    assert answers(engine) == []


def test_alerts_name_rule_peer_and_port(engine: NftablesEngine, pair: Pair) -> None:
    wanted = desired(
        rule(EGRESS, Action.BLOCK, f"{SECOND[4]}/32", ports=tcp(80)),
        rule(INGRESS, Action.AUDIT, f"{THERE[4]}/32", ports=udp(9)),
        rule(INGRESS, Action.ALLOW, ports=udp(9)),
        identifier=7,
    )
    engine.apply(pair.here.namespace, wanted)
    assert pair.no_tcp_out(80, to=SECOND)
    assert pair.udp_in(9)
    assert not pair.udp_in(10, expected=False)
    [endpoint] = wanted.endpoints
    maker = NetworkAlertMaker("here", engine.name)
    folding = Folding()

    def three(events: list[NetworkEvent | NameAnswer]) -> bool:
        return len({event.destination_port for event in events if isinstance(event, NetworkEvent)}) == 3

    told = [folding.add(event) for event in collect(engine, three) if isinstance(event, NetworkEvent)]
    alerts = [maker.make(event, Subject("c1", rule_set=endpoint.rule_sets[0])) for event in told if event is not None]
    found = {
        (alert["Resource"], alert["Action"], alert["PolicyName"]): alert["Data"].split(" ", 4)[1:4] for alert in alerts
    }
    assert {key: words[1:] for key, words in found.items()} == {
        ("EGRESS", "Block", "p"): [f"DestinationIP={SECOND[4]}", "DestinationPort=80"],
        ("INGRESS", "Audit", "p"): [f"DestinationIP={HERE[4]}", "DestinationPort=9"],
        ("INGRESS", "Block", DEFAULT_POSTURE): [f"DestinationIP={HERE[4]}", "DestinationPort=10"],
    }
    assert len(alerts) == len(found)


def test_a_flood_is_told_in_few_alerts_and_every_packet_counts(engine: NftablesEngine, pair: Pair) -> None:
    engine.apply(pair.here.namespace, desired(rule(INGRESS, Action.BLOCK, ports=((1000, 1999, "udp"),))))
    with pair.there.socket(socket.SOCK_DGRAM) as flooding:
        for port in range(1000, 2000):
            flooding.sendto(b"x", (HERE[4], port))

    def all_of_them(events: list[NetworkEvent | NameAnswer]) -> bool:
        return len(events) == 1000

    folding = Folding()
    told = [folding.add(event) for event in collect(engine, all_of_them) if isinstance(event, NetworkEvent)]
    rest = list(folding.flush())
    assert [event.detail for event in rest] == [OTHERS]
    assert sum(event is not None for event in told) + rest[0].count == 1000
    assert sum(event is not None for event in told) < 40
    assert engine.statistics()["events_lost"] == 0
