# SPDX-License-Identifier: Apache-2.0
"""The whole agent on a simulated kernel: what is refused leaves nothing, what is in force stays until it has ended."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from guest_agent import agent as agent_module
from guest_agent.agent import Agent, StartError
from guest_agent.api.hook_socket import HookAnswer, Peer, Stage
from guest_agent.engines.port import EngineError, KernelEvent
from guest_agent.engines.simulator import SimulatedKernel, SimulatorEngine
from guest_agent.records import RecordStore
from guest_agent.workloads import facts, selection, verification
from guest_agent.workloads.registry import Registry, State
from tests.unit.agent.machine import Killed

if TYPE_CHECKING:
    from collections.abc import Callable

    from guest_agent.configuration import Configuration
    from tests.unit.agent.machine import Container, FakeMachine

    Start = Callable[..., Agent]
    Configure = Callable[..., Configuration]

LABELS = {"io.hauberk.label.app": "secrets"}
PEER = Peer(pid=1, uid=0, gid=0, pidfd=-1, start_time=0)


def kernel_of(agent: Agent) -> SimulatedKernel:
    assert isinstance(agent.engine, SimulatorEngine)
    return agent.engine.kernel


def create(agent: Agent, container: Container, stage: Stage = Stage.CREATE_RUNTIME) -> HookAnswer:
    return agent.handle(stage, container.state(), PEER)


def poststop(agent: Agent, container: Container) -> HookAnswer:
    return agent.handle(Stage.POSTSTOP, container.state(status="stopped", pid=0), PEER)


def records(configuration: Configuration) -> list[str]:
    return sorted(path.name for path in configuration.state_directory.iterdir() if path.suffix == ".json")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - counted, not looked at


def until(condition: Callable[[], bool]) -> None:
    """Wait for a thread of the agent; how long it takes is no part of the test."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.005)


def test_a_covered_container_is_enforced_before_the_answer(
    fake: FakeMachine, agents: Start, configure: Configure
) -> None:
    agent = agents(configure())
    container = fake.container(annotations=LABELS)
    assert create(agent, container) == HookAnswer(accepted=True, message="enforced")
    [held] = kernel_of(agent).workloads.values()
    assert held.container_id == container.id
    assert held.cgroup_id == container.cgroup.stat().st_ino
    assert held.mount_namespace == 4026532000 + container.pid
    [(workload, record)] = agent.workloads()
    assert workload.state is State.ENFORCED
    assert record is not None
    assert record.policies == ("secrets",)
    assert "/usr/bin/dash" in {rule.value for rule in record.rule_set.rules}


def test_the_gate_is_in_force_and_sealed_before_anything_else(agents: Start, configure: Configure) -> None:
    agent = agents(configure())
    kernel = kernel_of(agent)
    assert agent.policy_set is not None
    assert kernel.digest == agent.policy_set.digest
    assert kernel.gate is not None
    assert kernel.gate.mode == "sealed"
    assert kernel.gate.agent_pid == os.getpid()


def test_an_uncovered_container_gets_the_default(fake: FakeMachine, agents: Start, configure: Configure) -> None:
    agent = agents(configure())
    answer = create(agent, fake.container())
    assert not answer.accepted
    assert "default is deny" in answer.message
    assert kernel_of(agent).workloads == {}
    assert len(agent.registry) == 0


@pytest.mark.parametrize("default", ["allow", "audit"])
def test_a_bundle_may_let_uncovered_containers_run(
    fake: FakeMachine, agents: Start, configure: Configure, default: str
) -> None:
    agent = agents(configure(default=default))
    assert create(agent, fake.container()).accepted
    assert any("default" in warning for warning in agent.warnings())


@pytest.mark.parametrize("state", [b"", b"{", b"[]", b'{"id":"a"}', b'{"id":"a/b","bundle":"/x"}', b"\xff"])
def test_a_malformed_announcement_is_refused(agents: Start, configure: Configure, state: bytes) -> None:
    agent = agents(configure())
    answer = agent.handle(Stage.CREATE_RUNTIME, state, PEER)
    assert not answer.accepted
    assert "\n" not in answer.message


