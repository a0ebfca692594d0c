# SPDX-License-Identifier: Apache-2.0
"""The commands of ``docs/bundles.md`` for ``openssl`` and ``hauberk``, taken from there and run in their order."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from hauberk.bundle import keys, signatures
from hauberk.cli import bundle as command
from tests.unit.bundle.samples import DATA

if TYPE_CHECKING:
    import pytest

GUIDE = (Path(__file__).parents[3] / "docs/bundles.md").read_text()
OPENSSL = re.findall(r"^```openssl\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
TURNS = re.search(r"### Several signers.*?^```\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)


def hauberk(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    command.register(parser.add_subparsers())
    parsed = parser.parse_args(arguments)
    return int(parsed.run(parsed))


def test_openssls_commands(tmp_path: Path) -> None:
    (tmp_path / "vault.bundle").write_bytes(DATA)
    verified = 0
    for line in "".join(OPENSSL).splitlines():
        subprocess.run(shlex.split(line), cwd=tmp_path, check=True, capture_output=True, timeout=60)
        if " -sign " in line or " base64 " in line:
            written = tmp_path / shlex.split(line)[shlex.split(line).index("-out") + 1]
            public = keys.load_public((tmp_path / "owner.pub").read_bytes())
            signatures.verify(public, DATA, written.read_bytes())
            verified += 1
    assert verified == 4


def test_signing_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("vault.bundle").write_bytes(DATA)
    for name in ("ann", "bob", "eve"):
        assert hauberk("bundle", "keygen", "-o", name) == 0
    assert TURNS
    lines = [shlex.split(line) for line in TURNS[1].splitlines()]
    assert [line[2] for line in lines] == ["sign", "sign", "verify"]
    assert [hauberk(*line[1:]) for line in lines] == [0, 0, 0]
    assert [hauberk(*line[1:]) for line in lines[1:]] == [0, 0]
