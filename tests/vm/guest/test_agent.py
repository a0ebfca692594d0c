# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: T201 - the figures belong to the result
"""The real agent with real runtimes in a sealed guest: what it accepts and refuses, and what its own death leaves.

Each refusal is asked of the kernel from inside the container, each freeing of the kernel's own maps. One agent serves
the whole file; a test that ends it starts it again.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.vm.containers import faulty, sealed
from tests.vm.containers.bundle import Volume
from tests.vm.containers.runtime import Runtime
from tests.vm.containers.sealed import FORBIDDEN, HOOK, NOTHING, Agent, Containers, Left, Parked

if TYPE_CHECKING:
    from collections.abc import Iterator

BASE = Path("/run/hauberk-test")
RUNTIMES = ("runc", "crun")
AIM_KIB = 64 * 1024
"""Resident memory the agent keeps below, idle and with 100 workloads."""
AT_ONCE = 100
REFUSALS = 8000
# One start of an agent takes its time under emulation: every step is struck by the 200 of the long run.
QUICK_STEPS = ("after-record", "between-slot-and-cgroup", "after-answer")
KILLS = 200
_numbers = itertools.count(1)


class Guest(NamedTuple):
    """The sealed guest: its agent and its containers."""

    agent: Agent
    runc: Containers
    crun: Containers

    def of(self, runtime: str) -> Containers:
        """Give the containers of one runtime."""
        return self.runc if runtime == "runc" else self.crun


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    """Seal the guest."""
    sealed.prepare(BASE)
    agent = Agent(sealed.configure(BASE, BASE / "agent.yaml"), BASE / "agent.log")
    agent.start()
    made = (Containers(BASE, Runtime(BASE / "states" / name, name)) for name in RUNTIMES)
    yield Guest(agent, *made)
    assert agent.end(signal.SIGTERM) == 0


@pytest.fixture(scope="module")
def idle(guest: Guest) -> int:
    """Give the agent's resident memory in KiB before it has had a container, but after a question to it."""
    sealed.asked("status")
    return guest.agent.resident()


@pytest.fixture(scope="module")
def held(guest: Guest, idle: int) -> Iterator[str]:
    """Give a running container of the policy ``secrets``, with the agent's socket and python in reach."""
    assert idle
    guest.runc.create(
        "held", volumes=(Volume(Path("/usr"), "/usr"), Volume(Path("/run/hauberk"), "/run/hauberk"))
    ).check()
    guest.runc.runtime.start("held").check()
    yield "held"
    guest.runc.remove("held")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_policies_are_chosen_by_label(guest: Guest, runtime: str, idle: int) -> None:
    assert idle
    containers = guest.of(runtime)
    for label in ("secrets", "listing"):
        containers.create(f"{runtime}-{label}", label).check()
        containers.runtime.start(f"{runtime}-{label}").check()
    containers.assert_held(f"{runtime}-secrets")
    assert containers.inside(f"{runtime}-secrets", "/bin/ls", "/etc").status == 0
    refused = containers.inside(f"{runtime}-listing", "/bin/ls", "/etc")
    assert refused.status != 0
    assert "passwd" not in refused.output
    assert containers.inside(f"{runtime}-listing", "/bin/sh", "-c", "echo in").output == "in\n"
    policies = {entry["container_id"]: entry["policies"] for entry in sealed.asked("workloads")}
    assert policies == {f"{runtime}-secrets": ["secrets"], f"{runtime}-listing": ["listing"]}
    for label in ("secrets", "listing"):
        containers.remove(f"{runtime}-{label}")
    sealed.until(lambda: sealed.left() == NOTHING, "nothing to be left")


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("label", [None, "unheard-of"])
def test_a_container_that_no_policy_covers_is_refused(guest: Guest, runtime: str, label: str | None) -> None:
    containers = guest.of(runtime)
    before = sealed.left()
    refused = containers.create("uncovered", label, arguments=("/bin/cat", "/etc/passwd"))
    state = containers.runtime.state("uncovered")
    containers.remove("uncovered")
    assert refused.status != 0
    assert state is None or state["status"] == "stopped"
    if runtime == "runc":  # crun drops what a hook says
        assert "container uncovered refused: " in refused.errors
    sealed.until(lambda: sealed.left() == before, "nothing more to be left")