def test_a_container_in_the_callers_mount_namespace_is_refused(
    fake: FakeMachine, agents: Start, configure: Configure
) -> None:
    agent = agents(configure())
    container = fake.container(annotations=LABELS)
    fake.process("300", namespace=4026532000 + container.pid, cgroup="/system.slice/containerd.service")
    answer = agent.handle(Stage.CREATE_RUNTIME, container.state(), replace(PEER, pid=300))
    assert not answer.accepted
    assert "mount namespace" in answer.message


def test_a_hook_that_runs_twice_is_answered_twice(fake: FakeMachine, agents: Start, configure: Configure) -> None:
    agent = agents(configure())
    container = fake.container(annotations=LABELS)
    assert create(agent, container, Stage.PRESTART).accepted
    assert create(agent, container, Stage.PRESTART).accepted
    assert len(kernel_of(agent).workloads) == 1


def test_another_process_under_a_living_id_is_refused(fake: FakeMachine, agents: Start, configure: Configure) -> None:
    agent = agents(configure())
    container = fake.container(annotations=LABELS)
    assert create(agent, container).accepted
    other = fake.container("c2", 101, LABELS)
    answer = agent.handle(Stage.CREATE_RUNTIME, other.state(id=container.id), PEER)
    assert not answer.accepted
    assert "already" in answer.message
    assert [held.cgroup_id for held in kernel_of(agent).workloads.values()] == [container.cgroup.stat().st_ino]


def test_nothing_is_freed_while_the_container_lives(
    fake: FakeMachine, agents: Start, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_module, "POSTSTOP_PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(agent_module, "REAP_SECONDS", 3600.0)
    configuration = configure()
    agent = agents(configuration)
    container = fake.container(annotations=LABELS)
    create(agent, container)
    answer = poststop(agent, container)
    assert not answer.accepted
    assert "nothing was freed" in answer.message
    fake.end_init(container)
    assert not poststop(agent, container).accepted
    assert len(kernel_of(agent).workloads) == 1
    assert records(configuration) == ["1.json"]
    fake.end(container)
    assert poststop(agent, container).accepted
    assert kernel_of(agent).workloads == {}
    assert len(agent.registry) == 0
    assert records(configuration) == []
    assert poststop(agent, container).accepted


def test_poststop_of_an_unknown_container_is_fine(fake: FakeMachine, agents: Start, configure: Configure) -> None:
    agent = agents(configure())
    assert poststop(agent, fake.container()).accepted


def test_the_reaper_lets_go_of_what_ended_without_a_word(
    fake: FakeMachine, agents: Start, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_module, "REAP_SECONDS", 0.005)
    agent = agents(configure())
    container, living = fake.container(annotations=LABELS), fake.container("c2", 101, LABELS)
    create(agent, container)
    create(agent, living)
    fake.end(container)
    until(lambda: len(agent.registry) == 1)
    assert [held.container_id for held in kernel_of(agent).workloads.values()] == ["c2"]


def test_an_id_comes_again_after_its_container_ended_unnoticed(
    fake: FakeMachine, agents: Start, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_module, "REAP_SECONDS", 3600.0)
    agent = agents(configure())
    container = fake.container(annotations=LABELS)
    create(agent, container)
    fake.end(container)
    again = fake.container("c2", 101, LABELS)
    assert agent.handle(Stage.CREATE_RUNTIME, again.state(id=container.id), PEER).accepted
    assert list(kernel_of(agent).workloads) == [2]


STEPS: dict[str, tuple[object, str]] = {
    "mount namespace of the caller": (verification, "mount_namespace"),
    "announce": (Registry, "announce"),
    "verify": (verification, "verify"),
    "record the identity": (Registry, "verify"),
    "read config.json": (facts, "read_config"),
    "names": (selection, "identify"),
    "select": (selection, "select"),
    "facts": (facts, "gather"),
    "fingerprint": (agent_module, "fingerprint"),
    "compile": (agent_module, "compile_table"),
    "write the record": (RecordStore, "write"),
    "register": (SimulatorEngine, "register"),
    "verify again": (verification, "recheck"),
    "record that it is enforced": (Registry, "enforce"),
}
# "announce" is the step before there is anything to undo; it is among those a kill hits.
ERRORS = [OSError("the disk is gone"), EngineError("no"), RuntimeError("a defect"), MemoryError()]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", [step for step in STEPS if step != "announce"])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_failure_at_any_step_refuses_and_leaves_nothing(  # noqa: PLR0913, PLR0917 - fixtures and cases
    fake: FakeMachine,
    agents: Start,
    configure: Configure,
    step: str,
    error: Exception,
    when: str,
) -> None:
    configuration = configure()
    agent = agents(configuration)
    container = fake.container(annotations=LABELS)
    before = descriptors()
    with pytest.MonkeyPatch.context() as patch:
        fail(patch, step, error, after=when == "after")
        answer = create(agent, container)
    assert not answer.accepted
    assert answer.message
    if step == "record that it is enforced" and when == "after":
        # Too late to be undone: it is entirely in force, refused all the same, and goes when it ends.
        assert [workload.state for workload in agent.registry] == [State.ENFORCED]
        fake.end(container)
        assert poststop(agent, container).accepted
        container = fake.container("again", 101, LABELS)
    assert kernel_of(agent).workloads == {}
    assert len(agent.registry) == 0
    assert records(configuration) == []
    if when == "before":  # what a step had opened when it failed is the step's own test
        assert descriptors() == before
    assert create(agent, container).accepted
    assert len(kernel_of(agent).workloads) == 1


