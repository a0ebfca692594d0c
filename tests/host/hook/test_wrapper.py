# SPDX-License-Identifier: Apache-2.0
"""The wrapper runtime as it is installed, with the real runc and crun behind it.

The files are installed into a tree of the test's own, which a mount namespace then lays over the machine's /etc and
/usr/libexec: the wrapper runs at the very paths it was made for, and the machine is left as it is.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from guest_agent.api.hook_socket import HookAnswer, Stage
from hauberk.install import operations
from hauberk.install.targets import Options
from hauberk.install.tree import Tree

from .conftest import Agent, Bundle, Runtime

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

ECHO = ["/bin/echo", "the container ran"]
OVER = """
for directory in etc usr/libexec run; do
    mount -t overlay overlay -o "lowerdir=$1/$directory:/$directory" "/$directory" || exit 99
done
mount --bind "$2" /run/hauberk || exit 99
shift 2
exec "$@"
"""
CONFIGURATION = """
version = 2
imports = ["/etc/containerd/conf.d/*.toml"]
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.crun]
runtime_type = "io.containerd.runc.v2"
options = { BinaryName = "/usr/bin/crun" }
"""


@dataclass
class Wrapped(Runtime):
    """A runtime that is reached through its wrapper."""

    tree: Path = Path("/")
    socket_directory: Path = Path("/")

    def command(self, *arguments: str) -> list[str]:
        """Return the whole command line: mounts first, then the wrapper in the runtime's place."""
        plain = super().command(*arguments)
        plain[plain.index(self.name)] = f"/usr/libexec/hauberk/hauberk-runtime-{self.name}"
        return ["unshare", "--mount", "sh", "-c", OVER, "sh", str(self.tree), str(self.socket_directory), *plain]

    @property
    def hooks_file(self) -> Path:
        """The hooks that the wrapper adds."""
        return self.tree / "etc" / "hauberk" / "runtime-hooks.json"


@pytest.fixture(params=["runc", "crun"])
def wrapped(request: pytest.FixtureRequest, tmp_path: Path, agent: Agent) -> Iterator[Wrapped]:
    tree = tmp_path / "tree"
    for name in ("runc", "crun"):
        real = shutil.which(name)
        assert real, f"{name} is missing: apt-get install {name}"
        copy = tree / real.removeprefix("/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(real, copy)
    (tree / "run" / "hauberk").mkdir(parents=True)
    (tree / "etc" / "containerd").mkdir(parents=True)
    (tree / "etc" / "containerd" / "config.toml").write_text(CONFIGURATION)
    with Tree(tree) as opened:
        operations.install(opened, "containerd", Options(wrapper=True))
    runtime = Wrapped(request.param, tmp_path / "state", tree=tree, socket_directory=agent.path.parent)
    yield runtime
    runtime.clean()


def configuration(bundle: Bundle) -> dict[str, object]:
    """Return what a bundle's config.json holds now."""
    found: dict[str, object] = json.loads((bundle.path / "config.json").read_text())
    return found


def run(wrapped: Wrapped, bundle: Bundle) -> subprocess.CompletedProcess[str]:
    """Run a container to its end."""
    return wrapped("run", "--bundle", str(bundle.path), wrapped.new_id())


def test_a_container_without_hooks_gets_them(wrapped: Wrapped, bundle: Bundle, agent: Agent) -> None:
    bundle.write(hooks={}, arguments=ECHO)
    result = run(wrapped, bundle)
    assert (result.returncode, result.stdout) == (0, "the container ran\n")
    assert agent.stages(wrapped.containers[-1]) == [Stage.CREATE_RUNTIME, Stage.POSTSTOP]


def test_a_refused_container_does_not_run(wrapped: Wrapped, bundle: Bundle, agent: Agent) -> None:
    agent.answer = HookAnswer(accepted=False, message="no")
    bundle.write(hooks={}, arguments=ECHO)
    result = run(wrapped, bundle)
    assert result.returncode != 0
    assert "the container ran" not in result.stdout


def test_hooks_of_others_are_kept_and_run_first(wrapped: Wrapped, bundle: Bundle, agent: Agent, tmp_path: Path) -> None:
    theirs = {"path": "/bin/sh", "args": ["sh", "-c", f"echo theirs >{tmp_path}/said"], "timeout": 5}
    agent.answer = HookAnswer(accepted=False, message="no")
    bundle.write(hooks={"createRuntime": [theirs], "poststart": []}, arguments=ECHO)
    assert run(wrapped, bundle).returncode != 0
    assert (tmp_path / "said").read_text() == "theirs\n"
    hooks = configuration(bundle)["hooks"]
    assert isinstance(hooks, dict)
    assert hooks["createRuntime"][0] == theirs
    assert [hook["path"] for hook in hooks["createRuntime"][1:]] == ["/usr/libexec/hauberk/hauberk-hook"]
    assert sorted(hooks) == ["createRuntime", "poststart", "poststop"]


def test_a_second_creation_adds_nothing(wrapped: Wrapped, bundle: Bundle, agent: Agent) -> None:
    bundle.write(hooks={}, arguments=ECHO)
    assert run(wrapped, bundle).returncode == 0
    once = (bundle.path / "config.json").read_bytes()
    assert run(wrapped, bundle).returncode == 0
    assert (bundle.path / "config.json").read_bytes() == once
    assert agent.stages(wrapped.containers[-1]) == [Stage.CREATE_RUNTIME, Stage.POSTSTOP]


def test_nothing_but_the_hooks_is_changed(wrapped: Wrapped, bundle: Bundle) -> None:
    bundle.write(hooks={}, arguments=ECHO, annotations={"text": "ä\ud800\u2028\\/", "empty": ""})
    (bundle.path / "config.json").chmod(0o640)
    before = configuration(bundle)
    run(wrapped, bundle)
    after = configuration(bundle)
    assert after["hooks"]
    assert {**after, "hooks": {}} == before
    assert (bundle.path / "config.json").stat().st_mode & 0o7777 == 0o640
    assert [path.name for path in bundle.path.iterdir() if "hauberk" in path.name] == []


def test_the_life_of_a_container_goes_through_it(wrapped: Wrapped, bundle: Bundle, agent: Agent) -> None:
    bundle.write(hooks={}, arguments=["/bin/sleep", "600"])
    identifier = wrapped.new_id()
    created = wrapped("create", "--bundle", str(bundle.path), "--pid-file", str(bundle.path / "pid"), identifier)
    assert created.returncode == 0, created.stdout
    assert wrapped("start", identifier).returncode == 0
    assert json.loads(wrapped("state", identifier).stdout)["status"] == "running"
    executed = wrapped("exec", identifier, "/bin/echo", "create", "run")
    assert (executed.returncode, executed.stdout) == (0, "create run\n")
    assert wrapped("delete", "--force", identifier).returncode == 0
    assert agent.stages(identifier) == [Stage.CREATE_RUNTIME, Stage.POSTSTOP]


def test_the_bundle_may_be_the_working_directory(wrapped: Wrapped, bundle: Bundle, agent: Agent) -> None:
    bundle.write(hooks={}, arguments=ECHO)
    identifier = wrapped.new_id()
    assert wrapped("run", identifier, cwd=bundle.path).returncode == 0
    assert agent.stages(identifier) == [Stage.CREATE_RUNTIME, Stage.POSTSTOP]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"hooks": 1}', '{"a": 1, "a": 2}', '{"Hooks": {}}', '{"x": NaN}'])
