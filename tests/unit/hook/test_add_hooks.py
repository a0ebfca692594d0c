# SPDX-License-Identifier: Apache-2.0
"""What the wrapper runtime reads of a command line, and what it makes of a configuration."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from .conftest import HOOK, load_program

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

PROGRAM = HOOK.with_name("hauberk-add-hooks")
OURS: dict[str, list[object]] = {
    "createRuntime": [{"path": "/ours"}],
    "poststop": [{"path": "/ours", "args": ["stop"]}],
}


@pytest.fixture(scope="module")
def program() -> ModuleType:
    return load_program(PROGRAM)


@pytest.mark.parametrize(
    ("words", "bundle"),
    [
        (["create", "--bundle", "/b", "id"], "/b"),
        (["create", "--bundle=/b", "id"], "/b"),
        (["create", "-b", "/b", "--pid-file", "/p", "id"], "/b"),
        (["create", "id", "--bundle", "/b"], "/b"),
        (["create", "-b", "/a", "-b", "/b", "id"], "/b"),
        (
            ["--root", "/r", "--log=/l", "--log-format", "json", "--systemd-cgroup", "create", "--bundle", "/b", "id"],
            "/b",
        ),
        (["--debug", "--cgroup-manager=cgroupfs", "run", "-d", "--keep", "--bundle", "/b", "--", "id"], "/b"),
        (["restore", "--image-path", "/i", "--bundle", "/b", "id"], "/b"),
        (["--root", "run", "create", "--bundle", "/b", "run"], "/b"),
        (["create", "--preserve-fds", "3", "id"], None),
        (["run", "create"], None),
    ],
)
def test_the_bundle_is_found(program: ModuleType, words: list[str], bundle: str | None) -> None:
    options = program.read_command(words, {})
    assert options is not None
    assert options.get("bundle") == bundle


@pytest.mark.parametrize(
    "words", [["state", "run"], ["exec", "id", "create"], ["--root", "create", "state", "x"], ["kill", "create"], []]
)
def test_other_commands_have_no_bundle(program: ModuleType, words: list[str]) -> None:
    assert program.read_command(words, {}) is None


@pytest.mark.parametrize(
    "words",
    [
        ["create"],
        ["create", "--bundle", "/b"],
        ["create", "a", "b"],
        ["create", "--bundle"],
        ["create", "--bund", "/b", "id"],
        ["create", "-b/b", "id"],
        ["create", "-bundle", "/b", "id"],
        ["create", "-db", "/b", "id"],
        ["create", "-f", "/c", "id"],
        ["create", "--config", "/c", "id"],
        ["create", "--config=/c", "id"],
        ["create", "-", "id"],
        ["--unknown", "create", "id"],
        ["--unknown", "x", "create", "id"],
        ["--help", "create", "id"],
    ],
)
def test_what_is_not_understood_is_refused(program: ModuleType, words: list[str]) -> None:
    with pytest.raises(program.Refusal):
        program.read_command(words, {})


def test_a_refusal_is_told_in_the_log_that_was_named_before_it(
    program: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log"
    program.main(["/bin/true", "--log", str(log), "--log-format=json", "create", "--config", "/c", "id"])
    assert "--config" in json.loads(log.read_text())["msg"]
    assert "--config" in capfd.readouterr().err


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=4), children, max_size=3),
    max_leaves=8,
)
HOOKS = st.fixed_dictionaries(
    {},
    optional={stage: st.none() | st.lists(VALUES, max_size=3) for stage in ("createRuntime", "poststop", "poststart")},
)
CONFIGURATIONS = st.fixed_dictionaries(
    {}, optional={"process": VALUES, "linux": VALUES, "annotations": VALUES, "hooks": st.none() | HOOKS}
)


@given(CONFIGURATIONS)
def test_the_hooks_come_last_and_nothing_else_changes(program: ModuleType, configuration: dict[str, Any]) -> None:
    before = json.loads(json.dumps(configuration))
    made = program.merged(json.dumps(configuration).encode(), OURS)
    after = json.loads(made) if made is not None else before
    sections = before.get("hooks") or {}
    for stage, ours in OURS.items():
        theirs = sections.get(stage) or []
        assert after["hooks"][stage] == (theirs if ours[0] in theirs else theirs + ours)
    assert after["hooks"].get("poststart") == sections.get("poststart")
    assert {**after, "hooks": None} == {**before, "hooks": None}
    if made is not None:
        assert program.merged(made, OURS) is None


@pytest.mark.parametrize(
    "text",
    [
        "[]", "1", '{"hooks": []}', '{"hooks": {"createRuntime": {}}}', '{"a": 1, "a": 1}', '{"x": {"a": 1, "a": 1}}',
        '{"Hooks": {}}', '{"HOOKS": null, "hooks": {}}', '{"hoo\\u212as": {}}', '{"hook\\u017f": {}}',
        '{"hooks": {"createruntime": []}}', '{"hooks": {"poststop": [], "PostStop": []}}', '{"a": NaN}',
        '{"a": -Infinity}', '{"a": 1e999}',
    ],
)  # fmt: skip
def test_a_configuration_with_two_readings_is_refused(program: ModuleType, text: str) -> None:
    with pytest.raises((program.Refusal, ValueError)):
        program.merged(text.encode(), OURS)


@given(st.binary(max_size=60) | st.text(max_size=40).map(str.encode))
def test_no_input_is_anything_but_refused_or_merged(program: ModuleType, data: bytes) -> None:
    try:
        made = program.merged(data, OURS)
    except (program.Refusal, ValueError):
        return
    assert json.loads(made)["hooks"]["createRuntime"][-1] == OURS["createRuntime"][0]


def test_deep_nesting_is_an_error_that_is_caught(program: ModuleType) -> None:
    with pytest.raises((RecursionError, ValueError)):
        program.merged(b'{"a":' + b"[" * 200_000, OURS)


@pytest.mark.parametrize("name", ["hauberk-add-hooks", "hauberk-runtime"])
def test_they_are_shipped_as_executables_of_the_system(name: str) -> None:
    program = HOOK.with_name(name)
    first = program.read_bytes().partition(b"\n")[0]
    assert first in (b"#!/usr/bin/python3 -ISE", b"#!/bin/sh")
    assert program.stat().st_mode & 0o777 == 0o755