def test_status_workloads_and_alerts_tell_what_is_so(guest: Guest, held: str) -> None:
    status = sealed.asked("status")
    assert status["mode"] == "sealed"
    assert status["bundle_name"] == "test"
    assert int(status["bundle_version"]) == 1
    assert status["bundle_default"] == "deny"
    assert status["signed_by"] == "owner"
    assert sorted(status["policies"]) == ["listing", "secrets"]
    assert int(status["workloads"]) == 1
    assert [(engine["name"], engine["available"]) for engine in status["engines"]] == [
        ("bpf_lsm", True),
        ("nftables", True),
    ]
    (workload,) = sealed.asked("workloads")
    pid = int((guest.runc.bundles[held].directory / "pid").read_text("utf-8"))
    assert workload["container_id"] == held
    assert workload["state"] == "enforced"
    assert int(workload["pid"]) == pid
    assert workload["policies"] == ["secrets"]
    assert workload["cgroup"] == Path(f"/proc/{pid}/cgroup").read_text("utf-8").strip().removeprefix("0::")
    assert int(workload["mount_namespace"]) == Path(f"/proc/{pid}/ns/mnt").stat().st_ino
    assert len(workload["table_digest"]) == 64


class Told(NamedTuple):
    """What an alert has to say of one attempt: its operation, resource, action, policy, and the line of its rule."""

    arguments: tuple[str, ...]
    operation: str
    resource: str
    action: str
    line: str


TOLD = {
    "execute": Told(("/bin/sh", "-c", "true"), "execute", "/usr/bin/dash", "Block", "/usr/bin/dash"),
    "map": Told(
        ("/lib64/ld-linux-x86-64.so.2", "/bin/dash", "-c", "true"), "map", "/usr/bin/dash", "Block", "/usr/bin/dash"
    ),
    "read": Told(("/bin/cat", FORBIDDEN), "read", FORBIDDEN, "Block", "dir: /srv/secrets/app/"),
    "write": Told(("/bin/cp", "/etc/passwd", FORBIDDEN), "write", FORBIDDEN, "Block", "dir: /srv/secrets/app/"),
    "rename": Told(
        ("/bin/mv", "/srv/secrets/app", "/srv/secrets/other"),
        "write",
        "/srv/secrets/app",
        "Block",
        "dir: /srv/secrets/app/",
    ),
    "audit": Told(("/bin/cat", "/etc/hosts"), "read", "/etc/hosts", "Audit", "path: /etc/hosts"),
}


@pytest.mark.parametrize("kind", TOLD)
def test_an_alert_names_policy_rule_file_and_line(guest: Guest, held: str, kind: str) -> None:
    told = TOLD[kind]
    done = guest.runc.inside(held, *told.arguments)
    assert (done.status == 0) == (told.action == "Audit"), done

    def found() -> list[dict[str, Any]]:
        return [
            alert
            for alert in sealed.alerts()
            if f"operation={told.operation} " in alert["Data"] and alert["Resource"] == told.resource
        ]

    sealed.until(lambda: bool(found()), f"an alert for {kind}")
    alert = found()[-1]
    assert (alert["PolicyName"], alert["Action"], alert["ContainerID"]) == ("secrets", told.action, held)
    place = re.search(r"^spec\.(process|file)\..* \(secrets\.yaml:(\d+)\)$", alert["Rule"])
    assert place is not None, alert["Rule"]
    line = (BASE / "policies" / "secrets.yaml").read_text("utf-8").splitlines()[int(place[2]) - 1]
    assert told.line in line, (alert["Rule"], line)


@pytest.mark.parametrize("attack", ["userns-bind", "chroot"])
def test_an_alert_of_hauberks_own_says_so(guest: Guest, held: str, attack: str) -> None:
    done = guest.runc.inside(held, "/opt/attacks/attacks", attack, FORBIDDEN, "work=/srv/secrets/public")
    assert done.status == 0, done
    operation = {"userns-bind": "namespace", "chroot": "chroot"}[attack]

    def found() -> list[dict[str, Any]]:
        return [alert for alert in sealed.alerts() if f"operation={operation} " in alert["Data"]]

    sealed.until(lambda: bool(found()), f"an alert for {attack}")
    assert {(alert["PolicyName"], alert["ContainerID"]) for alert in found()} == {("Hauberk", held)}


def test_a_workload_cannot_register_a_container(guest: Guest, held: str) -> None:
    with Parked("smuggled", BASE) as parked:
        before = sealed.left()
        done = guest.runc.inside(held, str(HOOK), "createRuntime", data=parked.state())
        assert done.status == 1, done
        assert "container smuggled refused: no answer from the agent (" in done.errors
        assert sealed.left() == before
        assert parked.register() == (True, "enforced")  # the very same announcement from outside
        assert parked.stop()[0]
    sealed.until(lambda: any("operation=connect " in alert["Data"] for alert in sealed.alerts()), "an alert")