def test_a_configuration_that_cannot_be_read_for_certain_starts_nothing(
    wrapped: Wrapped, bundle: Bundle, agent: Agent, content: str
) -> None:
    (bundle.path / "config.json").write_text(content)
    log = bundle.path / "log.json"
    result = wrapped("--log", str(log), "--log-format", "json", "run", "--bundle", str(bundle.path), wrapped.new_id())
    assert result.returncode == 1
    assert "hauberk-runtime: " in result.stdout
    assert json.loads(log.read_text())["level"] == "error"
    assert (bundle.path / "config.json").read_text() == content
    assert agent.asked == []


def test_an_unknown_option_starts_nothing(wrapped: Wrapped, bundle: Bundle, agent: Agent) -> None:
    bundle.write(hooks={}, arguments=ECHO)
    result = wrapped("run", "--bundle", str(bundle.path), "--config", "/elsewhere", wrapped.new_id())
    assert result.returncode == 1
    assert "'--config' is not known" in result.stdout
    assert agent.asked == []


@pytest.mark.parametrize("harm", ["missing", "empty", "others may write", "a link", "not JSON"])
def test_without_hooks_to_add_nothing_starts(wrapped: Wrapped, bundle: Bundle, agent: Agent, harm: str) -> None:
    path = wrapped.hooks_file
    if harm == "missing":
        path.unlink()
    elif harm == "empty":
        path.write_text("{}")
    elif harm == "others may write":
        path.chmod(0o666)
    elif harm == "a link":
        path.rename(path.with_suffix(".real"))
        path.symlink_to(path.with_suffix(".real").name)
    else:
        path.write_text("nonsense")
    bundle.write(hooks={}, arguments=ECHO)
    result = run(wrapped, bundle)
    assert result.returncode == 1
    assert "the container ran" not in result.stdout
    assert agent.asked == []


@pytest.mark.parametrize("harm", ["missing", "empty", "relative", "not there"])
def test_without_the_real_runtime_nothing_starts(wrapped: Wrapped, bundle: Bundle, harm: str) -> None:
    path = wrapped.tree / "etc" / "hauberk" / "runtimes" / wrapped.name
    path.write_text({"missing": "", "empty": "", "relative": "runc\n", "not there": "/nonexistent/runc\n"}[harm])
    if harm == "missing":
        path.unlink()
    bundle.write(hooks={}, arguments=ECHO)
    result = run(wrapped, bundle)
    assert result.returncode != 0
    assert "the container ran" not in result.stdout
    assert "hauberk-runtime: " in result.stdout
