# SPDX-License-Identifier: Apache-2.0
"""Containers of one network namespace cannot use what the kernel remembers, or does, for another of them."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from guest_agent.engines.network_port import Cgroup, Desired, Endpoint, NetworkEvent
from guest_agent.engines.nftables.engine import NftablesEngine
from hauberk.policy.rules import Action, RuleSet

from .engine_pair import EGRESS, INGRESS, LOUD, THERE, Inside, Pair, cgroup, collect, rule

if TYPE_CHECKING:
    from collections.abc import Iterator

_PORT = 5353
_ASK = """
import socket, sys
kind, family, address, port = sys.argv[1:]
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("10.9.0.1", 40000))
s.settimeout(2)
said = []
for _ in range(2):
    try:
        s.sendto(b"x", (address, int(port)))
        said.append(s.recv(10).decode())
    except OSError as error:
        said.append(type(error).__name__)
        break
print(" ".join(said), flush=True)
"""
_LISTEN_TO_MANY = """
import socket, sys
kind, family, address, port = sys.argv[1:]
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(("", int(port)))
if address.startswith("2"):
    s.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(address) + socket.inet_aton("10.9.0.1"))
s.settimeout(3)
print("ready", flush=True)
try:
    print(s.recv(10).decode(), flush=True)
except OSError as error:
    print(type(error).__name__, flush=True)
"""


@pytest.fixture
def engine() -> Iterator[NftablesEngine]:
    with contextlib.closing(NftablesEngine()) as made:
        yield made


@pytest.fixture
def pair() -> Iterator[Pair]:
    with Pair() as made:
        yield made


@contextlib.contextmanager
def _echo(pair: Pair) -> Iterator[None]:
    """Answer what comes in at the other end."""

    def answer() -> None:
        with contextlib.suppress(OSError):
            while True:
                data, peer = server.recvfrom(10)
                if data == b"end":
                    return
                server.sendto(data, peer)

    with pair.there.socket(socket.SOCK_DGRAM) as server:
        server.bind((THERE[4], _PORT))
        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield
        finally:
            with pair.there.socket(socket.SOCK_DGRAM) as last:
                last.sendto(b"end", (THERE[4], _PORT))
            thread.join()


@pytest.mark.parametrize("action", [Action.ALLOW, Action.AUDIT])
def test_a_port_of_udp_that_another_leaves_comes_without_its_flows(
    engine: NftablesEngine, pair: Pair, action: Action
) -> None:
    """Of a flow that goes on, an audited first packet alone is told."""
    with _echo(pair), cgroup("one") as one, cgroup("two") as two:
        refused = Endpoint(5, (RuleSet((rule(EGRESS, Action.BLOCK, f"{THERE[4]}/32"),)),), Cgroup(one.stat().st_ino, 2))
        allowed = Endpoint(6, (RuleSet((rule(EGRESS, action, f"{THERE[4]}/32"),)),), Cgroup(two.stat().st_ino, 2))
        engine.apply(pair.here.namespace, Desired((refused, allowed), LOUD))
        with Inside(pair.here, two, _ASK, "ask", 4, THERE[4], _PORT) as asking:
            assert asking.said == "x x"
        with Inside(pair.here, one, _ASK, "ask", 4, THERE[4], _PORT) as asking:
            assert asking.said == "PermissionError"
        expected = [(5, "deny")] if action is Action.ALLOW else [(6, "audit"), (5, "deny")]
        events = collect(engine, lambda told: len(told) >= len(expected))
        found = [(event.endpoint, event.verdict) for event in events if isinstance(event, NetworkEvent)]
        assert found == expected


@pytest.mark.parametrize("address", ["239.1.2.3", "10.9.0.255"])
@pytest.mark.parametrize("first", ["one", "two"])
def test_what_is_sent_to_many_reaches_nobody_where_somebody_may_not_have_it(
    engine: NftablesEngine, pair: Pair, address: str, first: str
) -> None:
    """The packet filter finds one of the sockets of a port, and the kernel would serve all of them."""
    with cgroup("one") as one, cgroup("two") as two:
        held = RuleSet((rule(INGRESS, Action.BLOCK, "10.9.0.0/24"),))
        engine.apply(pair.here.namespace, Desired((Endpoint(5, (held,), Cgroup(one.stat().st_ino, 2)),), LOUD))
        order = (one, two) if first == "one" else (two, one)
        with (
            Inside(pair.here, order[0], _LISTEN_TO_MANY, "x", 4, address, 7777) as a,
            Inside(pair.here, order[1], _LISTEN_TO_MANY, "x", 4, address, 7777) as b,
            pair.there.socket(socket.SOCK_DGRAM) as sender,
        ):
            assert a.said == b.said == "ready"
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(THERE[4]))
            sender.sendto(b"x", (address, 7777))
            assert a.line() == b.line() == "TimeoutError"
            (event,) = collect(engine, bool)
            assert isinstance(event, NetworkEvent)
            assert (event.reason, event.destination_address) == ("unattributed", address)


def test_without_such_rules_what_is_sent_to_many_arrives(engine: NftablesEngine, pair: Pair) -> None:
    with cgroup("one") as one:
        held = RuleSet((rule(EGRESS, Action.BLOCK, "192.0.2.0/24"),))
        engine.apply(pair.here.namespace, Desired((Endpoint(5, (held,), Cgroup(one.stat().st_ino, 2)),), LOUD))
        with (
            Inside(pair.here, one, _LISTEN_TO_MANY, "x", 4, "10.9.0.255", 7777) as listening,
            pair.there.socket(socket.SOCK_DGRAM) as sender,
        ):
            assert listening.said == "ready"
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            sender.sendto(b"x", ("10.9.0.255", 7777))
            assert listening.line() == "x"
