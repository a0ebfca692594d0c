# SPDX-License-Identifier: Apache-2.0
"""``hauberk bundle sign`` and ``verify`` in every format, with their messages and exit codes."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

import pytest

from hauberk.cli import bundle as command
from tests.unit.bundle.samples import COSIGN, DATA, OTHER_DATA

if TYPE_CHECKING:
    from pathlib import Path


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    command.register(parser.add_subparsers())
    parsed = parser.parse_args(["bundle", *map(str, arguments)])
    return int(parsed.run(parsed))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Give a directory with two bundles and the key pairs of two people."""
    (tmp_path / "bundle").write_bytes(DATA)
    (tmp_path / "other").write_bytes(OTHER_DATA)
    assert run("keygen", "-o", tmp_path / "ann") == 0
    assert run("keygen", "-o", tmp_path / "bob", "--algorithm", "ed25519") == 0
    return tmp_path


def keys_of(directory: Path, *names: str) -> list[object]:
    return [part for name in names for part in ("--key", directory / f"{name}.pub")]


@pytest.mark.parametrize("form", ["detached", "sigstore", "dsse"])
@pytest.mark.parametrize("name", ["ann", "bob"])
def test_each_format_is_signed_and_verified(
    directory: Path, capsys: pytest.CaptureFixture[str], form: str, name: str
) -> None:
    sig = directory / "sig"
    key = directory / f"{name}.key"
    assert run("sign", directory / "bundle", "--key", key, "-o", sig, "--format", form) == 0
    verify = ("verify", directory / "bundle", "--signature", sig)
    capsys.readouterr()
    assert run(*verify, *keys_of(directory, "ann", "bob")) == 0
    said = capsys.readouterr().out
    assert "good: bundle vault version 1, signed by 1 of 2 keys, 1 needed" in said
    assert f"{name}.pub: " in said
    stranger = "bob" if name == "ann" else "ann"
    assert run(*verify, *keys_of(directory, stranger)) == 1
    assert run("verify", directory / "other", "--signature", sig, *keys_of(directory, name)) == 1
    assert run(*verify, *keys_of(directory, "ann", "bob"), "--threshold", 2) == 1
    assert "expected" in capsys.readouterr().err


def test_people_sign_in_turn(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sig = directory / "sig"
    verify = ("verify", directory / "bundle", "--signature", sig, *keys_of(directory, "ann", "bob"), "--threshold", 2)
    sign = ("sign", directory / "bundle", "-o", sig, "--format", "dsse", "--key")
    assert run(*sign, directory / "ann.key") == 0
    assert run(*verify) == 1
    assert "let others sign" in capsys.readouterr().err
    assert run(*sign, directory / "bob.key") == 0
    assert "added to" in capsys.readouterr().out
    before = sig.read_bytes()
    assert run(*sign, directory / "ann.key") == 0
    assert "as it is" in capsys.readouterr().out
    assert sig.read_bytes() == before
    assert run(*verify) == 0
    assert "signed by 2 of 2 keys, 2 needed" in capsys.readouterr().out


def test_an_envelope_is_not_overwritten_by_one_signature(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sig = directory / "sig"
    sign = ("sign", directory / "bundle", "-o", sig)
    assert run(*sign, "--key", directory / "ann.key", "--format", "dsse") == 0
    before = sig.read_bytes()
    for form in ("detached", "sigstore"):
        assert run(*sign, "--key", directory / "bob.key", "--format", form) == 2
        assert "may hold signatures of others" in capsys.readouterr().err
    assert sig.read_bytes() == before
    for content in (b"{", b"MEUCIQ==", b"{}"):
        sig.write_bytes(content)
        assert run(*sign, "--key", directory / "bob.key") == 0
        assert "wrote" in capsys.readouterr().out


def test_a_pipe_is_neither_read_nor_replaced(directory: Path) -> None:
    os.mkfifo(directory / "pipe")
    for form in ("detached", "dsse"):
        arguments = ("--key", directory / "ann.key", "-o", directory / "pipe", "--format", form)
        assert run("sign", directory / "bundle", *arguments) == 2
    assert (directory / "pipe").is_fifo()


def test_an_envelope_of_another_bundle_is_left_alone(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sig = directory / "sig"
    for content in (b"MEUCIQ==", b'{"payloadType": "x"}'):
        sig.write_bytes(content)
        assert run("sign", directory / "bundle", "--key", directory / "ann.key", "-o", sig, "--format", "dsse") == 1
        assert sig.read_bytes() == content
    assert "error: signature" in capsys.readouterr().err


@pytest.mark.parametrize("threshold", ["0", "3", "-1"])
def test_a_threshold_that_cannot_be_is_wrong_usage(
    directory: Path, capsys: pytest.CaptureFixture[str], threshold: str
) -> None:
    arguments = (*keys_of(directory, "ann", "bob"), f"--threshold={threshold}")
    assert run("verify", directory / "bundle", "--signature", directory / "none", *arguments) == 2
    assert f"--threshold: found {threshold}, expected 1 to 2" in capsys.readouterr().err


def test_one_key_named_twice_is_wrong_usage(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (directory / "copy.pub").write_bytes((directory / "ann.pub").read_bytes())
    arguments = (*keys_of(directory, "ann", "copy"), "--threshold", "2")
    assert run("verify", directory / "bundle", "--signature", directory / "none", *arguments) == 2
    assert "found the same key as in" in capsys.readouterr().err


def test_what_cosign_signed_is_verified(capsys: pytest.CaptureFixture[str]) -> None:
    verify = ("verify", COSIGN / "vault.bundle", "--key", COSIGN / "p256.pub", "--signature")
    assert run(*verify, COSIGN / "p256.sigstore.json", "--name", "vault") == 0
    assert run(*verify, COSIGN / "p256.older-form.json") == 1
    assert "cosign's older form" in capsys.readouterr().err
