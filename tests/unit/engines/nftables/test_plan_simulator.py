# SPDX-License-Identifier: Apache-2.0
"""The simulator keeps the port's promises: atomic, usage survives, flows are cut, tampering is put right."""

from __future__ import annotations

import os
import select
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from guest_agent.engines.network_port import (
    Desired,
    Endpoint,
    EngineError,
    EngineUnavailableError,
    NameAnswer,
    Namespace,
    NetworkEngine,
    NetworkEvent,
    Whole,
)
from guest_agent.engines.nftables.evaluation import Packet
from guest_agent.engines.nftables.simulator import STEPS, SimulatedNetwork, SimulatorNetworkEngine
from hauberk.policy.rules import Action, PeerGroup, RuleSet, Section
from tests.unit.engines.nftables.policies import rule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hauberk.policy.rules import Rule

HERE = Namespace(4026531840, "/proc/1/ns/net")
THERE = Namespace(4026531841, "/proc/2/ns/net")
PACKET = Packet("10.99.99.99", "10.1.1.1", 6, 40000, 80, interface_out="eth0")
NAME = PeerGroup("name", "www.example.com")


def of(*rules: Rule) -> Desired:
    return Desired((Endpoint(0, (RuleSet(rules),), Whole()),))


BLOCK = of(rule(Section.EGRESS, Action.BLOCK, cidrs=("10.0.0.0/8",)))
NAMED = of(rule(Section.EGRESS, Action.ALLOW, groups=(NAME,)))


def quota(limit: int) -> Desired:
    return of(rule(Section.EGRESS, Action.BLOCK, quota=(limit, 60, "pod")))


@pytest.fixture
def engine() -> Iterator[SimulatorNetworkEngine]:
    with closing(SimulatorNetworkEngine()) as made:
        yield made


def test_it_is_an_engine_for_packets(engine: SimulatorNetworkEngine) -> None:
    assert isinstance(engine, NetworkEngine)
    assert (engine.name, engine.probe().available) == ("simulator", True)


def test_what_is_applied_holds_and_is_told(engine: SimulatorNetworkEngine) -> None:
    assert engine.send(HERE, "output", PACKET).passes
    applied = engine.apply(HERE, BLOCK)
    assert (applied.change, applied.digest) == ("table", engine.held(HERE))
    assert not engine.send(HERE, "output", PACKET).passes
    assert engine.send(THERE, "output", PACKET).passes
    assert select.select([engine.fileno()], [], [], 0)[0]
    (event,) = engine.drain()
    assert isinstance(event, NetworkEvent)
    assert (event.verdict, event.namespace, event.destination_port, event.protocol) == ("deny", HERE.inode, 80, "tcp")
    assert list(engine.drain()) == []
    engine.remove(HERE)
    engine.remove(HERE)
    assert engine.held(HERE) is None
    assert engine.usage(HERE) == ()


def test_only_what_differs_changes(engine: SimulatorNetworkEngine) -> None:
    engine.apply(HERE, BLOCK)
    assert engine.apply(HERE, BLOCK).change == "nothing"
    wider = of(rule(Section.EGRESS, Action.BLOCK, cidrs=("10.0.0.0/8", "12.0.0.0/8")))
    assert engine.apply(HERE, wider).change == "elements"
    assert engine.apply(HERE, quota(5)).change == "table"


def test_flows_that_are_forbidden_now_end(engine: SimulatorNetworkEngine) -> None:
    engine.apply(HERE, quota(1000))
    for port in (80, 81):
        engine.send(HERE, "output", replace(PACKET, destination_port=port))
    one = of(rule(Section.EGRESS, Action.BLOCK, ports=((80, 80, "tcp"),)))
    assert engine.apply(HERE, one).flows_cut == 1
    assert engine.apply(HERE, BLOCK).flows_cut == 1
    assert engine.apply(HERE, of()).flows_cut == 0