def test_a_pid_that_is_no_parked_init_of_its_own_is_refused(guest: Guest, held: str) -> None:
    running = int((guest.runc.bundles[held].directory / "pid").read_text("utf-8"))
    with subprocess.Popen(["/bin/true"]) as ended:
        ended.wait()
    with Parked("first", BASE) as first, Parked("thief", BASE) as thief:
        assert first.register() == (True, "enforced")
        before = sealed.left()
        for pid, reason in (
            (running, "expected a parked init"),
            (1, "mount namespace"),
            (os.getpid(), "mount namespace"),
            (guest.agent.pid, "mount namespace"),
            (first.process.pid, "first"),
            (0, "no pid"),
            (ended.pid, "does not exist"),
        ):
            accepted, message = sealed.ask(1, thief.state(pid=pid))
            assert not accepted, pid
            assert reason in message, (pid, message)
            assert sealed.left() == before
        assert first.stop()[0]
    guest.runc.assert_held(held)


def test_a_poststop_for_a_living_container_frees_nothing(guest: Guest, held: str) -> None:
    before = sealed.left()
    state = {"ociVersion": "1.0.2", "id": held, "status": "stopped", "pid": 0, "bundle": "/nowhere"}
    accepted, message = sealed.ask(3, json.dumps(state).encode())
    assert not accepted
    assert "alive" in message
    assert sealed.left() == before
    guest.runc.assert_held(held)
    assert [entry["state"] for entry in sealed.asked("workloads")] == ["enforced"]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_nothing_is_left_of_a_container_that_was_killed_and_deleted(guest: Guest, held: str, runtime: str) -> None:
    containers = guest.of(runtime)
    before = sealed.left()
    containers.create("killed").check()
    containers.runtime.start("killed").check()
    assert sealed.left() == Left(before.cgroups + 1, before.slots + 1, before.records + 1)
    containers.runtime.kill("killed").check()
    containers.runtime.wait_stopped("killed")
    containers.runtime.delete("killed", force=False).check()
    containers.bundles.pop("killed").remove()
    sealed.until(lambda: sealed.left() == before, "nothing more to be left")
    assert [entry["container_id"] for entry in sealed.asked("workloads")] == [held]


def test_a_stalled_agent_starts_no_container(guest: Guest, held: str) -> None:
    before = sealed.left()
    impatient = Containers(BASE, guest.runc.runtime, (str(HOOK), "--timeout", "3"))
    guest.agent.send(signal.SIGSTOP)
    try:
        refused = impatient.create("stalled")
        assert guest.runc.runtime.state("stalled") is None
        guest.runc.assert_held(held)
    finally:
        guest.agent.send(signal.SIGCONT)
    assert refused.status != 0
    assert "the agent did not answer within 3 s" in refused.errors
    impatient.remove("stalled")
    sealed.until(lambda: sealed.left() == before, "nothing more to be left")


def test_a_full_event_buffer_loses_counted_alerts_and_nothing_else(guest: Guest, held: str) -> None:
    before = sealed.asked("status")["counters"]
    questions = f"open-read\t{FORBIDDEN}\n".encode() * REFUSALS
    guest.agent.send(signal.SIGSTOP)
    try:
        done = guest.runc.inside(held, "/opt/sources/prober-a", data=questions)
        answers = done.output.split()
        guest.runc.assert_held(held)
    finally:
        guest.agent.send(signal.SIGCONT)
    assert len(answers) == REFUSALS, done.errors
    assert set(answers) == {"13"}

    def told() -> tuple[int, int]:
        after = sealed.asked("status")["counters"]
        lost = int(after["events_lost"]) - int(before["events_lost"])
        return lost, int(after["alerts"]) - int(before["alerts"]) + lost

    sealed.until(lambda: told()[1] >= REFUSALS, "every refusal to be told or counted as lost")
    lost, _ = told()
    print(f"{REFUSALS} refusals, {lost} alerts lost and counted")
    assert 0 < lost < REFUSALS + 100
    guest.runc.assert_held(held)


def come_and_go(guest: Guest, faked: int, real: int) -> None:
    """Let containers come and go, ten at a time; the agent must be as it was."""

    def some(count: int) -> None:
        while count > 0:
            batch = [Parked(f"faked-{next(_numbers)}", BASE) for _ in range(min(10, count))]
            count -= len(batch)
            for parked in batch:
                assert parked.register() == (True, "enforced")
            for parked in batch:
                accepted, message = parked.stop()
                assert accepted, message

    before = sealed.left()
    some(20)  # what is made once is not a leak
    sealed.asked("status")
    memory, descriptors = guest.agent.resident(), guest.agent.descriptors()
    some(faked)
    for _ in range(real):
        name = f"real-{next(_numbers)}"
        guest.runc.create(name).check()
        guest.runc.runtime.start(name).check()
        guest.runc.remove(name)
    sealed.until(lambda: sealed.left() == before, "nothing more to be left")
    assert int(sealed.asked("status")["workloads"]) == before.slots
    sealed.until(lambda: guest.agent.descriptors() <= descriptors, "no descriptor more than before")
    grown = guest.agent.resident() - memory
    print(
        f"{faked} faked, {real} real containers: VmRSS {memory} KiB, {grown} KiB more after; {descriptors} descriptors"
    )
    assert grown < 2048


