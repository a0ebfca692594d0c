# SPDX-License-Identifier: Apache-2.0
"""Defects that a peer's network policies are known to have, each shown not to be one of ours.

The policies are KubeArmor's own documents; the kernel, nft and the packets are real.
"""

from __future__ import annotations

import contextlib
import json
import socket
from typing import TYPE_CHECKING, Any

import pytest

from guest_agent.engines.network_port import Applied, Desired, Endpoint, EngineError, NetworkEvent, Whole
from guest_agent.engines.nftables.engine import NftablesEngine
from hauberk.errors import PolicyError
from hauberk.policy import collection
from hauberk.policy.rules import Action, Section, Verdict, join

from .engine_pair import HERE, LOUD, THERE, Pair, collect, rule

if TYPE_CHECKING:
    from collections.abc import Iterator

Document = dict[str, Any]
ANYWHERE = "0.0.0.0/0"


@pytest.fixture
def engine() -> Iterator[NftablesEngine]:
    with contextlib.closing(NftablesEngine()) as made:
        yield made


@pytest.fixture
def pair() -> Iterator[Pair]:
    with Pair() as made:
        yield made


def policy(name: str = "a-policy", **spec: Any) -> Document:  # noqa: ANN401 - any field
    return {
        "apiVersion": "security.kubearmor.com/v1",
        "kind": "KubeArmorNetworkPolicy",
        "metadata": {"name": name},
        "spec": {"nodeSelector": {"matchLabels": {"role": "server"}}, **spec},
    }


def peers(*cidrs: str) -> list[Document]:
    return [{"ipBlock": {"cidr": cidr}} for cidr in cidrs]


def port(number: str, protocol: str = "TCP", **more: object) -> list[Document]:
    return [{"port": number, "protocol": protocol, **more}]


def hold(engine: NftablesEngine, pair: Pair, *documents: Document, posture: Verdict = Verdict.DENY) -> Applied:
    """Put the rules of policies in force for the machine ``here``."""
    text = "\n---\n".join(json.dumps(document) for document in documents)
    found = collection.load([("policies.yaml", text.encode())])
    rule_set = join((one for each in found for one in each.rules), posture)
    return engine.apply(pair.here.namespace, Desired((Endpoint(0, (rule_set,), Whole()),), LOUD))


def problem(document: Document) -> str:
    with pytest.raises(PolicyError) as caught:
        collection.load([("policies.yaml", json.dumps(document).encode())])
    return str(caught.value)


def test_1_a_rule_with_addresses_of_one_family_says_nothing_about_the_other(engine: NftablesEngine, pair: Pair) -> None:
    hold(engine, pair, policy(egress=[{"to": peers("10.9.0.0/24"), "action": "Block"}]))
    assert pair.no_tcp_out(80)
    pair.tcp_out(80, 6)
    hold(engine, pair, policy(ingress=[{"from": peers("10.0.0.0/8"), "action": "Allow"}]))
    pair.tcp_in(80)
    assert pair.no_tcp_in(80, 6)
    hold(engine, pair, policy(ingress=[{"from": peers("fd00::/8"), "ports": port("80"), "action": "Allow"}]))
    pair.tcp_in(80, 6)
    assert pair.no_tcp_in(80)


@pytest.mark.parametrize("direction", ["ingress", "egress"])
def test_2_neighbours_are_found_under_a_default_that_drops(engine: NftablesEngine, pair: Pair, direction: str) -> None:
    entry = {"from" if direction == "ingress" else "to": peers("fd09::/64"), "ports": port("80"), "action": "Allow"}
    hold(engine, pair, policy(ingress=[entry]) if direction == "ingress" else policy(egress=[entry]))
    pair.here.run("ip", "-6", "neigh", "flush", "dev", "eth0")
    pair.there.run("ip", "-6", "neigh", "flush", "dev", "eth0")
    connect = pair.tcp_in if direction == "ingress" else pair.tcp_out
    connect(80, 6)
    assert pair.no_tcp_in(81, 6) if direction == "ingress" else pair.no_tcp_out(81, 6)


