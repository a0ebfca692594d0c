# SPDX-License-Identifier: Apache-2.0
"""The engine of kernels without one: what it was told outlives it, whole or not at all."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from guest_agent.engines.absent import AbsentEngine
from guest_agent.engines.port import (
    EnforcedWorkload,
    Engine,
    EngineError,
    GateSettings,
    KernelWorkload,
    SealError,
    SuccessorRecord,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

DIGEST = "a" * 64


def gate(mode: str = "host") -> GateSettings:
    return GateSettings("sealed" if mode == "sealed" else "host", (), (), (), (), 1)


def workload(number: int, network: int = 0, cgroup: int | None = None) -> EnforcedWorkload:
    digest = f"{number:064x}"
    return EnforcedWorkload(number, f"c{number}", cgroup or 100 + number, 200 + number, b"table", digest, network)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[[], AbsentEngine]]:
    made: list[AbsentEngine] = []

    def engine() -> AbsentEngine:
        made.append(AbsentEngine(tmp_path / "registrations", lambda pid: frozenset({pid, 101})))
        return made[-1]

    yield engine
    for one in made:
        one.close()


def test_what_it_is_told_outlives_it(make: Callable[[], AbsentEngine]) -> None:
    first = make()
    assert isinstance(first, Engine)
    assert first.probe().available
    assert (first.sealed_digest(), first.successor(), list(first.registered())) == (None, None, [])
    first.seal(DIGEST, gate())
    first.register(workload(2))
    first.register(workload(1, network=77))
    second = make()
    assert second.sealed_digest() == DIGEST
    assert list(second.registered()) == [
        KernelWorkload(1, 101, 201, "c1", f"{1:064x}", 77), KernelWorkload(2, 102, 202, "c2", f"{2:064x}"),
    ]  # fmt: skip
    second.seal(DIGEST, gate())
    successor = SuccessorRecord("b" * 64, 2, 1)
    second.advance(successor, [workload(1), workload(2, network=78)])
    assert make().successor() == successor
    assert [held.network_namespace for held in make().registered()] == [0, 78]
    second.release(1)
    second.release(1)
    assert [held.workload_id for held in make().registered()] == [2]
    assert list(second.drain()) == []
    assert second.statistics() == {"events": 0, "events_lost": 0}


def test_it_refuses_what_it_cannot_do(make: Callable[[], AbsentEngine]) -> None:
    engine = make()
    with pytest.raises(EngineError, match="expected host"):
        engine.seal(DIGEST, gate("sealed"))
    with pytest.raises(EngineError, match="before the seal"):
        engine.register(workload(1))
    engine.seal(DIGEST, gate())
    with pytest.raises(SealError, match="as a successor"):
        engine.seal("b" * 64, gate())
    engine.register(workload(1))
    for other in (workload(1, cgroup=7), workload(2, cgroup=101)):
        with pytest.raises(EngineError, match="registered already"):
            engine.register(other)
    with pytest.raises(EngineError, match="expected number 1"):
        engine.advance(SuccessorRecord("b" * 64, 2, 2), [workload(1)])
    with pytest.raises(EngineError, match="one for each"):
        engine.advance(SuccessorRecord("b" * 64, 2, 1), [])
    assert engine.successor() is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"digest": "a", "successor": 1, "workloads": [{}]}'])
def test_a_damaged_file_is_not_an_empty_one(make: Callable[[], AbsentEngine], tmp_path: Path, text: str) -> None:
    (tmp_path / "registrations").write_text(text)
    with pytest.raises(EngineError, match="reboot"):
        make().sealed_digest()
    with pytest.raises(EngineError, match="reboot"):
        make().register(workload(1))


def test_what_cannot_be_written_did_not_happen(
    make: Callable[[], AbsentEngine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make()
    engine.seal(DIGEST, gate())

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(type(tmp_path), "write_text", full)
        with pytest.raises(EngineError, match="No space"):
            engine.register(workload(1))
    assert list(engine.registered()) == []
    engine.register(workload(1))


def test_who_is_in_the_cgroup_of_a_workload_is_told(make: Callable[[], AbsentEngine]) -> None:
    engine = make()
    engine.seal(DIGEST, gate())
    pidfd = os.pidfd_open(os.getpid())
    try:
        assert not engine.is_armed(pidfd)
        engine.register(workload(1))  # of cgroup 101, where everybody is
        assert engine.is_armed(pidfd)
    finally:
        os.close(pidfd)
    with pytest.raises(EngineError, match="cannot be told"):
        engine.is_armed(pidfd)
