# SPDX-License-Identifier: Apache-2.0
"""``hauberk install`` and ``hauberk uninstall`` as a person or a script sees them."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from hauberk.cli import main
from hauberk.install import operations, programs
from hauberk.install.errors import MachineError
from hauberk.install.material import FAIL_OPEN_PROGRAM, HOOK, hook_file, hooks, material
from hauberk.install.targets import NAMES, Options, recorded_options
from hauberk.install.tree import Tree

from .conftest import snapshot

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Put = Callable[..., Path]


def test_a_dry_run_prints_every_step(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["install", "podman", "--root", str(image), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert f"would write     {HOOK}  (" in printed
    assert snapshot(image) == {}


def test_install_check_uninstall(image: Path, put: Put, capsys: pytest.CaptureFixture[str]) -> None:
    put("/usr/bin/podman", "", 0o755)
    put("/usr/bin/python3.11", "", 0o755).with_name("python3").symlink_to("python3.11")
    before = snapshot(image)
    root = ["--root", str(image)]
    assert main(["install", "podman", "--check", *root]) == 1
    assert main(["install", "podman", *root]) == 0
    capsys.readouterr()
    assert main(["install", "podman", "--check", *root]) == 0
    assert all(line.startswith("ok ") for line in capsys.readouterr().out.splitlines())
    assert main(["uninstall", "podman", *root]) == 0
    assert snapshot(image) == before
    assert main(["uninstall", "podman", *root]) == 1


def test_a_missing_runtime_is_the_environments(image: Path) -> None:
    assert main(["install", "podman", "--root", str(image)]) == 0
    assert main(["install", "podman", "--check", "--root", str(image)]) == 3


def test_scripts_get_json(image: Path, put: Put, capsys: pytest.CaptureFixture[str]) -> None:
    put("/usr/bin/crio", "", 0o755)

    def ask(*words: str) -> dict[str, Any]:
        main([*words, "--root", str(image), "--json"])
        answer: dict[str, Any] = json.loads(capsys.readouterr().out)
        return answer

    planned = ask("install", "crio", "--dry-run")
    done = ask("install", "crio")
    steps = {step["path"]: step for step in done["steps"]}
    assert planned == {**done, "dryRun": True}
    assert {name: value for name, value in steps[HOOK].items() if name in ("action", "path")} == {
        "action": "write",
        "path": HOOK,
    }
    answer = ask("install", "crio", "--check")
    assert answer["complete"] is False
    assert [finding["what"] for finding in answer["findings"] if not finding["well"]] == [
        f"{image}/usr/bin/python3, the hook's interpreter, is missing, does not run or does not tell its version"
    ]
    assert ask("uninstall", "crio")["target"] == "crio"


def test_what_was_changed_is_told_by_the_exit_code(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["install", "podman", "--root", str(image)]) == 0
    (image / HOOK[1:]).write_text("changed")
    assert main(["uninstall", "podman", "--root", str(image)]) == 1
    assert "was changed since" in capsys.readouterr().out


def test_an_obstacle_is_one_line_each(image: Path, put: Put, capsys: pytest.CaptureFixture[str]) -> None:
    put(HOOK, "theirs")
    assert main(["install", "podman", "--root", str(image)]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert errors[0] == "hauberk: nothing was changed:"
    assert len(errors) == 2
    assert main(["install", "podman", "--root", str(image), "--replace"]) == 0


@pytest.mark.parametrize(
    "words",
    [
        ["install"],
        ["install", "lxc"],
        ["install", "podman", "--wrapper"],
        ["install", "podman", "--hooks-dir", "relative"],
        ["install", "podman", "--check", "--dry-run"],
        ["install", "kata-guest", "--fail-open"],
        ["install", "systemd", "--fail-open"],
        ["uninstall", "podman", "--check"],
        ["uninstall"],
    ],
)
def test_wrong_usage(words: list[str]) -> None:
    assert main(words) == 2


def test_a_root_that_is_none(tmp_path: Path) -> None:
    assert main(["install", "podman", "--root", str(tmp_path / "none")]) == 3


def test_without_root_the_machine_is_not_touched(monkeypatch: pytest.MonkeyPatch, image: Path) -> None:
    with Tree(image) as tree:
        monkeypatch.setattr(Tree, "is_machine", True)
        monkeypatch.setattr("os.geteuid", lambda: 1000)
        with pytest.raises(MachineError, match="needs root"):
            operations.install(tree, "podman", Options())
    assert snapshot(image) == {}


@pytest.mark.parametrize("name", ["podman", "crio", "containerd", "docker"])
def test_failing_open_is_put_only_when_asked_for(image: Path, put: Put, name: str) -> None:
    put("/usr/sbin/runc", "", 0o755)
    place = image / FAIL_OPEN_PROGRAM[1:]

    def mentions() -> bool:
        return any(b"--fail-open" in content for path, (_, content) in snapshot(image).items()
                   if isinstance(content, bytes) and "libexec" not in path)  # fmt: skip

    assert main(["install", name, "--root", str(image)]) == 0
    assert not place.exists()
    assert not mentions()
    assert main(["install", name, "--root", str(image), "--fail-open"]) == 0
    assert place.read_bytes() == material("hooks/hauberk-fail-open")
    assert mentions()
    assert main(["install", name, "--root", str(image)]) == 0
    assert not place.exists()
    assert not mentions()


def test_the_option_stands_where_the_hook_takes_it() -> None:
    entry = hooks(fail_open=True)["createRuntime"][0]
    assert entry["args"] == ["hauberk-hook", "--fail-open", "createRuntime"]
    assert hooks(fail_open=True)["poststop"] == hooks(fail_open=False)["poststop"]
    create, stop = (hook_file(f"zz-hauberk-{name}.json", fail_open=True) for name in ("create", "poststop"))
    assert json.loads(create)["hook"] == entry
    assert stop == hook_file("zz-hauberk-poststop.json", fail_open=False)


def test_the_two_forms_of_the_hooks_agree() -> None:
    stages = hooks(fail_open=False)
    for name, stage in (("create", "createRuntime"), ("poststop", "poststop")):
        document = json.loads(hook_file(f"zz-hauberk-{name}.json", fail_open=False))
        assert document == {
            "version": "1.0.0", "hook": stages[stage][0], "when": {"always": True}, "stages": [stage],
        }  # fmt: skip


def test_options_are_kept_in_the_record() -> None:
    options = Options(fail_open=True, wrapper=True, edit=True, runtimes=("a", "b"), directory="/x")
    assert recorded_options(json.loads(json.dumps(options.recorded()))) == options
    assert recorded_options({}) == Options()


def test_every_target_has_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("install", "uninstall"):
        assert main([command, "--help"]) == 0
        shown = capsys.readouterr().out
        assert all(f"    {name} " in shown for name in NAMES)


def test_the_command_starts_without_what_it_does_not_need() -> None:
    code = (
        "import sys; from hauberk.cli import main; main(['install', 'podman', '--help']);"
        "sys.exit(any(name in sys.modules for name in ('tomllib', 'subprocess', 'pydantic', 'yaml', 'hashlib')))"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False).returncode == 0


# ---- asking programs ----


def answering(put: Put, script: str) -> str:
    return str(put("/program", f"#!/bin/sh\n{script}\n", 0o755))


@pytest.mark.parametrize(
    ("script", "well", "said"),
    [
        ("exit 0", True, "an agent answers it"),
        ("echo 'hauberk-hook: container x not released: no agent listens on /s. Y' >&2; exit 1", True, "no agent"),
        ("echo 'Traceback' >&2; exit 1", False, "does not work (exit 1): Traceback"),
        ("exit 3", False, "it said nothing"),
    ],
)
def test_the_hook_is_asked(put: Put, script: str, well: bool, said: str) -> None:  # noqa: FBT001
    answer = programs.ask_hook(answering(put, f"cat >/dev/null; {script}"))
    assert answer[0] is well
    assert said in answer[1]


def test_a_hook_that_cannot_be_started_is_told(image: Path) -> None:
    assert programs.ask_hook(str(image / "none")) == (
        False,
        f"{image}/none cannot be started (No such file or directory)",
    )


def test_a_hook_that_hangs_is_told(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "_SECONDS", 0.2)
    well, said = programs.ask_hook(answering(put, "exec sleep 60"))
    assert not well
    assert "did not end" in said


def test_the_interpreter_is_asked(put: Put) -> None:
    assert programs.python_version(answering(put, "echo 3 12")) == (3, 12)
    assert programs.python_version(answering(put, "echo nonsense")) is None
    assert programs.python_version(answering(put, "exit 1")) is None
    assert programs.python_version(sys.executable) == sys.version_info[:2]


def test_containerd_is_asked(put: Put) -> None:
    assert programs.containerd_dump(answering(put, "echo version = 3")) == b"version = 3\n"
    failing = programs.containerd_dump(answering(put, "echo no such plugin >&2; exit 1"))
    assert "exit 1): no such plugin" in str(failing)
    assert "cannot be started" in str(programs.containerd_dump("/none"))


def test_what_containerd_says_counts(tree: Tree, put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    put("/usr/bin/containerd", "", 0o755)
    operations.install(tree, "containerd", Options())
    monkeypatch.setattr(programs, "containerd_dump", lambda _: "it does not tell")
    whats = [finding.what for finding in operations.check(tree, "containerd", Options())]
    assert "it does not tell" not in whats  # of an image nothing is executed
    monkeypatch.setattr(Tree, "is_machine", True)
    monkeypatch.setattr(programs, "python_version", lambda _: (3, 11))
    monkeypatch.setattr(programs, "ask_hook", lambda _: (True, "it works"))
    wrong = [finding.what for finding in operations.check(tree, "containerd", Options()) if not finding.well]
    assert wrong == ["it does not tell"]
    table = "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]\n"
    ours = f"{table}base_runtime_spec = '/etc/containerd/hauberk-base-spec.json'\n"
    for dump, well in ((ours, True), (table, False), ("", False)):
        monkeypatch.setattr(programs, "containerd_dump", lambda *_, text=dump: text.encode())
        found = [finding for finding in operations.check(tree, "containerd", Options()) if "handler" in finding.what]
        assert [finding.well for finding in found] == [well]