def test_usage_survives_a_change_of_the_limit_and_another_engine(engine: SimulatorNetworkEngine) -> None:
    engine.apply(HERE, quota(1000))
    engine.send(HERE, "output", PACKET)
    engine.apply(HERE, quota(500))
    with closing(SimulatorNetworkEngine(engine.network)) as restarted:
        restarted.apply(HERE, quota(400))
        (usage,) = restarted.usage(HERE)
        assert (usage.used_bytes, usage.limit_bytes, usage.policy) == (100, 400, "a-policy")
        restarted.reset_quota(HERE, usage.name)
        restarted.reset_quota(HERE, "q-none")
        restarted.reset_quota(THERE, usage.name)
        assert restarted.usage(HERE)[0].used_bytes == 0


def test_members_change_without_a_reload(engine: SimulatorNetworkEngine) -> None:
    with pytest.raises(EngineError, match="call apply first"):
        engine.set_members(HERE, NAME, ())
    engine.apply(HERE, NAMED)
    assert not engine.send(HERE, "output", PACKET).passes
    engine.set_members(HERE, NAME, (("10.1.1.1", 60),))
    assert engine.send(HERE, "output", PACKET).passes
    engine.set_members(replace(HERE, path="/proc/9/ns/net"), NAME, ())
    assert not engine.send(HERE, "output", PACKET).passes


def test_tampering_is_put_right_and_told(engine: SimulatorNetworkEngine) -> None:
    engine.apply(HERE, BLOCK)
    engine.apply(THERE, BLOCK)
    assert engine.verify() == []
    engine.tamper(HERE)
    assert engine.verify() == [HERE]
    with closing(SimulatorNetworkEngine(engine.network)) as other:
        other.apply(THERE, quota(1))
    assert engine.verify() == [THERE]
    assert [event.verdict for event in engine.drain() if isinstance(event, NetworkEvent)] == ["tampered"] * 2


def test_a_refused_plan_changes_nothing(engine: SimulatorNetworkEngine) -> None:
    digest = engine.apply(HERE, BLOCK).digest
    with pytest.raises(EngineError, match="a-policy"):
        engine.apply(HERE, of(rule(Section.EGRESS, Action.BLOCK, groups=(NAME,))))
    assert engine.held(HERE) == digest
    engine.network.offers_engine = False
    assert not engine.probe().available
    with pytest.raises(EngineUnavailableError):
        engine.apply(HERE, BLOCK)


@pytest.mark.parametrize("step", STEPS)
def test_every_step_can_fail(engine: SimulatorNetworkEngine, step: str) -> None:
    def fail() -> None:
        raise EngineError(step)

    engine.apply(HERE, quota(1000))
    before = engine.held(HERE)
    engine.faults[step] = fail
    calls: dict[str, Callable[[], object]] = {
        "probe": engine.probe,
        "apply": lambda: engine.apply(HERE, BLOCK),
        "remove": lambda: engine.remove(HERE),
        "held": lambda: engine.held(HERE),
        "verify": engine.verify,
        "set_members": lambda: engine.set_members(HERE, NAME, ()),
        "usage": lambda: engine.usage(HERE),
        "reset_quota": lambda: engine.reset_quota(HERE, "q"),
        "drain": lambda: list(engine.drain()),
    }
    with pytest.raises(EngineError, match=step):
        calls[step.partition(".")[0]]()
    engine.faults.clear()
    assert (engine.held(HERE) == before) is not step.endswith(".after")


def test_unknown_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="no such step: nothing"):
        SimulatorNetworkEngine(faults={"nothing": lambda: None})


def test_a_full_buffer_loses_events_and_counts_them() -> None:
    network = SimulatedNetwork(buffer_limit=1)
    with closing(SimulatorNetworkEngine(network)) as engine:
        engine.emit(NameAnswer(0, HERE.inode, "10.0.0.53", b"x"))
        engine.emit(NameAnswer(0, HERE.inode, "10.0.0.53", b"y"))
        assert engine.statistics() == {"events": 2, "events_lost": 1}
        os.eventfd_read(engine.fileno())
        assert [one.payload for one in engine.drain() if isinstance(one, NameAnswer)] == [b"x"]