def fail(patch: pytest.MonkeyPatch, step: str, error: BaseException, *, after: bool) -> None:
    owner, name = STEPS[step]
    real = getattr(owner, name)

    def failing(*arguments: object, **named: object) -> object:
        if after:
            real(*arguments, **named)
        raise error

    patch.setattr(owner, name, failing)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_killed_at_any_step_the_container_is_refused_or_protected(
    fake: FakeMachine, agents: Start, configure: Configure, step: str, when: str
) -> None:
    configuration = configure()
    first = agents(configuration)
    container = fake.container(annotations=LABELS)
    with pytest.MonkeyPatch.context() as patch:
        fail(patch, step, Killed(), after=when == "after")
        patch.setattr(Agent, "_undo", lambda *_: None)
        with pytest.raises(Killed):
            create(first, container)
    first.stop()
    kernel = kernel_of(first)
    protected = list(kernel.workloads.values())
    second = agents(configuration, None, kernel)
    # What the kernel took is taken up and stays; what it did not take is unknown, and the gate holds it.
    assert list(kernel.workloads.values()) == protected
    assert [workload.container_id for workload in second.registry] == [held.container_id for held in protected]
    assert records(configuration) == [f"{held.workload_id}.json" for held in protected]
    used = {workload.workload_id for workload in first.registry}
    assert create(second, container).accepted
    [held] = kernel.workloads.values()
    assert held.cgroup_id == container.cgroup.stat().st_ino
    assert protected or held.workload_id not in used
    fake.end(container)
    assert poststop(second, container).accepted
    assert kernel.workloads == {}
    assert records(configuration) == []


@pytest.mark.parametrize("change", ["ended", "moved", "started"])
def test_what_changes_while_the_kernel_takes_it_up_is_refused(
    fake: FakeMachine, agents: Start, configure: Configure, change: str
) -> None:
    container = fake.container(annotations=LABELS)

    def meanwhile() -> None:
        if change == "ended":
            fake.end(container)
        elif change == "moved":
            (fake.proc / str(container.pid) / "cgroup").write_text("0::/elsewhere\n")
        else:
            program = fake.root / "program"
            program.write_bytes(b"a program")
            exe = fake.proc / str(container.pid) / "exe"
            exe.unlink()
            exe.symlink_to(program)

    agent = agents(configure(), {"register.after": meanwhile})
    assert not create(agent, container).accepted
    assert kernel_of(agent).workloads == {}
    assert len(agent.registry) == 0