def test_2_leases_survive_a_default_that_drops(engine: NftablesEngine, pair: Pair) -> None:
    nothing = {"from": peers("192.0.2.1/32"), "action": "Allow"}
    hold(engine, pair, policy(ingress=[nothing], egress=[{"to": nothing["from"], "action": "Allow"}]))
    for family, client, server in ((4, 68, 67), (6, 546, 547)):
        with pair.here.socket(socket.SOCK_DGRAM, family) as here, pair.there.socket(socket.SOCK_DGRAM, family) as there:
            here.bind((HERE[family], client))
            there.bind((THERE[family], server))
            here.settimeout(20)
            there.settimeout(20)
            here.sendto(b"discover", (THERE[family], server))
            assert there.recv(100) == b"discover"
            there.sendto(b"offer", (HERE[family], client))
            assert here.recv(100) == b"offer"
    assert not pair.udp_out(53, expected=False)


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ({"to": peers("10.0.0.0/33"), "action": "Block"}, "spec.egress[0].to[0].ipBlock.cidr"),
        ({"to": peers("10.0.0"), "action": "Block"}, "spec.egress[0].to[0].ipBlock.cidr"),
        ({"ports": port("no-such-service"), "action": "Block"}, "spec.egress[0].ports[0].port"),
        ({"ports": port("80", endPort=70), "action": "Block"}, "spec.egress[0].ports[0]"),
    ],
)
def test_3_a_bad_item_is_named_and_what_holds_goes_on_holding(
    engine: NftablesEngine, pair: Pair, entry: Document, named: str
) -> None:
    before = hold(engine, pair, policy(egress=[{"ports": port("80"), "action": "Block"}]))
    said = problem(policy(egress=[entry]))
    assert named in said
    assert "policies.yaml" in said
    assert engine.held(pair.here.namespace) == before.digest
    assert pair.no_tcp_out(80)
    after = hold(engine, pair, policy(egress=[{"ports": port("81"), "action": "Block"}]))
    assert after.change != "nothing", "the next good one is taken"
    pair.tcp_out(80)


INJECTION = "80\n}}\nadd table inet injected\ntable inet x {{"


@pytest.mark.parametrize(
    "entry",
    [
        {"ports": port(INJECTION)},
        {"ports": port("80 accept; drop")},
        {"ports": port("80", protocol="TCP accept")},
        {"to": peers(f"10.0.0.0/8 {INJECTION}")},
        {"to": peers("10.0.0.0/8; flush ruleset")},
        {"iface": ['eth0" accept; oifname "x']},
        {"limit": "1GB } }", "duration": "1h"},
    ],
)
def test_4_text_of_a_policy_is_never_a_statement(entry: Document) -> None:
    assert "spec.egress[0]" in problem(policy(egress=[{**entry, "action": "Block"}]))


def test_4_even_rules_that_were_never_checked_reach_nft_as_data_alone(engine: NftablesEngine, pair: Pair) -> None:
    for match in ({"interfaces": (INJECTION[:15],)}, {"interfaces": ('"; accept; #',)}):
        hostile = rule(Section.EGRESS, Action.BLOCK, policy=INJECTION, **match)  # type: ignore[arg-type]
        endpoint = Endpoint(0, (join((hostile,)),), Whole())
        with contextlib.suppress(EngineError):
            engine.apply(pair.here.namespace, Desired((endpoint,), LOUD))
        assert pair.here.run("nft", "list", "tables").split() in ([], ["table", "inet", "hauberk"])
        pair.tcp_out(80)
    for cidr in ("10.0.0.0/8; accept", INJECTION):
        endpoint = Endpoint(0, (join((rule(Section.EGRESS, Action.BLOCK, cidr),)),), Whole())
        with pytest.raises(EngineError):
            engine.apply(pair.here.namespace, Desired((endpoint,), LOUD))


def test_5_a_name_of_any_length_is_enforced_and_told(engine: NftablesEngine, pair: Pair) -> None:
    hold(engine, pair, policy(name="n" * 253, egress=[{"ports": port("80"), "action": "Block"}]))
    assert pair.no_tcp_out(80)
    assert any(isinstance(event, NetworkEvent) and event.destination_port == 80 for event in collect(engine, bool))
    assert "nnnn" not in pair.here.listing()


def test_6_nothing_is_remembered_of_a_failed_change(pair: Pair) -> None:
    limited = policy(egress=[{"to": peers(ANYWHERE), "limit": "1MB", "duration": "1h", "action": "Block"}])
    with contextlib.closing(NftablesEngine("/bin/false")) as broken:
        for _ in range(2):
            with pytest.raises(EngineError, match="exit code 1"):
                hold(broken, pair, limited)
        assert broken.usage(pair.here.namespace) == ()
        assert broken.held(pair.here.namespace) is None
        broken.remove(pair.here.namespace)
    with contextlib.closing(NftablesEngine()) as engine:
        hold(engine, pair, limited)
        assert len(engine.usage(pair.here.namespace)) == 1
        hold(engine, pair, policy(egress=[{"ports": port("80"), "action": "Block"}]))
        assert engine.usage(pair.here.namespace) == ()


def test_7_a_second_quota_is_reached_and_both_narrow_what_they_say(engine: NftablesEngine, pair: Pair) -> None:
    quotas = [
        policy("first.one", egress=[{"ports": port("53", "UDP"), "limit": "1MB", "duration": "1h", "action": "Block"}]),
        policy(
            "first-one", egress=[{"to": peers(f"{THERE[4]}/32"), "limit": "1KB", "duration": "1h", "action": "Block"}]
        ),
        policy("third", egress=[{"iface": ["wlan0"], "limit": "1KB", "duration": "1h", "action": "Block"}]),
    ]
    hold(engine, pair, *quotas)
    with pair.here.socket(socket.SOCK_DGRAM) as made:
        made.sendto(b"x" * 472, (THERE[4], 53))
        used = {usage.policy: usage.used_bytes for usage in engine.usage(pair.here.namespace)}
        assert used == {"first.one": 500, "first-one": 500, "third": 0}
        made.sendto(b"x" * 472, (THERE[4], 53))
        with pytest.raises(PermissionError):
            made.sendto(b"x" * 472, (THERE[4], 53))
    assert pair.udp_out(53, 6)


