# SPDX-License-Identifier: Apache-2.0
"""podman with what ``hauberk install podman`` puts: no container runs before the agent accepted it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from guest_agent.api.hook_socket import Stage
from guest_agent.workloads.selection import identify
from tests.host.runtimes.conftest import APPLICATION, Watched, silent_agent
from tests.host.runtimes.machine import machine
from tests.vm.containers.podman import Podman

if TYPE_CHECKING:
    from collections.abc import Iterator

    from guest_agent.workloads.oci_state import OciState
    from tests.host.runtimes.machine import Machine
    from tests.vm.containers.runtime import Completed

STARTS = 20
NOBODY = 65534


@pytest.fixture(scope="module")
def installed(host: Machine, base: Path, images: Path) -> Podman:
    made = Podman(base / f"podman-{host.runtime}", host.program, prefix=host.prefix)
    made("load", "--input", images / "application.tar").check()
    host.hauberk("install", "podman").check()
    return made


@pytest.fixture
def podman(installed: Podman, base: Path) -> Iterator[Podman]:
    yield installed
    installed.remove_all()
    (base / "mark" / "here").unlink(missing_ok=True)


def mark(podman: Podman, base: Path, label: str | None) -> tuple[Completed, bool]:
    """Run a container whose first act is to leave a mark; tell what came of it, and whether there is one."""
    done = podman.run(
        APPLICATION, "/bin/touch", "/mark/here", label=label, options=["--rm", "--volume", f"{base / 'mark'}:/mark"]
    )
    return done, (base / "mark" / "here").exists()


def test_a_container_runs_once_the_agent_accepted_it(podman: Podman, base: Path, agent: Watched) -> None:
    seen: list[tuple[bool, bytes]] = []

    def look(stage: Stage, state: OciState) -> None:
        if stage is Stage.CREATE_RUNTIME:
            seen.append(((base / "mark" / "here").exists(), Path(f"/proc/{state.pid}/cmdline").read_bytes()))

    agent.before = look
    done, marked = mark(podman, base, "web")
    assert (done.status, marked) == (0, True), done
    (container,) = agent.announced()
    assert agent.stages(container) == [Stage.CREATE_RUNTIME, Stage.POSTSTOP]
    assert [answer.accepted for _, _, answer in agent.asked] == [True, True]
    assert len(seen) == 1
    assert not seen[0][0]
    assert b"touch" not in seen[0][1]
    agent.settle()


@pytest.mark.parametrize("label", [None, "unheard-of"])
def test_a_container_that_no_policy_covers_never_runs(
    podman: Podman, base: Path, agent: Watched, label: str | None
) -> None:
    done, marked = mark(podman, base, label)
    assert (done.status, marked) == (126, False), done
    assert [answer.accepted for stage, _, answer in agent.asked if stage is Stage.CREATE_RUNTIME] == [False]
    if podman.runtime.endswith("runc"):  # crun drops what a hook says
        assert "no policy of bundle demo covers container" in done.errors
    agent.settle()


def test_without_an_agent_nothing_runs(podman: Podman, base: Path) -> None:
    done, marked = mark(podman, base, "web")
    assert (done.status, marked) == (126, False), done


def test_an_agent_that_does_not_answer_starts_nothing(podman: Podman, base: Path) -> None:
    with silent_agent(base / "agent" / "hook.sock"):
        done, marked = mark(podman, base, "web")
    assert (done.status, marked) == (126, False), done


def test_what_is_run_inside_is_in_the_same_container(podman: Podman, agent: Watched) -> None:
    container = podman.run(APPLICATION, label="web", options=["--detach"]).check().output.strip()
    assert agent.policies(container) == ("web",)
    assert podman("exec", container, "/bin/echo", "inside").check().output == "inside\n"
    assert agent.stages(container) == [Stage.CREATE_RUNTIME]
    podman("rm", "--force", "--time", "0", container).check()
    assert agent.stages(container)[-1] is Stage.POSTSTOP
    agent.settle()


def test_one_container_after_another(podman: Podman, agent: Watched) -> None:
    for _ in range(STARTS):
        assert podman.run(APPLICATION, "/bin/echo", "ran", label="web", options=["--rm"]).check().output == "ran\n"
    assert len(set(agent.announced())) == STARTS
    assert all(answer.accepted for _, _, answer in agent.asked)
    agent.settle()


def test_the_names_that_arrive(podman: Podman, agent: Watched) -> None:
    """Of podman's own names and labels none is in config.json; annotations are."""
    found: list[dict[str, str]] = []

    def read(stage: Stage, state: OciState) -> None:
        if stage is Stage.CREATE_RUNTIME:
            found.append(json.loads((Path(state.bundle) / "config.json").read_text("utf-8"))["annotations"])

    agent.before = read
    chosen = ("io.hauberk.namespace=shop", "io.hauberk.container-name=sidecar", "io.hauberk.label.tier=front")
    options = ["--detach", "--name", "named", "--label", "app=web", *(f"--annotation={pair}" for pair in chosen)]
    container = podman.run(APPLICATION, options=options).check().output.strip()
    assert agent.policies(container) == ("shop/sidecar",)
    identity = identify(found[0], container)
    assert (identity.namespace, identity.container_name, identity.labels) == ("shop", "sidecar", {"tier": "front"})
    assert "named" not in found[0].values()
    plain = podman.run(APPLICATION, label="web", options=["--detach"]).check().output.strip()
    assert identify(found[1], plain).container_name == plain  # nothing else names it
    podman.remove_all()
    agent.settle()


def test_check_and_uninstall(podman: Podman, host: Machine, base: Path, agent: Watched) -> None:
    checked = host.hauberk("install", "podman", "--check")
    assert checked.status == 0, checked
    host.hauberk("uninstall", "podman").check()
    checked = host.hauberk("install", "podman", "--check")
    assert checked.status == 1, checked
    done, marked = mark(podman, base, None)
    assert (done.status, marked) == (0, True), done
    assert agent.announced() == []
    host.hauberk("install", "podman").check()


def test_a_rootless_container_is_refused(base: Path, images: Path, agent: Watched) -> None:
    """Out of scope, and the hook says so; without the hook the same container runs."""
    home = Path(tempfile.mkdtemp(prefix="hauberk-home-"))
    try:
        shutil.copytree(images / "rootfs", home / "rootfs", symlinks=True)
        for path in (home, *home.rglob("*")):
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
        user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        user += ["env", f"HOME={home}", f"XDG_RUNTIME_DIR={home}"]
        with machine(base / "rootless", "runc", base / "agent") as host:
            podman = Podman(home / "podman", host.program, prefix=(*host.prefix, *user), storage_driver="vfs")
            podman.prepare()
            for path in (podman.base, *podman.base.iterdir()):
                os.chown(path, NOBODY, NOBODY)
            host.hauberk("install", "podman").check()
            refused = podman.run(str(home / "rootfs"), "/bin/echo", "it ran", options=["--rm", "--rootfs"])
            assert (refused.status, refused.output) == (126, ""), refused
            assert "rootless containers are not supported" in refused.errors
            host.hauberk("uninstall", "podman").check()
            assert podman.run(str(home / "rootfs"), "/bin/echo", "it ran", options=["--rm", "--rootfs"]).check().output
    finally:
        for pause in home.rglob("pause.pid"):  # rootless podman keeps a process that holds its user namespace
            with suppress(ProcessLookupError):
                os.kill(int(pause.read_text(encoding="utf-8")), signal.SIGKILL)
        shutil.rmtree(home)
    assert agent.announced() == []
