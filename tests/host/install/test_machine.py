# SPDX-License-Identifier: Apache-2.0
"""``hauberk install`` at ``/`` itself.

Overlays over /etc, /usr and /var of a mount namespace take what is written, so that the machine is as it was
afterwards; everything else is real: root, the paths, the interpreter, the hook's answer.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from guest_agent.api.hook_socket import HookAnswer, serve

if TYPE_CHECKING:
    from collections.abc import Iterator

HOOK = Path(__file__).resolve().parents[3] / "hooks" / "hauberk-hook"
OVER = """
set -e
mount -t tmpfs tmpfs "$1"
for directory in etc usr var run; do
    over=$1/$directory
    mkdir -p "$over/upper" "$over/work"
    mount -t overlay overlay -o "lowerdir=/$directory,upperdir=$over/upper,workdir=$over/work" "/$directory"
done
mkdir -p /run/hauberk
mount --bind "$2" /run/hauberk
printf '#!/bin/sh\\n' >/usr/bin/podman
chmod 755 /usr/bin/podman
eval "$3"
"""


@pytest.fixture
def socket_directory(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    path.mkdir()
    return path


def on_machine(tmp_path: Path, socket_directory: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script where writing to the machine is caught; ``hauberk`` is the command of this tree."""
    assert os.geteuid() == 0, "the host lane needs root: run it as root, or run tests/unit"
    (tmp_path / "over").mkdir(exist_ok=True)
    command = f'hauberk() {{ "{sys.executable}" -m hauberk.cli "$@"; }}\n{script}'
    return subprocess.run(
        ["unshare", "--mount", "bash", "-c", OVER, "sh", str(tmp_path / "over"), str(socket_directory), command],
        capture_output=True, text=True, timeout=300, check=False, cwd=HOOK.parents[1],
    )  # fmt: skip


@contextmanager
def agent(path: Path) -> Iterator[None]:
    with serve(path, lambda *_: HookAnswer(accepted=True)):
        yield


def test_what_is_installed_is_found_working_and_taken_back(tmp_path: Path, socket_directory: Path) -> None:
    list_all = "find /usr/libexec /usr/share/containers /var/lib/hauberk 2>/dev/null | sort"
    result = on_machine(
        tmp_path, socket_directory,
        f"""
        before=$({list_all})
        hauberk install podman >/dev/null
        hauberk install podman --check
        hauberk uninstall podman >/dev/null
        test "$before" = "$({list_all})"
        """,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert "no agent listens now, so containers are refused until one does" in result.stdout
    assert all(line.startswith("ok ") for line in result.stdout.splitlines())


def test_an_agent_that_answers_is_seen(tmp_path: Path, socket_directory: Path) -> None:
    with agent(socket_directory / "hook.sock"):
        result = on_machine(
            tmp_path, socket_directory, "hauberk install podman >/dev/null; hauberk install podman --check"
        )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "works, and an agent answers it" in result.stdout


def test_a_hook_that_does_not_run_is_seen(tmp_path: Path, socket_directory: Path) -> None:
    result = on_machine(
        tmp_path, socket_directory,
        """
        hauberk install podman >/dev/null
        mount --bind /bin/false /usr/libexec/hauberk/hauberk-hook
        hauberk install podman --check
        """,
    )  # fmt: skip
    assert result.returncode == 1
    assert "does not work (exit 1): it said nothing" in result.stdout


@pytest.mark.parametrize(
    ("settings", "status", "said"),
    [("mode: host", 0, "STARTS UNPROTECTED"), ("mode: sealed", 1, "is not exactly 'mode: host'")],
)
def test_failing_open_on_the_machine(
    tmp_path: Path, socket_directory: Path, settings: str, status: int, said: str
) -> None:
    """The hook and its program at their own paths. The namespace stands for the machine's own: only pid 1's counts."""
    result = on_machine(
        tmp_path, socket_directory,
        f"""
        hauberk install podman --fail-open >/dev/null
        mkdir -p -m 0700 /etc/hauberk
        umask 077
        echo '{settings}' >/etc/hauberk/agent.yaml
        echo '{{"id":"web"}}' | unshare --pid --fork --mount-proc --propagation unchanged \\
            sh -c '/usr/libexec/hauberk/hauberk-hook --fail-open createRuntime; exit $?'
        """,
    )  # fmt: skip
    assert said in result.stderr, result.stdout + result.stderr
    assert result.returncode == status
    assert result.stderr.count("hauberk-hook: container web ") == 1


def test_another_mount_namespace_than_the_machines_never_opens(tmp_path: Path, socket_directory: Path) -> None:
    result = on_machine(
        tmp_path, socket_directory,
        """
        hauberk install podman --fail-open >/dev/null
        mkdir -p -m 0700 /etc/hauberk
        echo 'mode: host' >/etc/hauberk/agent.yaml
        echo '{"id":"web"}' | /usr/libexec/hauberk/hauberk-hook --fail-open createRuntime
        """,
    )  # fmt: skip
    assert result.returncode == 1
    # where root may not look at pid 1 (a sandbox), that cannot be told, which refuses too
    reasons = ("does not see the machine's own mounts", "/proc/1/ns/mnt cannot be read")
    assert any(reason in result.stderr for reason in reasons), result.stderr


def test_a_rootless_runtime_is_told_that_it_is_not_supported(tmp_path: Path) -> None:
    result = subprocess.run(
        ["unshare", "--user", "--map-root-user", str(HOOK), "--socket", str(tmp_path / "none"), "createRuntime"],
        input='{"id":"web"}', capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert result.returncode == 1
    assert "container web refused: rootless containers are not supported" in result.stderr