@pytest.mark.parametrize("duration", ["10", "abc", "0s", "500ms", "-1h", ""])
def test_8_a_duration_that_is_none_is_refused_and_drops_nothing(duration: str) -> None:
    said = problem(policy(egress=[{"limit": "1GB", "duration": duration, "action": "Block"}]))
    assert "spec.egress[0].duration" in said


@pytest.mark.parametrize("part", [{"limit": "1GB"}, {"duration": "1h"}])
def test_8_half_a_quota_is_refused(part: Document) -> None:
    assert "spec.egress[0]" in problem(policy(egress=[{**part, "action": "Block"}]))


def test_9_a_policy_for_containers_without_a_quota_is_refused() -> None:
    document = policy(egress=[{"to": peers("10.0.0.0/8"), "action": "Block"}])
    document["spec"]["selector"] = {"matchLabels": {"app": "web"}}
    del document["spec"]["nodeSelector"]
    assert "spec.egress[0]" in problem(document)


def test_10_an_allow_list_is_one_of_its_own_direction(engine: NftablesEngine, pair: Pair) -> None:
    hold(engine, pair, policy(egress=[{"ports": port("80"), "action": "Allow"}]))
    pair.tcp_out(80)
    assert pair.no_tcp_out(81)
    pair.tcp_in(81)


def test_10_also_when_the_rule_itself_says_allow(engine: NftablesEngine, pair: Pair) -> None:
    hold(engine, pair, policy(action="Block", ingress=[{"ports": port("80"), "action": "Allow"}]))
    pair.tcp_in(80)
    assert pair.no_tcp_in(81)
    pair.tcp_out(81)


def test_11_a_port_without_a_number_is_refused_not_every_port() -> None:
    assert "spec.egress[0].ports[0]" in problem(policy(egress=[{"ports": [{"protocol": "TCP"}], "action": "Block"}]))


def test_11_the_order_of_rules_and_policies_decides_nothing(engine: NftablesEngine, pair: Pair) -> None:
    entries = [
        {"ports": port("80"), "action": "Allow"},
        {"ports": port("80", "UDP"), "action": "Block"},
        {"to": peers("10.9.0.0/24"), "ports": port("80"), "action": "Block"},
        {"to": peers("fd00::/8"), "action": "Audit"},
    ]
    digests = {
        hold(engine, pair, *(policy(f"p{number}", egress=[one]) for number, one in enumerate(order))).digest
        for order in (entries, entries[::-1], entries[2:] + entries[:2])
    }
    assert len(digests) == 1
    assert pair.no_tcp_out(80)
    pair.tcp_out(80, 6)


def test_12_an_established_connection_ends_when_it_is_blocked(engine: NftablesEngine, pair: Pair) -> None:
    hold(engine, pair, policy(egress=[{"ports": port("81"), "action": "Block"}]))
    out, into = pair.tcp_out(80), pair.tcp_in(80)
    hold(engine, pair, policy(egress=[{"to": peers("10.9.0.0/24"), "action": "Block"}]))
    assert not out.lives()
    assert into.works()


def test_13_without_a_rule_about_it_nothing_is_logged(engine: NftablesEngine, pair: Pair) -> None:
    hold(engine, pair, policy(egress=[{"ports": port("9", "UDP"), "action": "Audit"}]))
    pair.tcp_out(80)
    pair.tcp_in(80)
    assert pair.udp_out(53)
    assert pair.udp_out(9)
    events = [event for event in collect(engine, bool) if isinstance(event, NetworkEvent)]
    assert [(event.protocol, event.destination_port) for event in events] == [("udp", 9)]


def test_14_a_new_posture_holds_at_once(engine: NftablesEngine, pair: Pair) -> None:
    allow = policy(egress=[{"ports": port("80"), "action": "Allow"}])
    hold(engine, pair, allow, posture=Verdict.AUDIT)
    flow = pair.tcp_out(81)
    hold(engine, pair, allow, posture=Verdict.DENY)
    assert pair.no_tcp_out(81)
    assert not flow.lives()
    hold(engine, pair, allow, posture=Verdict.AUDIT)
    pair.tcp_out(81)


def test_17_the_log_is_a_group_of_our_own(engine: NftablesEngine, pair: Pair) -> None:
    hold(engine, pair, policy(egress=[{"ports": port("80"), "action": "Block"}]))
    assert "group 18498" in pair.here.listing()
    assert "group 0" not in pair.here.listing()
