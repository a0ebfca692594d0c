# SPDX-License-Identifier: Apache-2.0
"""containerd with what ``hauberk install containerd`` puts, both ways: as kubelet would ask it, and through ``ctr``.

``base_runtime_spec`` is for pods' containers alone: the pause container and what ``ctr`` starts do not get it. The
wrapper runtime is for whatever containerd has it run.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from guest_agent.api.hook_socket import Stage
from tests.host.runtimes.conftest import APPLICATION, Listening, Watched, silent_agent
from tests.vm.containers.containerd import Containerd
from tests.vm.containers.cri import CriError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.host.runtimes.machine import Machine
    from tests.vm.containers.cri import Pod

STARTS = 20
WEB = {"io.hauberk.label.app": "web"}
WAYS = {"base": (), "wrapper": ("--wrapper",)}


@pytest.fixture(scope="module", params=list(WAYS))
def way(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def running(host: Machine, base: Path, images: Path, way: str) -> Iterator[Containerd]:
    made = Containerd(
        base / f"{host.runtime}-{way}", host.containerd_configuration, {"runc": host.program}, host.prefix
    )
    made.configure()
    host.hauberk("install", "containerd", *WAYS[way]).check()
    with made:
        for name in ("application.tar", "pause.tar"):
            made.ctr("images", "import", images / name).check()
        yield made
    host.hauberk("uninstall", "containerd").check()


@pytest.fixture
def containerd(running: Containerd, base: Path) -> Iterator[Containerd]:
    yield running
    running.cri.remove_pods()
    (base / "mark" / "here").unlink(missing_ok=True)


@pytest.fixture
def pod(containerd: Containerd, agent: Watched) -> Pod:
    assert agent.announced() == []
    return containerd.cri.pod("pod", annotations=WEB)


def mark(containerd: Containerd, pod: Pod, base: Path, name: str = "marking") -> bool:
    """Run a container whose first act is to leave a mark; tell whether it was started. A mark it leaves is checked."""
    command = ["/bin/touch", "/mark/here"]
    container = containerd.cri.create(pod, name, APPLICATION, command, mounts={"/mark": base / "mark"})
    try:
        containerd.cri.start(container)
    except CriError:
        assert not (base / "mark" / "here").exists()
        return False
    deadline = time.monotonic() + 60
    while not containerd.cri.exited(container):
        assert time.monotonic() < deadline, f"container {container} does not end"
        time.sleep(0.02)
    assert (base / "mark" / "here").exists()
    return True


def test_a_container_of_a_pod_runs_once_the_agent_accepted_it(
    containerd: Containerd, pod: Pod, base: Path, agent: Watched, way: str
) -> None:
    seen: list[bool] = []
    agent.before = lambda stage, _: seen.append((base / "mark" / "here").exists() and stage is Stage.CREATE_RUNTIME)
    assert mark(containerd, pod, base)
    (container,) = pod.containers
    assert agent.announced() == ([pod.identifier, container] if way == "wrapper" else [container])
    assert not any(seen)
    containerd.cri.remove_pod(pod)
    assert agent.stages(container) == [Stage.CREATE_RUNTIME, Stage.POSTSTOP]
    assert all(answer.accepted for _, _, answer in agent.asked)
    agent.settle()


def test_a_container_that_no_policy_covers_never_runs(
    containerd: Containerd, base: Path, agent: Watched, way: str
) -> None:
    if way == "wrapper":  # the pod's own container is one like any other
        with pytest.raises(CriError, match="RunPodSandbox"):
            containerd.cri.pod("uncovered")
        assert [answer.accepted for stage, _, answer in agent.asked if stage is Stage.CREATE_RUNTIME] == [False]
        agent.asked.clear()
    pod = containerd.cri.pod("partly", annotations=WEB if way == "wrapper" else None)
    agent.asked.clear()
    container = containerd.cri.create(
        pod, "uncovered", APPLICATION, ["/bin/touch", "/mark/here"], mounts={"/mark": base / "mark"},
        annotations={"io.hauberk.label.app": "unheard-of"},
    )  # fmt: skip
    with pytest.raises(CriError, match="StartContainer"):
        containerd.cri.start(container)
    assert not (base / "mark" / "here").exists()
    assert [answer.accepted for stage, _, answer in agent.asked if stage is Stage.CREATE_RUNTIME] == [False]


def test_without_an_agent_that_answers_nothing_runs(
    containerd: Containerd, base: Path, listening: Listening, way: str
) -> None:
    with listening():
        pod = containerd.cri.pod("pod", annotations=WEB)
    assert not mark(containerd, pod, base)
    if way == "wrapper":
        with pytest.raises(CriError, match="RunPodSandbox"):
            containerd.cri.pod("later", annotations=WEB)
    else:  # the hook is the same, and its patience takes its time
        with silent_agent(base / "agent" / "hook.sock"):
            assert not mark(containerd, pod, base, "hanging")


def test_what_is_run_inside_is_in_the_same_container(containerd: Containerd, pod: Pod, agent: Watched) -> None:
    container = containerd.cri.run(pod, "main", APPLICATION, ["/bin/sleep", "1000000"])
    assert agent.policies(container) == ("web",)
    assert containerd.cri.inside(container, "/bin/echo", "inside").output == "inside\n"
    done = containerd.ctr("tasks", "exec", "--exec-id", "one", container, "/bin/echo", "inside too")
    assert done.output == "inside too\n", done
    assert agent.stages(container) == [Stage.CREATE_RUNTIME]
    containerd.cri.remove(pod, container)
    assert agent.stages(container)[-1] is Stage.POSTSTOP


def test_one_container_after_another(containerd: Containerd, pod: Pod, agent: Watched) -> None:
    before = len(agent.announced())
    for number in range(STARTS):
        container = containerd.cri.run(pod, f"number-{number}", APPLICATION, ["/bin/true"])
        containerd.cri.remove(pod, container)
    assert len(set(agent.announced()[before:])) == STARTS
    containerd.cri.remove_pod(pod)
    assert all(answer.accepted for _, _, answer in agent.asked)
    agent.settle()


def test_the_pods_and_the_containers_names_arrive(containerd: Containerd, agent: Watched) -> None:
    """Labels do not, but annotations below io.hauberk, if containerd is told to pass them on."""
    labels, annotations = {"app": "no such"}, {"io.hauberk.label.app": "cart"}
    pod = containerd.cri.pod("pod", namespace="shop", labels=labels, annotations=annotations)
    named = containerd.cri.run(pod, "sidecar", APPLICATION, ["/bin/sleep", "1000000"])
    assert agent.policies(named) == ("shop/cart", "shop/sidecar")  # by its label, and by its own name


def test_what_ctr_starts_needs_the_wrapper(containerd: Containerd, host: Machine, agent: Watched, way: str) -> None:
    options = ["--rm", "--net-host", "--annotation", "io.hauberk.label.app=web"]
    program = host.program if way == "base" else "/usr/libexec/hauberk/hauberk-runtime-runc"
    done = containerd.ctr("run", *options, "--runc-binary", program, APPLICATION, "plain", "/bin/echo", "it ran")
    assert done.output == "it ran\n", done
    assert agent.stages("plain") == ([] if way == "base" else [Stage.CREATE_RUNTIME, Stage.POSTSTOP])


def test_check_and_uninstall(containerd: Containerd, host: Machine, base: Path, agent: Watched, way: str) -> None:
    checked = host.hauberk("install", "containerd", "--check")
    assert checked.status == 0, checked
    host.hauberk("uninstall", "containerd").check()
    checked = host.hauberk("install", "containerd", "--check")
    assert checked.status == 1, checked
    containerd.restart()
    assert mark(containerd, containerd.cri.pod("free"), base)
    assert agent.announced() == []
    host.hauberk("install", "containerd", *WAYS[way]).check()
    containerd.restart()
