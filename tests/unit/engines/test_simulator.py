# SPDX-License-Identifier: Apache-2.0
"""The simulator keeps the port's rules on successors: one after the other, every workload, all or nothing."""

from __future__ import annotations

import pytest

from guest_agent.engines.port import EnforcedWorkload, EngineError, GateSettings, SuccessorRecord
from guest_agent.engines.simulator import SimulatedKernel, SimulatorEngine

GATE = GateSettings("sealed", (), (), (), (), 1)


def workload(number: int, table: bytes = b"old") -> EnforcedWorkload:
    return EnforcedWorkload(number, f"c{number}", 100 + number, 200 + number, table, table.hex())


def successor(number: int, version: int | None = None) -> SuccessorRecord:
    return SuccessorRecord(f"{number:064x}", number * 10 if version is None else version, number)


@pytest.fixture
def engine() -> SimulatorEngine:
    made = SimulatorEngine()
    made.seal("ab" * 32, GATE)
    for number in (1, 2):
        made.register(workload(number))
    return made


def test_a_successor_changes_every_workload_and_outlives_the_engine(engine: SimulatorEngine) -> None:
    assert engine.successor() is None
    engine.advance(successor(1), [workload(2, b"new"), workload(1, b"new")])
    assert [held.table_digest for held in engine.registered()] == [b"new".hex()] * 2
    again = SimulatorEngine(engine.kernel)
    assert again.successor() == successor(1)
    again.advance(successor(2), [workload(1), workload(2)])
    assert again.successor() == successor(2)


@pytest.mark.parametrize(
    ("given", "workloads"),
    [
        (successor(2), (1, 2)),
        (successor(0), (1, 2)),
        (successor(1), (1,)),
        (successor(1), (1, 2, 3)),
        (successor(1), (1, 1, 2)),
    ],
)
def test_what_is_out_of_turn_or_not_whole_changes_nothing(
    engine: SimulatorEngine, given: SuccessorRecord, workloads: tuple[int, ...]
) -> None:
    before = engine.registered()
    with pytest.raises(EngineError):
        engine.advance(given, [workload(number, b"new") for number in workloads])
    assert engine.registered() == before
    assert engine.successor() is None


def test_a_version_never_falls(engine: SimulatorEngine) -> None:
    both = [workload(1), workload(2)]
    engine.advance(successor(1), both)
    with pytest.raises(EngineError, match="above 10"):
        engine.advance(successor(2, 10), both)


def test_a_fault_before_the_switch_changes_nothing() -> None:
    def failing() -> None:
        message = "no"
        raise EngineError(message)

    engine = SimulatorEngine(SimulatedKernel(), {"advance.before": failing})
    engine.seal("ab" * 32, GATE)
    with pytest.raises(EngineError):
        engine.advance(successor(1), [])
    assert engine.successor() is None
