# SPDX-License-Identifier: Apache-2.0
"""A sealed guest whose containers come from podman and from containerd, as ``hauberk install`` leaves both.

Everything is where an operator has it: the engines' own configuration, the agent's default lists. What containerd
starts is registered by the wrapper runtime, because in a sealed guest the pause container must be registered too.
"""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.vm.containers import engines, sealed
from tests.vm.containers.containerd import Containerd
from tests.vm.containers.cri import CriError, Pod
from tests.vm.containers.engines import APPLICATION, ATTACK, FREE, HELD, STAY
from tests.vm.containers.podman import Podman
from tests.vm.containers.sealed import NOTHING, Agent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.vm.containers.runtime import Completed

BASE = Path("/run/hauberk-test")
RUNTIMES = ("runc", "crun")
LABEL = {"io.hauberk.label.app": "secrets"}


@dataclass
class Guest:
    """The sealed guest, its engines, and the containers that run in it."""

    agent: Agent
    containerd: Containerd
    pods: dict[str, Pod] = field(default_factory=dict)

    def podman(self, runtime: str) -> Podman:
        """Give podman with one OCI runtime; the storage is the same."""
        return Podman(BASE / "podman", runtime)


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    """Show that the attack works, install, seal, and start what is attacked afterwards."""
    sealed.prepare(BASE)
    engines.write_images(BASE)
    podman = Podman(BASE / "podman")
    podman("load", "--input", BASE / "application.tar").check()
    assert podman.run(APPLICATION, *ATTACK, options=["--rm"]).check().output.split() == FREE
    containerd = Containerd(BASE / "c", Path("/etc/containerd/config.toml"), {name: name for name in RUNTIMES})
    containerd.configure()
    for arguments in (("podman",), ("containerd", "--wrapper")):
        done = sealed.hauberk("install", *arguments)
        assert done.returncode == 0, done
    agent = Agent(sealed.configure(BASE, BASE / "agent.yaml", managers=None, helpers=None), BASE / "agent.log")
    agent.start()
    with containerd:
        for name in ("application", "pause"):
            containerd.ctr("images", "import", BASE / f"{name}.tar").check()
        made = Guest(agent, containerd)
        for runtime in RUNTIMES:
            made.podman(runtime).run(APPLICATION, *STAY, label="secrets", options=["-d", f"--name={runtime}"]).check()
            made.pods[runtime] = containerd.cri.pod(runtime, runtime, annotations=LABEL)
            containerd.cri.run(made.pods[runtime], "stays", APPLICATION, STAY)
        yield made
    assert agent.end(signal.SIGTERM) == 0


def inside(guest: Guest, engine: str, runtime: str, *command: str) -> Completed:
    """Run a program in the container that stays."""
    match engine:
        case "podman":
            return guest.podman(runtime)("exec", runtime, *command)
        case "ctr":
            identifier = f"{runtime}-{abs(hash(command))}"
            return guest.containerd.ctr(
                "tasks", "exec", "--exec-id", identifier, guest.pods[runtime].containers[0], *command
            )
        case _:
            return guest.containerd.cri.inside(guest.pods[runtime].containers[0], *command)


def assert_held(guest: Guest, engine: str, runtime: str) -> None:
    """What is run inside a container later is held to the container's policy."""
    assert inside(guest, engine, runtime, *ATTACK).check().output.split() == HELD


# Each engine and each runtime; every pair of them is for the long run.
UNDER_PODMAN = [pytest.param("runc", marks=pytest.mark.long), "crun"]
UNDER_CONTAINERD = ["runc", pytest.param("crun", marks=pytest.mark.long)]


@pytest.mark.parametrize("runtime", UNDER_PODMAN)
def test_under_podman_the_first_program_is_held(guest: Guest, runtime: str) -> None:
    done = guest.podman(runtime).run(APPLICATION, *ATTACK, label="secrets", options=["--rm"])
    assert done.check().output.split() == HELD


