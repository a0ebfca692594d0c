# SPDX-License-Identifier: Apache-2.0
"""The current release of nft: fetched whole where there is nothing, and an error where it cannot be."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.host.network import nft_release

if TYPE_CHECKING:
    from pathlib import Path


def test_it_is_there_and_newer_than_what_debian_12_has() -> None:
    assert nft_release.version(nft_release.prepare()) > (1, 1)


def test_it_runs_without_an_environment_and_reads_json() -> None:
    program = nft_release.prepare()
    command = ["unshare", "-n", "env", "-i", str(program), "-j", "list", "ruleset"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert '"json_schema_version"' in done.stdout


def test_a_mirror_out_of_reach_is_an_error_that_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nft_release, "_mirror", lambda: "http://127.0.0.1:1/debian")
    with pytest.raises(nft_release.ReleaseError, match="Check the network"):
        nft_release.prepare(tmp_path)
    assert [path.name for path in (tmp_path / "nft").iterdir()] == ["lock"]


@pytest.mark.long
def test_it_is_fetched_where_there_is_nothing(tmp_path: Path) -> None:
    program = nft_release.prepare(tmp_path)
    assert program.is_relative_to(tmp_path)
    assert nft_release.version(program) > (1, 1)
    assert nft_release.prepare(tmp_path) == program
