# SPDX-License-Identifier: Apache-2.0
"""The hook's own functions: arguments, answers, and what it reads of a state when it has to kill."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest_agent.api.hook_socket import FrameError, HookAnswer, Stage, decode_answer, encode_answer, serve

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("stage", ["createRuntime", "prestart", "poststop"])
def test_each_stage_is_taken_with_the_defaults(hook: ModuleType, stage: str) -> None:
    assert hook.parse_arguments([stage]) == (stage, "/run/hauberk/hook.sock", 8.0, False)


def test_options_may_stand_on_either_side_of_the_stage(hook: ModuleType) -> None:
    expected = ("poststop", "/s", 2.5, False)
    assert hook.parse_arguments(["--timeout", "2.5", "poststop", "--socket", "/s"]) == expected
    assert hook.parse_arguments(["--socket", "/s", "--timeout", "2.5", "poststop"]) == expected


def test_fail_open_goes_with_createruntime(hook: ModuleType) -> None:
    assert hook.parse_arguments(["--fail-open", "createRuntime"]) == (
        "createRuntime",
        "/run/hauberk/hook.sock",
        8.0,
        True,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["poststart"],
        ["createruntime"],
        ["createRuntime", "createRuntime"],
        ["createRuntime", "--timeout"],
        ["createRuntime", "--timeout", "0"],
        ["createRuntime", "--timeout", "-1"],
        ["createRuntime", "--timeout", "nan"],
        ["createRuntime", "--timeout", "inf"],
        ["createRuntime", "--timeout", "601"],
        ["createRuntime", "--timeout", "soon"],
        ["createRuntime", "--socket"],
        ["createRuntime", "--socket", "relative.sock"],
        ["createRuntime", "--fail-open=yes"],
        ["--fail-open"],
        ["prestart", "--fail-open"],
        ["--fail-open", "poststop"],
    ],
)
def test_any_other_usage_is_a_refusal(hook: ModuleType, arguments: list[str]) -> None:
    with pytest.raises(hook.Refusal) as caught:
        hook.parse_arguments(arguments)
    assert "createRuntime|prestart|poststop" in caught.value.args[1]


@given(st.binary(max_size=40) | st.binary(max_size=20).map(lambda tail: b"HBK1\0\0\0\0" + tail))
def test_the_hook_accepts_no_answer_that_the_server_side_would_not_have_sent(hook: ModuleType, data: bytes) -> None:
    try:
        answer = hook.parse_answer(data)
    except ValueError:
        answer = None
    try:
        reference = decode_answer(data)
    except FrameError:
        assert answer is None
    else:
        assert answer == (reference.accepted, reference.message)


@given(accepted=st.sampled_from([True, False]), message=st.text(max_size=6000))
def test_every_answer_arrives_whole_and_never_early(hook: ModuleType, accepted: object, message: str) -> None:
    frame = encode_answer(HookAnswer(accepted is True, message))
    got_accepted, got_message = hook.parse_answer(frame)
    assert got_accepted is accepted
    assert len(got_message.encode()) <= 4096
    assert "\n" not in got_message
    for cut in {0, 1, 4, 11, len(frame) - 1}:
        assert hook.parse_answer(frame[:cut]) is None or len(frame) == 12
    with pytest.raises(ValueError, match="bytes follow"):
        hook.parse_answer(frame + b"x")


@given(st.dictionaries(st.text(), JSON_VALUES, max_size=6), st.sampled_from([None, 1]))
def test_the_members_of_a_whole_state_are_those_json_reads(
    hook: ModuleType, document: dict[str, Any], indent: int | None
) -> None:
    assert hook.leading_members(json.dumps(document, indent=indent).encode()) == document


@given(st.dictionaries(st.text(), JSON_VALUES, max_size=6), st.data())
def test_a_state_cut_off_anywhere_yields_no_member_it_does_not_have(
    hook: ModuleType, document: dict[str, Any], data: st.DataObject
) -> None:
    text = json.dumps(document, ensure_ascii=data.draw(st.booleans())).encode()
    members = hook.leading_members(text[: data.draw(st.integers(0, len(text)))])
    assert members == {name: document[name] for name in list(document)[: len(members)]}


def test_a_cut_number_is_not_taken_for_a_pid(hook: ModuleType) -> None:
    assert hook.leading_members(b'{"id":"a","pid":123') == {"id": "a"}
    assert hook.leading_members(b'{"id":"a","pid":123,') == {"id": "a", "pid": 123}


def test_of_two_pids_the_first_counts(hook: ModuleType) -> None:
    assert hook.leading_members(b'{"pid":7,"pid":8}') == {"pid": 7}


@given(st.binary(max_size=200))
def test_no_state_makes_the_reading_fail(hook: ModuleType, data: bytes) -> None:
    assert isinstance(hook.leading_members(data), dict)


def test_a_deep_state_does_not_make_the_reading_fail(hook: ModuleType) -> None:
    assert hook.leading_members(b'{"pid":7,"annotations":' + b"[" * 200_000) == {"pid": 7}


@pytest.mark.parametrize("pid", [None, True, False, 0, 1, -5, 1.5, "17", [17], 1 << 31, 10**400])
def test_only_a_usable_pid_is_ever_killed(hook: ModuleType, pid: object) -> None:
    assert "could NOT be killed" in hook.kill_parked_init(pid)


def test_the_hook_and_its_ancestors_are_spared(hook: ModuleType) -> None:
    assert "NOT killed" in hook.kill_parked_init(os.getpid())
    assert "NOT killed" in hook.kill_parked_init(os.getppid())


def test_the_peer_must_be_the_agents_uid(hook: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "hook.sock"

    def accept(_stage: Stage, _state: bytes, _peer: object) -> HookAnswer:
        return HookAnswer(accepted=True)

    with serve(path, accept, required_uid=os.getuid()):
        monkeypatch.setattr(hook, "AGENT_UID", os.getuid())
        hook.ask_agent("createRuntime", str(path), b"{}", time.monotonic() + 10)
        monkeypatch.setattr(hook, "AGENT_UID", os.getuid() + 1)
        with pytest.raises(hook.Refusal, match=f"held by uid {os.getuid()}"):
            hook.ask_agent("createRuntime", str(path), b"{}", time.monotonic() + 10)


def test_a_full_queue_is_waited_for(hook: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "hook.sock")
    monkeypatch.setattr(hook, "AGENT_UID", os.getuid())
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        filler = []
        while True:
            one = socket.socket(socket.AF_UNIX)
            one.settimeout(0)
            filler.append(one)
            try:
                one.connect(path)
            except BlockingIOError:
                break
        waited = threading.Event()

        def note_and_sleep(seconds: float) -> None:
            waited.set()
            threading.Event().wait(seconds)

        monkeypatch.setattr(hook.time, "sleep", note_and_sleep)

        def answer_all() -> None:
            waited.wait(30)
            while True:
                connection, _ = listener.accept()
                with connection:
                    if connection.recv(64):  # the fillers hung up without a word
                        connection.sendall(encode_answer(HookAnswer(accepted=True)))
                        return

        server = threading.Thread(target=answer_all)
        server.start()
        for one in filler:
            one.close()
        hook.ask_agent("createRuntime", path, b"{}", time.monotonic() + 30)
        server.join()
        assert waited.is_set()
