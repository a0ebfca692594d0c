# SPDX-License-Identifier: Apache-2.0
"""What a shell offers is what the parsers know."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from hauberk import cli

if TYPE_CHECKING:
    from pathlib import Path

ASK = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 ))
"$(complete -p hauberk | sed 's/.*-F \\([^ ]*\\).*/\\1/')" hauberk "${COMP_WORDS[-1]}" "${COMP_WORDS[-2]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("completion") / "hauberk.bash"
    done = subprocess.run(
        [sys.executable, "-m", "hauberk.cli", "completion", "bash"], text=True, capture_output=True, check=True
    )
    file.write_text(done.stdout)
    return file


def offered(script: Path, *words: str) -> set[str]:
    """Ask bash itself what it offers for the last word."""
    command = ["bash", "--norc", "-c", ASK, "bash", str(script), "hauberk", *words]
    done = subprocess.run(command, text=True, capture_output=True, check=True, cwd=script.parent)
    assert done.stderr == ""
    return set(done.stdout.split())


def test_bash_offers_the_commands(script: Path) -> None:
    assert offered(script, "") >= {"policy", "bundle", "agent", "status", "workloads", "alerts", "completion"}
    assert offered(script, "pol") == {"policy"}
    assert offered(script, "policy", "") >= {"check", "explain", "render"}
    assert offered(script, "bundle", "k") == {"keygen"}


def test_bash_offers_the_options_of_a_command(script: Path) -> None:
    assert offered(script, "policy", "explain", "--oper") == {"--operation"}
    assert offered(script, "bundle", "build", "--") >= {"--output", "--name", "--version", "--default"}
    assert "--output" not in offered(script, "policy", "explain", "--")


def test_bash_offers_choices_and_files(script: Path) -> None:
    assert offered(script, "policy", "check", "--format", "") == {"text", "json", "github"}
    (script.parent / "policies").mkdir()
    (script.parent / "policy.yaml").write_text("")
    assert offered(script, "policy", "check", "pol") == {"policies", "policy.yaml"}
    assert offered(script, "policy", "explain", "x", "--rootfs", "pol") == {"policies"}
    assert offered(script, "policy", "explain", "x", "--questions", "pol") == {"policies", "policy.yaml"}


@pytest.mark.parametrize(("shell", "marker"), [("zsh", "#compdef hauberk"), ("fish", "complete -c hauberk")])
def test_other_shells_have_a_script_too(shell: str, marker: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", shell]) == 0
    printed = capsys.readouterr().out
    assert marker in printed
    assert all(word in printed for word in ("policy", "explain", "operation", "keygen", "alerts"))


def test_without_the_library_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert cli.main(["completion", "bash"]) == 3
    assert "install hauberk[completion]" in capsys.readouterr().err


def test_another_shell_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", "cmd"]) == 2
    assert "invalid choice" in capsys.readouterr().err
