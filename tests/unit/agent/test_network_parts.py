# SPDX-License-Identifier: Apache-2.0
"""The pure parts behind rules about packets: attachments, groups of peers, learned names, settings."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest_agent.engines.network_port import Cgroup, Endpoint, Interface, Whole
from guest_agent.network import groups, places, settings, topology
from guest_agent.network.groups import Known, Peers
from guest_agent.network.learning import LEAST_SECONDS, MAXIMUM_ADDRESSES, MOST_SECONDS, Learned
from guest_agent.network.topology import Member, Placement
from guest_agent.workloads.registry import Identity
from guest_agent.workloads.verification import VerificationError
from hauberk.policy import peers as policy_peers
from hauberk.policy.rules import (
    Action,
    LabelRequirement,
    ObjectKind,
    Origin,
    Peer,
    PeerGroup,
    PeerMatch,
    PeerSelector,
    Rule,
    RuleSet,
    Section,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.agent.machine import FakeMachine

OWN, OTHER = 1, 2


def rule(match: PeerMatch, action: Action = Action.ALLOW, policy: str = "p") -> Rule:
    return Rule(Section.EGRESS, ObjectKind.PEER, "peer", action, Origin(policy, "spec"), match=match)


def rule_set(*matches: PeerMatch) -> RuleSet:
    return RuleSet(tuple(rule(match) for match in matches))


WEB, DATA = rule_set(PeerMatch(("10.0.0.0/8",))), rule_set(PeerMatch(("192.0.2.0/24",)))
NOTHING = RuleSet(())


def member(number: int, namespace: int, *rule_sets: RuleSet, exposed: bool = False) -> Member:
    return Member(number, Placement(namespace, Cgroup(100 + number, 2)), rule_sets, exposed)


# ---- attachments -------------------------------------------------------------------------------------------------


def test_in_the_agents_own_namespace_workloads_are_known_by_cgroup() -> None:
    found = topology.endpoints([member(1, OWN, WEB), member(2, OWN, NOTHING)], OWN, [DATA], {OWN: "eth0"})
    assert found == {OWN: (Endpoint(0, (DATA,), Whole()), Endpoint(1, (WEB,), Cgroup(101, 2)))}


def test_alone_in_a_namespace_everything_is_its_own_and_seen_from_outside_where_need_be() -> None:
    links = {OTHER: "veth1", 3: "veth3"}
    found = topology.endpoints([member(1, OTHER, WEB)], OWN, [NOTHING], links)
    assert found == {OTHER: (Endpoint(1, (WEB,), Whole()),)}
    found = topology.endpoints([member(1, OTHER, WEB, exposed=True)], OWN, [NOTHING], links)
    assert found == {OTHER: (Endpoint(1, (WEB,), Whole()),), OWN: (Endpoint(1, (WEB,), Interface("veth1")),)}


def test_neighbours_are_told_apart_also_from_one_without_rules() -> None:
    there = [member(1, OTHER, WEB, exposed=True), member(2, OTHER, NOTHING)]
    assert topology.endpoints(there, OWN, links={OTHER: "veth1"}) == {OTHER: (Endpoint(1, (WEB,), Cgroup(101, 2)),)}
    there = [member(1, OTHER, WEB), member(2, OTHER, WEB, exposed=True)]
    found = topology.endpoints(there, OWN, links={OTHER: "veth1"})
    assert found[OWN] == (Endpoint(1, (WEB,), Interface("veth1")),)
    assert [one.attachment for one in found[OTHER]] == [Cgroup(101, 2), Cgroup(102, 2)]


def test_names_of_interfaces_are_those_inside() -> None:
    inside = rule_set(PeerMatch(interfaces=("eth0",)))
    assert OWN not in topology.endpoints([member(1, OTHER, inside, exposed=True)], OWN, links={OTHER: "veth1"})


def test_old_and_new_rules_hold_together_each_once() -> None:
    found = topology.endpoints([member(1, OTHER, WEB, DATA, WEB, NOTHING)], OWN)
    assert found == {OTHER: (Endpoint(1, (WEB, DATA), Whole()),)}
    assert topology.endpoints([member(1, OTHER, NOTHING)], OWN, [NOTHING]) == {}


def test_a_quota_of_all_workloads_together_is_one_of_one_namespace() -> None:
    shared = RuleSet((rule(PeerMatch(quota=(1, 1, "policy")), policy="shared"),))
    single = RuleSet((rule(PeerMatch(quota=(1, 1, "pod")), policy="single"),))
    there = [member(1, OTHER, shared, single), member(2, OTHER, shared, single), member(3, 3, single)]
    assert topology.shared_quotas(there, OWN) == ()
    assert topology.shared_quotas([*there, member(4, 3, shared)], OWN) == ("shared",)
    assert topology.shared_quotas(there, OWN, [shared]) == ("shared",)


# ---- where workloads are -----------------------------------------------------------------------------------------


def identity(container_pid: int, path: str, cgroup: int = 7) -> Identity:
    return Identity(container_pid, 50, cgroup, path, 3)


def test_a_workload_is_found_by_its_processes(fake: FakeMachine) -> None:
    container = fake.container(network=77)
    who = Identity(100, 50, container.cgroup.stat().st_ino, "/machine.slice/c1", 3)
    assert places.place(who, fake.machine) == Placement(77, Cgroup(who.cgroup_id, 2))
    assert places.find(who, 0, fake.machine) == (Placement(77, Cgroup(who.cgroup_id, 2)), 100)
    assert places.find(who, 78, fake.machine) is None
    fake.end_init(container)
    assert places.find(who, 77, fake.machine) is None
    fake.process("200", namespace=3, cgroup="/machine.slice/c1/below", network=77)
    below = container.cgroup / "below"
    below.mkdir()
    (below / "cgroup.procs").write_text("200\n")
    found = places.find(who, 77, fake.machine)
    assert found is not None
    assert found[1] == 200
    assert places.find(Identity(0, 0, 7, "", 3), 0, fake.machine) is None
    with pytest.raises(VerificationError, match="deep"):
        places.place(identity(200, "/a" * 256), fake.machine)


def test_addresses_are_those_of_the_namespace_without_loopback(fake: FakeMachine) -> None:
    fake.container(network=77)
    assert places.addresses(100, fake.machine) == ("10.0.77.2",)
    (fake.proc / "100" / "net" / "if_inet6").write_text(
        f"{1:032x} 01 80 10 80       lo\nfd000000000000000000000000000002 02 40 00 80     eth0\nx\n"
    )
    assert places.addresses(100, fake.machine) == ("10.0.77.2", "fd00::2")
    assert places.addresses(999, fake.machine) == ()


def test_two_pairs_to_one_namespace_are_none() -> None:
    assert places.one_each([(1, "a"), (2, "b"), (2, "c")]) == {1: "a"}


# ---- groups ------------------------------------------------------------------------------------------------------

CLUSTER, WORLD, HOST = (PeerGroup("entity", name) for name in ("cluster", "world", "host"))
NAME = PeerGroup("name", "*.example.com")
APP = PeerGroup.of_workloads(PeerSelector((LabelRequirement("app", "In", ("web",)),), namespaces=("shop",)))
PEERS = Peers(
    ("192.0.2.1",),
    {"cluster": ("10.0.0.0/8", "fd00::/8")},
    (((("app", "web"),), "shop", ("10.0.0.2", "fd00::2")), ((("app", "web"),), "other", ("10.0.0.3",))),
)


def test_what_the_configuration_does_not_resolve_makes_stricter() -> None:
    allow = rule(PeerMatch(("192.0.2.0/24",), groups=(CLUSTER, HOST)))
    block = rule(PeerMatch(("192.0.2.0/24",), ports=((1, 2, "tcp"),), groups=(CLUSTER,)), Action.BLOCK)
    name = rule(PeerMatch(groups=(NAME,)))
    known = Known(frozenset({"cluster"}), resolvers=True)
    assert groups.held((allow, block, name), known) == (allow, block, name)
    assert groups.report((allow, block, name), known) == ()
    told = groups.report((allow, block, name), Known())
    assert ["cluster" in one.reason or "resolver" in one.reason for one in told] == [True] * 3
    assert [one.instead for one in told] == ["nobody is matched by that", "it refuses every peer", told[0].instead]
    of_allow, of_block, of_name = (one.match for one in groups.held((allow, block, name), Known()))
    assert of_allow == PeerMatch(("192.0.2.0/24",), groups=(HOST,))
    assert of_block == PeerMatch(ports=((1, 2, "tcp"),))
    assert isinstance(of_name, PeerMatch)
    assert of_name.nothing


def test_members_of_groups() -> None:
    assert groups.members(HOST, PEERS) == (("192.0.2.1", None),)
    assert groups.members(CLUSTER, PEERS) == (("10.0.0.0/8", None), ("fd00::/8", None))
    assert groups.members(APP, PEERS) == (("10.0.0.2", None), ("fd00::2", None))
    assert groups.members(NAME, PEERS) is None
    assert groups.members(PeerGroup("entity", "kube-apiserver"), PEERS) is None


def test_the_world_is_what_is_not_the_cluster() -> None:
    world = groups.networks_of("world", PEERS) or ()
    assert "10.0.0.0/8" not in world
    without = groups.networks_of("world", Peers(PEERS.host, {}, PEERS.workloads)) or ()
    for networks, address, inside in (
        (world, "10.1.1.1", False), (world, "192.0.2.1", True), (without, "10.1.1.1", True),
        (without, "10.0.0.3", False), (without, "192.0.2.1", False), (without, "fd00::3", True),
    ):  # fmt: skip
        one = ipaddress.ip_address(address)
        assert any(one in ipaddress.ip_network(network) for network in networks) is inside


NETWORKS = st.lists(
    st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).flatmap(
        lambda address: st.integers(0, address.max_prefixlen).map(
            lambda length: str(ipaddress.ip_network(f"{address}/{length}", strict=False))
        )
    ),
    max_size=6,
)


@given(NETWORKS, st.ip_addresses())
def test_every_address_is_inside_or_outside(networks: list[str], address: ipaddress.IPv4Address) -> None:
    inside = any(address in ipaddress.ip_network(one) for one in networks)
    outside = [one for one in groups.outside(networks) if address in ipaddress.ip_network(one)]
    assert len(outside) == int(not inside)


def test_an_address_is_known_by_what_it_is() -> None:
    assert groups.facts_of("10.0.0.2", PEERS) == (("cluster",), (("app", "web"),), "shop")
    assert groups.facts_of("192.0.2.1", PEERS) == (("host", "world"), None, "")
    assert groups.facts_of("2001:db8::1", PEERS) == (("world",), None, "")


# ---- names -------------------------------------------------------------------------------------------------------


def test_names_count_for_their_time_within_bounds() -> None:
    learned = Learned()
    learned.learn(1, "www.example.com", "192.0.2.1", 0, 100)
    learned.learn(1, "www.example.com", "192.0.2.2", 1 << 30, 100)
    learned.learn(1, "www.example.org", "192.0.2.3", 60, 100)
    assert learned.members(1, NAME, 100) == (("192.0.2.1", LEAST_SECONDS), ("192.0.2.2", MOST_SECONDS))
    assert learned.members(1, NAME, 100 + LEAST_SECONDS) == (("192.0.2.2", MOST_SECONDS - LEAST_SECONDS),)
    assert learned.members(2, NAME, 100) == ()
    learned.learn(1, "www.example.com", "192.0.2.2", 1, 101)  # a later answer does not shorten the time
    assert dict(learned.members(1, NAME, 101))["192.0.2.2"] == MOST_SECONDS - 1
    assert learned.names_of(1, "192.0.2.3") == ("www.example.org",)
    again = Learned.decode(learned.encode())
    assert again.members(1, NAME, 101) == learned.members(1, NAME, 101)
    learned.forget(101, [2])
    assert learned.encode() == []


def test_what_is_beyond_the_limit_is_what_would_be_over_first() -> None:
    learned = Learned()
    for number in range(MAXIMUM_ADDRESSES + 1):
        learned.learn(1, "www.example.com", str(ipaddress.IPv4Address(number)), 1000 + number, 0)
    assert len(learned.members(1, NAME, 0)) == MAXIMUM_ADDRESSES
    assert learned.names_of(1, "0.0.0.0") == ()  # noqa: S104 - an address like any other


@pytest.mark.parametrize("value", [None, {}, [1], [["a", "b", "c", 1]], [[1, "b", "c", 1.5]], [[1, "b", "c"]]])
def test_what_is_no_record_of_names_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="expected"):
        Learned.decode(value)


# ---- settings ----------------------------------------------------------------------------------------------------


def test_management_is_what_it_says() -> None:
    listed = settings.management(
        [
            {"cidr": "192.0.2.0/24", "ports": [22, "8000-8001"]},
            {"cidr": "fd00::/8", "protocol": "udp", "direction": "both"},
        ]
    )
    ssh = Peer("192.0.2.9", "tcp", 22)
    assert listed[0].covers(ssh, Section.INGRESS)
    assert not listed[0].covers(ssh, Section.EGRESS)
    assert not listed[0].covers(Peer("192.0.2.9", "tcp", 23), Section.INGRESS)
    assert listed[1].covers(Peer("fd00::1", "udp", 1), Section.EGRESS)
    assert policy_peers.matches(listed[0].match, Peer("192.0.2.9", "tcp", 8001))


@pytest.mark.parametrize(
    ("read", "value", "reason"),
    [
        (settings.management, {}, "a list"),
        (settings.management, ["192.0.2.0/24"], "expected cidr"),
        (settings.management, [{"cidr": "192.0.2.0/24", "port": 22}], "expected cidr"),
        (settings.management, [{"cidr": "192.0.2.1/24"}], "no bits behind"),
        (settings.management, [{"cidr": 7}], "expected a network"),
        (settings.management, [{"cidr": "::/0", "protocol": "icmp"}], "protocol"),
        (settings.management, [{"cidr": "::/0", "direction": "in"}], "direction"),
        (settings.management, [{"cidr": "::/0", "ports": []}], "leave it out"),
        (settings.management, [{"cidr": "::/0", "ports": [True]}], "found port"),
        (settings.management, [{"cidr": "::/0", "ports": ["2-1"]}], "found port"),
        (settings.management, [{"cidr": "::/0", "ports": [65536]}], "found port"),
        (settings.management, [{"cidr": "::/0", "ports": ["22 accept"]}], "found port"),
        (settings.labels, ["a"], "a mapping"),
        (settings.labels, {"a": 1}, "quote numbers"),
        (settings.entities, ["a"], "a mapping"),
        (settings.entities, {"host": []}, "besides"),
        (settings.entities, {"Cluster": []}, "besides"),
        (settings.entities, {"cluster": "10.0.0.0/8"}, "a list of networks"),
        (settings.entities, {"cluster": ["10.0.0.1/8"]}, "no bits behind"),
        (settings.resolvers, "192.0.2.1", "a list"),
        (settings.resolvers, ["192.0.2.0/24"], "an address"),
        (settings.resolvers, ["127.0.0.53"], "loopback"),
        (settings.resolvers, ["::1"], "loopback"),
    ],
)
def test_settings_are_read_strictly(read: object, value: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read(value)  # type: ignore[operator] # one of the readers


def test_settings_in_canonical_form() -> None:
    assert settings.entities({"world": ["0.0.0.0/0"], "cluster": ["FD00::/8"]}) == (
        ("cluster", ("fd00::/8",)), ("world", ("0.0.0.0/0",)),
    )  # fmt: skip
    assert settings.resolvers(["192.0.2.53", "2001:DB8::53"]) == ("192.0.2.53", "2001:db8::53")
    assert settings.labels({"b": "2", "a": "1"}) == (("a", "1"), ("b", "2"))


def test_the_systems_resolvers_are_those_that_are_no_stub(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert settings.system_resolvers((first, second)) == ()
    first.write_text("# x\nnameserver 127.0.0.53\nnameserver\noptions edns0\nnameserver nonsense\n")
    second.write_text("nameserver 192.0.2.53\nnameserver fe80::1%eth0\nnameserver 192.0.2.53\n")
    assert settings.system_resolvers((first, second)) == ("192.0.2.53", "fe80::1")
    first.write_text("nameserver 192.0.2.54\n")
    assert settings.system_resolvers((first, second)) == ("192.0.2.54",)