def test_a_workload_the_kernel_will_not_let_go_stays_in_force(
    fake: FakeMachine, agents: Start, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_module, "REAP_SECONDS", 3600.0)

    def refuse() -> None:
        message = "busy"
        raise EngineError(message)

    agent = agents(configure(), {"register.after": refuse, "release.before": refuse})
    assert isinstance(agent.engine, SimulatorEngine)
    container = fake.container(annotations=LABELS)
    assert not create(agent, container).accepted
    assert [workload.state for workload in agent.registry] == [State.ENFORCED]
    assert len(kernel_of(agent).workloads) == 1
    assert not create(agent, container).accepted
    fake.end(container)
    assert not poststop(agent, container).accepted
    agent.engine.faults.clear()
    assert poststop(agent, container).accepted
    assert kernel_of(agent).workloads == {}


def test_a_restart_takes_up_what_is_in_force_and_names_it(
    fake: FakeMachine, agents: Start, configure: Configure
) -> None:
    configuration = configure()
    first = agents(configuration)
    container = fake.container(annotations=LABELS)
    create(first, container)
    first.stop()
    second = agents(configuration)
    [(workload, record)] = second.workloads()
    assert (workload.state, workload.container_id) == (State.ENFORCED, container.id)
    assert record is not None
    assert record.policies == ("secrets",)
    assert not second.handle(Stage.POSTSTOP, container.state(pid=0), PEER).accepted
    fake.end(container)
    assert poststop(second, container).accepted
    assert kernel_of(second).workloads == {}


@pytest.mark.parametrize("damage", ["missing", "no JSON", "another's"])
def test_a_record_that_cannot_be_used_costs_names_only(
    fake: FakeMachine, agents: Start, configure: Configure, damage: str
) -> None:
    configuration = configure()
    first = agents(configuration)
    container = fake.container(annotations=LABELS)
    create(first, container)
    first.stop()
    path = configuration.state_directory / "1.json"
    if damage == "missing":
        path.unlink()
    elif damage == "no JSON":
        path.write_text("{")
    else:
        path.write_text(json.dumps({**json.loads(path.read_text()), "containerId": "somebody"}))
    second = agents(configuration)
    [(workload, record)] = second.workloads()
    assert record is None
    assert workload.identity is not None
    assert workload.identity.cgroup_path == "/machine.slice/c1"
    assert len(kernel_of(second).workloads) == 1
    assert not poststop(second, container).accepted
    fake.end(container)
    assert poststop(second, container).accepted


def test_numbers_are_not_given_out_again_after_a_restart(
    fake: FakeMachine, agents: Start, configure: Configure
) -> None:
    configuration = configure()
    first = agents(configuration)
    container = fake.container(annotations=LABELS)
    create(first, container)
    [used] = kernel_of(first).workloads
    fake.end(container)
    poststop(first, container)
    first.stop()
    second = agents(configuration)
    assert second.registry.next_workload_id > used
    second.stop()
    (configuration.state_directory / "next-workload-id").unlink()
    assert agents(configuration).registry.next_workload_id > used


def test_a_sealed_kernel_takes_no_other_bundle(agents: Start, configure: Configure) -> None:
    first = agents(configure())
    digest = kernel_of(first).digest
    first.stop()
    with pytest.raises(StartError, match="sealed"):
        agents(configure(version=2))
    assert kernel_of(first).digest == digest
    agents(configure(version=1))


def _tamper(configuration: Configuration) -> None:
    configuration.bundle.write_bytes(configuration.bundle.read_bytes().replace(b"secrets stay", b"secrets leak"))


