# SPDX-License-Identifier: Apache-2.0
"""A host whose containerd starts containers from a base specification with the hooks, as ``hauberk install`` leaves it.

The machine is nobody's measured guest: pause containers, which the base specification is not for, run unregistered, and
so does whatever else starts without the hooks. What has them is held from its first instruction on.
"""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.vm.containers import engines, sealed
from tests.vm.containers.containerd import Containerd
from tests.vm.containers.cri import Cri, CriError
from tests.vm.containers.engines import APPLICATION, ATTACK, FREE, HELD, STAY
from tests.vm.containers.sealed import NOTHING, Agent

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

BASE = Path("/run/hauberk-test")
SETTINGS = Path("/etc/hauberk/agent.yaml")
RUNTIMES = ("runc", "crun")
LABEL = {"io.hauberk.label.app": "secrets"}


class Host(NamedTuple):
    """The host: its agent and its containerd."""

    agent: Agent
    cri: Cri


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """Install everything, start the agent, start containerd."""
    sealed.prepare(BASE)
    engines.write_images(BASE)
    containerd = Containerd(BASE / "c", Path("/etc/containerd/config.toml"), {name: name for name in RUNTIMES})
    containerd.configure()
    done = sealed.hauberk("install", "containerd")
    assert done.returncode == 0, done
    agent = Agent(sealed.configure(BASE, BASE / "agent.yaml", mode="host"), BASE / "agent.log")
    agent.start()
    with containerd:
        for name in ("application", "pause"):
            containerd.ctr("images", "import", BASE / f"{name}.tar").check()
        yield Host(agent, containerd.cri)
    assert agent.end(signal.SIGTERM) == 0


@pytest.fixture
def cri(host: Host) -> Iterator[Cri]:
    """Give the connection to containerd; no pod is left of a test."""
    yield host.cri
    host.cri.remove_pods()


def printed(cri: Cri, handler: str, command: Sequence[str], annotations: dict[str, str]) -> list[str]:
    """Run a container in a pod of its own to its end; give what it printed."""
    pod = cri.pod(f"brief-{handler}", handler)
    container = cri.run(pod, "brief", APPLICATION, command, annotations=annotations)
    sealed.until(lambda: cri.exited(container), "the container's end")
    lines = cri.printed(pod, "brief")
    cri.remove_pod(pod)
    return lines


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_first_program_is_held(cri: Cri, runtime: str) -> None:
    assert printed(cri, runtime, ATTACK, LABEL) == HELD


def test_without_the_secrets_policy_the_same_program_is_not_held(cri: Cri) -> None:
    assert printed(cri, "runc", ATTACK, {"io.hauberk.label.app": "listing"}) == [*FREE[:5], "13", "0"]


def test_what_runs_inside_is_held_and_the_agents_end_changes_nothing(host: Host, cri: Cri) -> None:
    pod = cri.pod("stays", "crun")
    container = cri.run(pod, "stays", APPLICATION, STAY, annotations=LABEL)
    assert [entry["container_id"] for entry in sealed.asked("workloads")] == [container]  # not the pod's own
    assert cri.inside(container, *ATTACK).check().output.split() == HELD
    host.agent.end()
    late = cri.create(pod, "late", APPLICATION, STAY, annotations=LABEL)
    with pytest.raises(CriError, match="StartContainer"):
        cri.start(late)
    assert cri.inside(container, *ATTACK).check().output.split() == HELD
    host.agent.start()
    cri.remove_pod(pod)
    sealed.until(lambda: sealed.left() == NOTHING, "nothing to be left")


def test_a_container_that_no_policy_covers_is_not_created(cri: Cri) -> None:
    with pytest.raises(CriError, match="no policy of bundle test covers container"):
        printed(cri, "runc", STAY, {})


def opened() -> tuple[int, str]:
    """Start the hook as a runtime would that was told to fail open; give its exit status and its line."""
    command = [str(sealed.HOOK), "--fail-open", "createRuntime"]
    done = subprocess.run(command, input='{"id":"web"}', capture_output=True, text=True, check=False, env={})
    return done.returncode, done.stderr


def test_failing_open_goes_by_the_machines_settings_and_the_kernels_mark(host: Host) -> None:
    assert sealed.hauberk("install", "podman", "--fail-open", "--replace").returncode == 0
    SETTINGS.parent.mkdir(mode=0o700, exist_ok=True)
    SETTINGS.write_text("mode: host\n")
    SETTINGS.chmod(0o600)
    assert opened()[0] == 1  # the agent is there, and refuses
    host.agent.end()
    assert (sealed.PINS / "host").is_dir()
    status, line = opened()
    assert (status, "container web STARTS UNPROTECTED" in line) == (0, True), line
    SETTINGS.write_text("mode: sealed\n")
    status, line = opened()
    assert (status, "is not exactly 'mode: host'" in line) == (1, True), line
    host.agent.start()
    assert opened()[0] == 1