@pytest.mark.parametrize("runtime", UNDER_CONTAINERD)
def test_under_containerd_the_first_program_is_held(guest: Guest, runtime: str) -> None:
    cri, pod = guest.containerd.cri, guest.pods[runtime]
    container = cri.run(pod, "attack", APPLICATION, ATTACK)
    sealed.until(lambda: cri.exited(container), "the attack's end")
    assert cri.printed(pod, "attack") == HELD
    cri.remove(pod, container)


@pytest.mark.parametrize(
    ("engine", "runtime"),
    [
        ("podman", "runc"),
        pytest.param("podman", "crun", marks=pytest.mark.long),
        pytest.param("cri", "runc", marks=pytest.mark.long),
        ("cri", "crun"),
        ("ctr", "runc"),
    ],
)
def test_what_is_run_inside_later_is_held(guest: Guest, engine: str, runtime: str) -> None:
    assert_held(guest, engine, runtime)


def test_without_the_hooks_nothing_executes(guest: Guest) -> None:
    empty = BASE / "no-hooks"
    empty.mkdir()
    before = sealed.left()
    program = ("/bin/cat", "/etc/passwd")
    plain = ("--rm", "--net-host", "--runc-binary", "runc")
    for done in (
        Podman(BASE / "podman", "crun", empty).run(APPLICATION, *program, label="secrets", options=["--rm"]),
        guest.containerd.ctr("run", *plain, APPLICATION, "plain", *program),
    ):
        assert done.status != 0, done
        assert "root" not in done.output, done
        assert "peration not permitted" in done.errors + done.output, done
    assert sealed.left() == before
    told = [alert for alert in sealed.alerts() if "operation=gate" in alert["Data"]]
    refused = {(alert["Resource"], alert["ParentProcessName"]) for alert in told}
    managers = ("/usr/bin/conmon", "/usr/bin/containerd-shim-runc-v2")
    assert refused == {("/usr/bin/cat", name) for name in managers}, json.dumps(told, indent=1)  # and nothing else


def test_a_container_that_no_policy_covers_is_not_created(guest: Guest) -> None:
    done = guest.podman("crun").run(APPLICATION, "/bin/cat", "/etc/passwd", options=["--rm"])
    assert (done.status, done.output) == (126, ""), done
    with pytest.raises(CriError, match="RunPodSandbox"):
        guest.containerd.cri.pod("uncovered", "runc")


def test_a_dead_agent_starts_nothing_and_lets_go_of_nothing(guest: Guest) -> None:
    cri, pod = guest.containerd.cri, guest.pods["runc"]
    guest.agent.end()
    done = guest.podman("crun").run(APPLICATION, "/bin/cat", "/etc/passwd", label="secrets", options=["--rm"])
    assert (done.status, done.output) == (126, ""), done
    container = cri.create(pod, "late", APPLICATION, STAY)
    with pytest.raises(CriError, match="StartContainer"):
        cri.start(container)
    assert_held(guest, "podman", "runc")
    assert_held(guest, "cri", "crun")
    guest.agent.start()
    assert_held(guest, "podman", "crun")
    assert_held(guest, "cri", "runc")
    done = guest.podman("crun").run(APPLICATION, "/bin/cat", "/etc/passwd", label="secrets", options=["--rm"])
    assert "root:" in done.check().output
    cri.remove(pod, container)


def test_nothing_is_left_of_what_is_removed(guest: Guest) -> None:
    listed = {entry["container_id"]: entry["state"] for entry in sealed.asked("workloads")}
    pods = {identifier for pod in guest.pods.values() for identifier in (pod.identifier, *pod.containers)}
    assert pods < set(listed)
    assert len(listed) == len(pods) + len(RUNTIMES)  # podman's
    assert set(listed.values()) == {"enforced"}
    guest.podman("runc").remove_all()
    guest.containerd.cri.remove_pods()
    sealed.until(lambda: sealed.left() == NOTHING, "nothing to be left")