def _unsign(configuration: Configuration) -> None:
    configuration.bundle_signature.write_bytes(b"")


def _no_root(configuration: Configuration) -> None:
    configuration.trust_root.unlink()


def _floor(configuration: Configuration) -> None:
    root = json.loads(configuration.trust_root.read_text())
    root["bundle"]["minimumVersion"] = 5
    configuration.trust_root.write_text(json.dumps(root))


@pytest.mark.parametrize("change", [_tamper, _unsign, _no_root, _floor])
def test_a_bundle_that_is_not_to_be_trusted_seals_nothing(
    agents: Start, configure: Configure, change: Callable[[Configuration], None]
) -> None:
    configuration = configure()
    change(configuration)
    kernel = SimulatedKernel()
    with pytest.raises(StartError):
        agents(configuration, None, kernel)
    assert kernel.digest is None
    assert kernel.gate is None


def test_a_state_of_the_kernel_that_cannot_be_read_is_not_taken_for_unsealed(
    agents: Start, configure: Configure
) -> None:
    def unreadable() -> None:
        message = "the map cannot be read"
        raise EngineError(message)

    kernel = SimulatedKernel()
    with pytest.raises(StartError, match="cannot be read"):
        agents(configure(), {"sealed_digest": unreadable}, kernel)
    assert kernel.digest is None


def test_two_agents_are_one_too_many(agents: Start, configure: Configure) -> None:
    configuration = configure()
    agents(configuration)
    with pytest.raises(StartError, match="another agent"):
        agents(configuration)


