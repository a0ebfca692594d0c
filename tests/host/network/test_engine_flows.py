# SPDX-License-Identifier: Apache-2.0
"""Flows that are forbidden now end; all others live on, and nothing has to connect again."""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import TYPE_CHECKING

import pytest

from guest_agent.engines.network_port import Cgroup, Desired, Endpoint, Interface
from guest_agent.engines.nftables import engine_cut
from guest_agent.engines.nftables.engine import NftablesEngine
from hauberk.policy.rules import Action, RuleSet

from .engine_pair import (
    EGRESS,
    HERE,
    INGRESS,
    LONG,
    LOUD,
    SECOND,
    SHORT,
    THERE,
    Inside,
    Pair,
    Place,
    cgroup,
    connect_inside,
    desired,
    listen_inside,
    rule,
    run,
    tcp,
    udp,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ALLOW, BLOCK = Action.ALLOW, Action.BLOCK
TRACKED = desired(rule(EGRESS, BLOCK, "192.0.2.1/32"), rule(INGRESS, BLOCK, "192.0.2.1/32"))
"""Rules that nothing here is about, so that connections are tracked."""


@pytest.fixture
def engine() -> Iterator[NftablesEngine]:
    with contextlib.closing(NftablesEngine()) as made:
        yield made


@pytest.fixture
def pair() -> Iterator[Pair]:
    with Pair() as made:
        yield made


@pytest.mark.parametrize("family", [4, 6])
def test_a_connection_out_that_is_forbidden_now_ends(engine: NftablesEngine, pair: Pair, family: int) -> None:
    engine.apply(pair.here.namespace, TRACKED)
    ends, stays = pair.tcp_out(80, family), pair.tcp_out(81, family)
    applied = engine.apply(pair.here.namespace, desired(rule(EGRESS, BLOCK, ports=tcp(80))))
    assert applied.flows_cut == 1
    assert not ends.lives()
    assert stays.works()


@pytest.mark.parametrize("family", [4, 6])
def test_a_connection_in_ends_even_when_the_server_speaks_first(
    engine: NftablesEngine, pair: Pair, family: int
) -> None:
    engine.apply(pair.here.namespace, TRACKED)
    ends, stays = pair.tcp_in(80, family), pair.tcp_in(81, family)
    engine.apply(pair.here.namespace, desired(rule(INGRESS, BLOCK, ports=tcp(80))))
    with contextlib.suppress(OSError):
        ends.server.send(b"going on from this side")
    assert not ends.lives()
    assert stays.works()


def test_the_direction_is_that_of_the_first_packet(engine: NftablesEngine, pair: Pair) -> None:
    engine.apply(pair.here.namespace, TRACKED)
    out, into = pair.tcp_out(80), pair.tcp_in(80)
    applied = engine.apply(pair.here.namespace, desired(rule(INGRESS, BLOCK)))
    assert applied.flows_cut == 1
    assert out.works()
    assert not into.lives()


def test_what_is_allowed_now_needs_no_new_connection(engine: NftablesEngine, pair: Pair) -> None:
    engine.apply(pair.here.namespace, desired(rule(EGRESS, ALLOW, ports=tcp(80))))
    flow = pair.tcp_out(80)
    for wanted in (
        desired(rule(EGRESS, ALLOW, f"{THERE[4]}/32", ports=tcp(80))),
        desired(rule(EGRESS, ALLOW, "10.9.0.0/16"), rule(INGRESS, BLOCK)),
        desired(),
    ):
        assert engine.apply(pair.here.namespace, wanted).flows_cut == 0
        assert flow.works()


def test_a_flow_of_datagrams_ends(engine: NftablesEngine, pair: Pair) -> None:
    engine.apply(pair.here.namespace, TRACKED)
    with pair.here.socket(socket.SOCK_DGRAM) as here, pair.there.socket(socket.SOCK_DGRAM) as there:
        there.bind((THERE[4], 53))
        there.settimeout(LONG)
        here.sendto(b"question", (THERE[4], 53))
        _, asker = there.recvfrom(100)
        there.sendto(b"answer", asker)
        here.settimeout(LONG)
        assert here.recv(100) == b"answer"
        engine.apply(pair.here.namespace, desired(rule(EGRESS, BLOCK, ports=udp(53)), rule(INGRESS, BLOCK)))
        with pytest.raises(PermissionError):
            here.sendto(b"question", (THERE[4], 53))
        here.settimeout(SHORT)
        there.sendto(b"answer", asker)
        with pytest.raises(TimeoutError):
            here.recv(100)


def test_a_server_goes_on_listening_when_its_clients_are_cut(engine: NftablesEngine, pair: Pair) -> None:
    engine.apply(pair.here.namespace, TRACKED)
    with pair.here.socket(socket.SOCK_STREAM) as listener:
        listener.bind((HERE[4], 80))
        listener.listen()
        listener.settimeout(LONG)
        for _ in range(3):
            with pair.there.socket(socket.SOCK_STREAM) as client:
                client.connect((HERE[4], 80))
                listener.accept()[0].close()
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        forbidden = desired(rule(INGRESS, BLOCK, f"{THERE[4]}/32", ports=tcp(80)))
        assert engine.apply(pair.here.namespace, forbidden).flows_cut == 3
        engine.apply(pair.here.namespace, desired())
        with pair.there.socket(socket.SOCK_STREAM) as client:
            client.settimeout(LONG)
            client.connect((HERE[4], 80))
            listener.accept()[0].close()


def test_of_containers_that_share_a_namespace_only_the_one_meant_is_cut(engine: NftablesEngine, pair: Pair) -> None:
    with cgroup("one") as one, contextlib.ExitStack() as stack:
        identifier = one.stat().st_ino
        harmless = RuleSet((rule(INGRESS, BLOCK, "192.0.2.1/32"),))
        engine.apply(pair.here.namespace, Desired((Endpoint(5, (harmless,), Cgroup(identifier, 2)),), LOUD))
        clients = []
        for path, port in ((one, 80), (one.parent, 81)):
            process = stack.enter_context(listen_inside(pair.here, path, HERE[4], port))
            assert process.said == "listening"
            client = stack.enter_context(pair.there.socket(socket.SOCK_STREAM))
            client.settimeout(LONG)
            client.connect((HERE[4], port))
            assert client.recv(10) == b"hello"
            clients.append(client)
        forbidden = RuleSet((rule(INGRESS, BLOCK),))
        applied = engine.apply(pair.here.namespace, Desired((Endpoint(5, (forbidden,), Cgroup(identifier, 2)),), LOUD))
        assert applied.flows_cut == 1
        with pytest.raises(ConnectionResetError):
            clients[0].recv(10)
        clients[1].settimeout(SHORT)
        with pytest.raises(TimeoutError):
            clients[1].recv(10)


def test_a_flow_through_the_machine_is_cut_by_its_interface(engine: NftablesEngine) -> None:
    """A workload seen from outside, by the host's end of its virtual Ethernet pair."""
    with Pair() as pair, contextlib.closing(Place()) as workload:
        middle = pair.here
        run("nsenter", f"--net={middle.path}", "ip", "link", "add", "veth7", "type", "veth", "peer", "name", "eth0",
            "netns", str(workload.pid))  # fmt: skip
        middle.run("ip", "-batch", "-", given="link set veth7 up\naddr add 10.8.0.1/24 dev veth7\n")
        middle.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        workload.run(
            "ip",
            "-batch",
            "-",
            given="link set eth0 up\naddr add 10.8.0.2/24 dev eth0\nroute add default via 10.8.0.1\n",
        )
        pair.there.run("ip", "route", "add", "10.8.0.0/24", "via", HERE[4])
        harmless = RuleSet((rule(EGRESS, BLOCK, "192.0.2.1/32"),))
        engine.apply(middle.namespace, Desired((Endpoint(9, (harmless,), Interface("veth7")),), LOUD))
        flows = []
        for address in (THERE[4], SECOND[4]):
            listener, client = pair.there.socket(socket.SOCK_STREAM), workload.socket(socket.SOCK_STREAM)
            with listener:
                listener.bind((address, 80))
                listener.listen()
                client.settimeout(LONG)
                client.connect((address, 80))
                flows.append((client, listener.accept()[0]))
        forbidden = RuleSet((rule(EGRESS, BLOCK, f"{THERE[4]}/32"),))
        applied = engine.apply(middle.namespace, Desired((Endpoint(9, (forbidden,), Interface("veth7")),), LOUD))
        assert applied.flows_cut == 1
        for number, (client, server) in enumerate(flows):
            client.send(b"more")
            server.settimeout(LONG if number else SHORT)
            if number:
                assert server.recv(10) == b"more"
            else:
                with pytest.raises(TimeoutError):
                    server.recv(10)
            client.close()
            server.close()


def test_a_translated_flow_is_judged_by_where_it_went(engine: NftablesEngine, pair: Pair) -> None:
    """The filter sees the destination after translation, and so do rules; the socket knows the one before."""
    nat = "type nat hook output priority -100; ip daddr 10.9.0.50 tcp dport 8080 dnat to"
    pair.here.nft(f"table ip theirs {{ chain out {{ {nat} {THERE[4]}:80; }}; }}")
    engine.apply(pair.here.namespace, TRACKED)
    with pair.there.socket(socket.SOCK_STREAM) as listener, pair.here.socket(socket.SOCK_STREAM) as client:
        listener.bind((THERE[4], 80))
        listener.listen()
        client.settimeout(LONG)
        client.connect(("10.9.0.50", 8080))
        with listener.accept()[0] as server:
            client.send(b"hello")
            assert server.recv(10) == b"hello"
            harmless = desired(rule(EGRESS, BLOCK, "10.9.0.50/32"), rule(EGRESS, BLOCK, ports=tcp(8080)))
            assert engine.apply(pair.here.namespace, harmless).flows_cut == 0
            forbidden = desired(rule(EGRESS, BLOCK, f"{THERE[4]}/32", ports=tcp(80)))
            assert engine.apply(pair.here.namespace, forbidden).flows_cut == 1
            with pytest.raises(ConnectionAbortedError):
                client.recv(10)


_ECHO = """
import socket, struct, sys
made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
made.settimeout(float(sys.argv[4]))
while True:
    made.sendto(struct.pack(">BBHHH", 8, 0, 0, 0, 1), (sys.argv[3], 0))
    try:
        print("answered" if made.recv(100)[0] == 0 else "told otherwise", flush=True)
    except TimeoutError:
        print("no answer", flush=True)
    sys.stdin.readline()
"""
_REMOVES_ITS_CGROUP = """
import os, socket, sys
top = sys.argv[1]
for name in "ab":
    os.mkdir(f"{top}/{name}")
    open(f"{top}/{name}/cgroup.procs", "w").write("0")
    if name == "a":
        made = socket.create_connection((sys.argv[3], int(sys.argv[4])), 20)
os.rmdir(f"{top}/a")
print("sent", flush=True)
sys.stdin.readline()
"""


def _of_cgroup(path: Path, network: str) -> Desired:
    """Give what is desired where a cgroup may not reach a network."""
    return Desired((Endpoint(5, (RuleSet((rule(EGRESS, BLOCK, network),)),), Cgroup(path.stat().st_ino, 2)),), LOUD)


def test_echoes_that_a_container_may_ask_for_no_more_end(engine: NftablesEngine, pair: Pair) -> None:
    pair.here.run("sysctl", "-qw", "net.ipv4.ping_group_range=0 2147483647")
    with cgroup("one") as one:
        engine.apply(pair.here.namespace, _of_cgroup(one, "192.0.2.1/32"))
        with Inside(pair.here, one, _ECHO, "", 4, THERE[4], LONG) as process:
            assert process.said == "answered"
            assert engine.apply(pair.here.namespace, _of_cgroup(one, f"{THERE[4]}/32")).flows_cut == 1
        with Inside(pair.here, one, _ECHO, "", 4, THERE[4], SHORT) as process:
            assert process.said != "answered"


def test_a_socket_whose_cgroup_was_removed_is_cut(engine: NftablesEngine, pair: Pair) -> None:
    with cgroup("one") as one, pair.there.socket(socket.SOCK_STREAM) as listener:
        listener.bind((THERE[4], 80))
        listener.listen()
        engine.apply(pair.here.namespace, _of_cgroup(one, "192.0.2.1/32"))
        with Inside(pair.here, one, _REMOVES_ITS_CGROUP, one, 4, THERE[4], 80) as process:
            assert process.said == "sent"
            assert engine.apply(pair.here.namespace, _of_cgroup(one, f"{THERE[4]}/32")).flows_cut == 1


@pytest.mark.parametrize("address", [HERE[4], "127.0.0.1"])
def test_what_is_sent_to_the_machine_itself_and_translated_is_no_loopback(
    engine: NftablesEngine, pair: Pair, address: str
) -> None:
    """The kernel says until the end that it goes out by loopback, where it was to go at first."""
    out = f"type nat hook output priority -100; ip daddr {address} tcp dport 8080 dnat to {THERE[4]}:80;"
    after = "type nat hook postrouting priority 100; oifname eth0 masquerade;"
    pair.here.nft(f"table ip theirs {{ chain out {{ {out} }}; chain after {{ {after} }}; }}")
    pair.here.run("sysctl", "-qw", "net.ipv4.conf.all.route_localnet=1")
    with pair.there.socket(socket.SOCK_STREAM) as listener:
        listener.bind((THERE[4], 80))
        listener.listen()
        engine.apply(pair.here.namespace, TRACKED)
        with pair.here.socket(socket.SOCK_STREAM) as client:
            client.settimeout(LONG)
            client.connect((address, 8080))
            forbidden = desired(rule(EGRESS, BLOCK, f"{THERE[4]}/32", ports=tcp(80)))
            assert engine.apply(pair.here.namespace, forbidden).flows_cut == 1
        with pair.here.socket(socket.SOCK_STREAM) as client:
            client.settimeout(SHORT)
            with pytest.raises(TimeoutError):
                client.connect((address, 8080))


def test_a_translated_flow_of_a_container_is_cut(engine: NftablesEngine, pair: Pair) -> None:
    """Its socket knows the peer before translation, and is found by that one."""
    nat = "type nat hook output priority -100; ip daddr 10.9.0.50 tcp dport 8080 dnat to"
    pair.here.nft(f"table ip theirs {{ chain out {{ {nat} {THERE[4]}:80; }}; }}")
    with cgroup("one") as one, pair.there.socket(socket.SOCK_STREAM) as listener:
        listener.bind((THERE[4], 80))
        listener.listen()
        engine.apply(pair.here.namespace, _of_cgroup(one, "192.0.2.1/32"))
        with connect_inside(pair.here, one, "10.9.0.50", 8080) as process:
            assert process.said == "sent"
            assert engine.apply(pair.here.namespace, _of_cgroup(one, f"{THERE[4]}/32")).flows_cut == 1


def test_the_far_end_of_a_link_between_two_points_is_a_peer(engine: NftablesEngine, pair: Pair) -> None:
    """There an interface has the peer's address beside its own."""
    near, far = "10.77.0.1", "10.77.0.2"
    pair.here.run("ip", "addr", "add", near, "peer", f"{far}/32", "dev", "eth0")
    pair.there.run("ip", "addr", "add", far, "peer", f"{near}/32", "dev", "eth0")
    engine.apply(pair.here.namespace, TRACKED)
    flow = pair.tcp_out(80, to={4: far})
    assert flow.works()
    assert engine.apply(pair.here.namespace, desired(rule(EGRESS, BLOCK, f"{far}/32"))).flows_cut == 1
    assert not flow.lives()


def test_flows_that_a_killed_engine_did_not_come_to_are_cut_by_the_next(pair: Pair) -> None:
    forbidden = desired(rule(EGRESS, BLOCK, f"{THERE[4]}/32"))
    with contextlib.closing(NftablesEngine()) as engine, pytest.MonkeyPatch.context() as patch:
        engine.apply(pair.here.namespace, TRACKED)
        flow = pair.tcp_out(80)
        patch.setattr(engine_cut, "cut", lambda _descriptor, _ruleset: 0)
        engine.apply(pair.here.namespace, forbidden)
    assert flow.works()
    with contextlib.closing(NftablesEngine()) as following:
        applied = following.apply(pair.here.namespace, forbidden)
    assert (applied.change, applied.flows_cut) == ("nothing", 1)
    assert not flow.lives()


@pytest.mark.long
def test_a_hundred_thousand_flows(engine: NftablesEngine, pair: Pair) -> None:
    engine.apply(pair.here.namespace, TRACKED)
    flows = 100_000
    with contextlib.ExitStack() as stack:
        targets = [stack.enter_context(pair.there.socket(socket.SOCK_DGRAM)) for _ in range(2)]
        for target, port in zip(targets, (53, 54), strict=True):
            target.bind((THERE[4], port))
        for source_port in range(10_000, 60_000):
            with pair.here.socket(socket.SOCK_DGRAM) as made:
                made.bind((HERE[4], source_port))
                for port in (53, 54):
                    made.sendto(b"x", (THERE[4], port))
        forbidden = desired(rule(EGRESS, BLOCK, ports=udp(53)))
        assert engine.apply(pair.here.namespace, forbidden).flows_cut == flows // 2
        assert engine.apply(pair.here.namespace, TRACKED).flows_cut == 0
