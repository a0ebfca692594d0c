# SPDX-License-Identifier: Apache-2.0
"""A child that hangs, babbles, crashes or refuses is told of, and nothing else comes of it."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING

import pytest

from guest_agent.engines.network_port import EngineError, EngineUnavailableError
from guest_agent.engines.nftables.nft import MAXIMUM_OUTPUT_BYTES, Nft

if TYPE_CHECKING:
    from pathlib import Path

COMMANDS = [{"add": {"table": {"family": "inet", "name": "t"}}}]


def program(folder: Path, body: str) -> str:
    path = folder / "nft"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_commands_go_in_as_json_and_nothing_as_text(tmp_path: Path) -> None:
    given = tmp_path / "given"
    Nft(program(tmp_path, f'echo "$@" >{given}; /usr/bin/env >>{given}; /bin/cat >>{given}')).run(COMMANDS)
    lines = given.read_text().splitlines()
    assert lines[0] == "-j -f -"
    assert not [line for line in lines[1:-1] if line.split("=")[0] not in {"PWD", "SHLVL", "_", "OLDPWD"}]
    assert json.loads(lines[-1]) == {"nftables": COMMANDS}


def test_what_it_says_is_told_in_plain_characters(tmp_path: Path) -> None:
    body = "printf 'line one\\n\\033[31mred\\033[0m\\200 two\\n' >&2; exit 1"
    with pytest.raises(EngineError, match=r"exit code 1\): line one \[31mred \[0m two; nothing changed"):
        Nft(program(tmp_path, body)).run(COMMANDS)


def test_silence_is_told_too(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="exit code 3\\), and said nothing"):
        Nft(program(tmp_path, "exit 3")).run(COMMANDS)


def test_a_long_complaint_is_cut(tmp_path: Path) -> None:
    with pytest.raises(EngineError) as caught:
        Nft(program(tmp_path, "/usr/bin/yes complaint | /usr/bin/head -c 5000; exit 1")).run(COMMANDS)
    assert "complaint…" in str(caught.value) or "…" in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_crash_is_told_with_its_signal(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"ended by signal 6: stack smashing; nothing changed\. Is another"):
        Nft(program(tmp_path, "echo stack smashing; kill -ABRT $$")).run(COMMANDS)


def test_one_that_hangs_is_ended(tmp_path: Path) -> None:
    noted = tmp_path / "pid"
    with pytest.raises(EngineError, match=r"took longer than 0\.2 s and was ended"):
        Nft(program(tmp_path, f"echo $$ >{noted}; exec /bin/sleep 1000"), deadline=0.2).run(COMMANDS)
    assert _is_gone(int(noted.read_text()))


def test_one_that_hangs_with_its_output_closed_is_ended(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"took longer than 0\.2 s and was ended"):
        Nft(program(tmp_path, "exec >&- 2>&-; exec /bin/sleep 1000"), deadline=0.2).run(COMMANDS)


def test_one_that_babbles_is_ended(tmp_path: Path) -> None:
    noted = tmp_path / "pid"
    with pytest.raises(EngineError, match=f"said more than {MAXIMUM_OUTPUT_BYTES} bytes"):
        Nft(program(tmp_path, f"echo $$ >{noted}; exec /usr/bin/yes")).run(COMMANDS)
    assert _is_gone(int(noted.read_text()))


def _is_gone(process: int) -> bool:
    for _ in range(1000):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.01)
    return False


def test_no_program_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailableError, match="install nftables"):
        Nft(str(tmp_path / "nft")).run(COMMANDS)


def test_a_program_that_cannot_be_started(tmp_path: Path) -> None:
    path = tmp_path / "nft"
    path.write_bytes(b"\x7fELF garbage")
    path.chmod(0o755)
    with pytest.raises(EngineError, match="could not be started"):
        Nft(str(path)).run(COMMANDS)


def test_it_is_never_looked_for_by_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program(tmp_path, "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("guest_agent.engines.nftables.nft.PLACES", (str(tmp_path / "elsewhere" / "nft"),))
    with pytest.raises(EngineUnavailableError):
        Nft().program()


def test_the_version(tmp_path: Path) -> None:
    assert Nft(program(tmp_path, "echo 'nftables v9 (X)'")).version() == "nftables v9 (X)"