def test_different_containers_are_registered_side_by_side(
    fake: FakeMachine, agents: Start, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = agents(configure())
    containers = [fake.container(f"c{number}", 100 + number, LABELS) for number in range(4)]
    together = threading.Barrier(len(containers), timeout=60)
    real = facts.gather

    def gather(*arguments: object) -> object:
        together.wait()  # only passed when all four are here at once
        return real(*arguments)  # type: ignore[arg-type] # as they came

    monkeypatch.setattr(facts, "gather", gather)
    answers: list[HookAnswer] = []
    threads = [threading.Thread(target=lambda c=c: answers.append(create(agent, c))) for c in containers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer.accepted for answer in answers] == [True] * 4
    assert sorted(kernel_of(agent).workloads) == [1, 2, 3, 4]


def test_one_container_is_dealt_with_one_hook_at_a_time(
    fake: FakeMachine, agents: Start, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = agents(configure())
    container = fake.container(annotations=LABELS)
    inside, go_on = threading.Event(), threading.Event()
    real = facts.gather

    def gather(*arguments: object) -> object:
        inside.set()
        assert go_on.wait(60)
        return real(*arguments)  # type: ignore[arg-type] # as they came

    monkeypatch.setattr(facts, "gather", gather)
    answers: dict[str, HookAnswer] = {}
    creating = threading.Thread(target=lambda: answers.update(create=create(agent, container)))
    creating.start()
    assert inside.wait(60)
    fake.end(container)
    stopping = threading.Thread(target=lambda: answers.update(stop=poststop(agent, container)))
    stopping.start()
    go_on.set()
    creating.join()
    stopping.join()
    assert not answers["create"].accepted
    assert answers["stop"].accepted
    assert kernel_of(agent).workloads == {}
    assert len(agent.registry) == 0


def event(workload_id: int, path: str = "/secret/key") -> KernelEvent:
    return KernelEvent(
        timestamp_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME), workload_id=workload_id, pid=200, parent_pid=0, uid=0,
        verdict="deny", operation="read", detail="open", path=path, other_path="", source="/usr/bin/cat", command="cat",
        owner=True, path_known=True,
    )  # fmt: skip


def test_events_become_alerts_also_after_the_container_is_gone(
    fake: FakeMachine, agents: Start, configure: Configure
) -> None:
    configuration = configure()
    agent = agents(configuration)
    assert isinstance(agent.engine, SimulatorEngine)
    container = fake.container(annotations=LABELS)
    create(agent, container)
    agent.engine.emit(event(1))
    until(lambda: len(agent.alerts.recent()) == 1)
    fake.end(container)
    poststop(agent, container)
    agent.engine.emit(event(1))
    until(lambda: len(agent.alerts.recent()) == 2)
    for alert in agent.alerts.recent():
        assert (alert["ContainerID"], alert["PolicyName"], alert["Message"]) == ("c1", "secrets", "secrets stay")
        assert alert["Rule"].startswith("spec.file.matchDirectories[0] (secrets.yaml:")
    assert configuration.alert_log is not None
    assert len(configuration.alert_log.read_text().splitlines()) == 2


def test_an_event_that_cannot_be_told_ends_nothing(agents: Start, configure: Configure) -> None:
    agent = agents(configure())
    assert isinstance(agent.engine, SimulatorEngine)
    agent.engine.emit(replace(event(0), operation="execute", timestamp_ns="odd"))  # type: ignore[arg-type] # on purpose
    agent.engine.emit(event(0))
    until(lambda: len(agent.alerts.recent()) == 1)
    assert agent.counters()["event_errors"] == 1
    assert agent.healthy


def test_a_full_event_buffer_loses_counted_events_only(agents: Start, configure: Configure) -> None:
    kernel = SimulatedKernel(buffer_limit=0)
    agent = agents(configure(), None, kernel)
    assert isinstance(agent.engine, SimulatorEngine)
    agent.engine.emit(event(0))
    assert agent.counters()["events_lost"] == 1


def test_a_caller_inside_a_workload_is_not_listened_to(agents: Start, configure: Configure) -> None:
    agent = agents(configure())
    pidfd = os.pidfd_open(os.getpid())
    try:
        peer = replace(PEER, pid=os.getpid(), pidfd=pidfd)
        assert agent.check_peer(peer) is None
        kernel_of(agent).armed_pids.add(os.getpid())
        reason = agent.check_peer(peer)
        assert reason is not None
        assert "inside a registered workload" in reason
    finally:
        os.close(pidfd)


def test_a_caller_of_whom_nothing_can_be_told_is_not_listened_to(agents: Start, configure: Configure) -> None:
    def unreadable() -> None:
        message = "no such map"
        raise EngineError(message)

    agent = agents(configure(), {"is_armed": unreadable})
    assert agent.check_peer(PEER) is not None


def test_logs_carry_nothing_of_a_workload(
    fake: FakeMachine, agents: Start, configure: Configure, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    agent = agents(configure())
    container = fake.container(annotations=LABELS)
    config = json.loads((container.bundle / "config.json").read_text())
    config["process"] = {"args": ["vault", "--token=hunter2"], "env": ["PASSWORD=hunter2"]}
    (container.bundle / "config.json").write_text(json.dumps(config))
    assert create(agent, container).accepted
    assert not agent.handle(
        Stage.CREATE_RUNTIME, container.state(id="other", annotations={"k": "hunter2"}), PEER
    ).accepted
    assert caplog.text
    assert "hunter2" not in caplog.text


def test_containers_come_and_go_without_a_trace(
    fake: FakeMachine, agents: Start, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_module, "REAP_SECONDS", 3600.0)
    configuration = configure()
    agent = agents(configuration)
    before = None
    for number in range(30):
        container = fake.container(f"c{number}", 100 + number, LABELS)
        held = descriptors()
        assert create(agent, container).accepted
        fake.end(container)
        assert poststop(agent, container).accepted
        assert descriptors() == held
        before = before or len(agent._busy)  # noqa: SLF001 - a leak shows nowhere else
    assert before == len(agent._busy) == 0  # noqa: SLF001
    assert len(agent.registry) == 0
    assert kernel_of(agent).workloads == {}
    assert records(configuration) == []