def test_containers_come_and_go_without_a_leak(guest: Guest, held: str) -> None:
    assert held
    come_and_go(guest, 60, 3)


def test_the_agent_stays_small(guest: Guest, idle: int, held: str) -> None:
    assert held
    crowd = [Parked(f"crowd-{number}", BASE) for number in range(AT_ONCE)]
    for parked in crowd:
        assert parked.register() == (True, "enforced")
    assert int(sealed.asked("status")["workloads"]) == AT_ONCE + 1
    assert sealed.left().cgroups == AT_ONCE + 1
    crowded = guest.agent.resident()
    print(f"VmRSS idle {idle} KiB, with {AT_ONCE} workloads {crowded} KiB")
    for parked in crowd:
        assert parked.stop()[0]
    assert idle < AIM_KIB
    assert crowded < AIM_KIB


def kill_at(guest: Guest, step: str) -> str:
    """Let the agent be killed at a step, with a real container; tell whether it was refused or is protected."""
    containers, agent = guest.runc, guest.agent
    name = f"fault-{next(_numbers)}"
    agent.end()
    agent.start(step)
    created = containers.create(name)
    outcome = "refused"
    if created.status == 0:
        containers.runtime.start(name).check()
        containers.assert_held(name)
        outcome = "protected"
    else:
        state = containers.runtime.state(name)
        assert state is None or state["status"] == "stopped", (step, state)
    if step in faulty.RELEASE:
        assert outcome == "protected"
        containers.runtime.kill(name).check()
        containers.runtime.wait_stopped(name)
    containers.remove(name)
    assert agent.process is not None
    assert agent.process.wait(sealed.WAIT) == -signal.SIGKILL, step
    return outcome


def recover(guest: Guest) -> None:
    """Start the agent again; it takes up and lets go of what the kill left."""
    guest.agent.end()
    guest.agent.start()
    sealed.until(lambda: sealed.left() == NOTHING, "nothing to be left")


@pytest.fixture
def alone(guest: Guest) -> Iterator[Guest]:
    """Give the guest without any container; the agent runs well again afterwards."""
    assert sealed.left() == NOTHING
    yield guest
    recover(guest)
    assert int(sealed.asked("status")["workloads"]) == 0


def test_the_held_container_is_let_go(guest: Guest, held: str, request: pytest.FixtureRequest) -> None:
    assert request
    guest.runc.runtime.delete(held)
    sealed.until(lambda: sealed.left() == NOTHING, "nothing to be left")


def test_a_sealed_machine_never_fails_open(alone: Guest) -> None:
    """Neither by settings that say "host", which only the kernel contradicts, nor through a runtime."""
    assert sealed.hauberk("install", "podman", "--fail-open", "--replace").returncode == 0
    settings = Path("/etc/hauberk/agent.yaml")
    settings.parent.mkdir(mode=0o700, exist_ok=True)
    settings.write_text("mode: host\n")
    settings.chmod(0o600)
    alone.agent.end()
    command = [str(HOOK), "--fail-open", "createRuntime"]
    done = subprocess.run(command, input='{"id":"web"}', capture_output=True, text=True, check=False, env={})
    assert (done.returncode, "the kernel is sealed" in done.stderr) == (1, True), done.stderr
    bundle = alone.runc.write("opened")
    configuration = json.loads((bundle.directory / "config.json").read_text())
    configuration["hooks"]["createRuntime"][0]["args"].insert(1, "--fail-open")
    (bundle.directory / "config.json").write_text(json.dumps(configuration))
    refused = alone.runc.runtime.create("opened", bundle)
    assert refused.status != 0
    assert "--fail-open has no effect" in refused.errors + refused.output
    assert "cannot be started" in refused.errors + refused.output
    alone.runc.bundles.pop("opened").remove()


@pytest.mark.parametrize("step", [*QUICK_STEPS, faulty.RELEASE[1]])
def test_killed_at_a_step_the_container_is_refused_or_protected(alone: Guest, step: str) -> None:
    assert kill_at(alone, step) in {"refused", "protected"}


@pytest.mark.long
def test_killed_200_times_no_container_is_ever_open(alone: Guest) -> None:
    steps = itertools.cycle((*faulty.REGISTRATION, *faulty.RELEASE))
    outcomes = []
    for step in itertools.islice(steps, KILLS):
        outcomes.append(kill_at(alone, step))
        recover(alone)
    print({outcome: outcomes.count(outcome) for outcome in set(outcomes)})
    assert set(outcomes) == {"refused", "protected"}


@pytest.mark.long
def test_500_containers_come_and_go_without_a_leak(alone: Guest) -> None:
    come_and_go(alone, 480, 20)
