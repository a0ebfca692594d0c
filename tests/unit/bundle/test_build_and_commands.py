# SPDX-License-Identifier: Apache-2.0
"""Building from directories, and the ``hauberk bundle`` commands with their exit codes."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from hauberk.bundle import PolicyFilesError, Target, build, builder, parse
from hauberk.bundle.terms import Terms
from hauberk.cli import bundle as command

if TYPE_CHECKING:
    from pathlib import Path

    from hauberk.bundle import Bundle

POLICY = """\
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata: {{name: {name}}}
spec:
  selector: {{matchLabels: {{{label}}}}}
  file: {{matchPaths: [{{path: /secret}}], action: Block}}
"""
EVERY = 'kubearmor.io/container.name: ".*"'


def write(directory: Path, file: str, name: str = "p", label: str = EVERY) -> None:
    path = directory / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(POLICY.format(name=name, label=label))


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    command.register(parser.add_subparsers())
    try:
        parsed = parser.parse_args(["bundle", *map(str, arguments)])
    except SystemExit as error:
        return int(error.code or 0)
    return int(parsed.run(parsed))


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    names = ["z.yaml", "a/b.yaml", "a.yml", "a-b.yaml", "é.yaml"]
    for directory, order in (("one", names), ("two", names[::-1])):
        for name in order:
            write(tmp_path / directory, name, f"p{names.index(name)}")
    os.utime(tmp_path / "two" / "z.yaml", (0, 0))
    (tmp_path / "two" / "z.yaml").chmod(0o600)
    data = build(tmp_path / "one", "vault", 1)
    assert build(tmp_path / "two", "vault", 1) == data
    assert [policy.file for policy in parse(data).policies] == sorted(names)


def test_invalid_policies_are_refused_with_their_place(tmp_path: Path) -> None:
    write(tmp_path, "good.yaml")
    (tmp_path / "bad.yaml").write_text(POLICY.format(name="q", label=EVERY).replace("Block", "Blokc"))
    with pytest.raises(PolicyFilesError) as caught:
        build(tmp_path, "vault", 1)
    assert "bad.yaml:6:" in str(caught.value)
    assert "Blokc" in str(caught.value)


def test_entries_that_leave_doubt_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyFilesError, match="no policy file"):
        build(tmp_path, "vault", 1)
    write(tmp_path, "good.yaml")
    (tmp_path / "link.yaml").symlink_to("good.yaml")
    (tmp_path / "upper.YAML").write_text("")
    (tmp_path / "latin.yaml").write_bytes(b"\xe9")
    os.mkfifo(tmp_path / "fifo.yaml")
    with pytest.raises(PolicyFilesError) as caught:
        build(tmp_path, "vault", 1)
    for text in ("symbolic link", "upper.YAML", "not UTF-8", "special file"):
        assert text in str(caught.value)


def test_what_is_no_policy_is_left_out_and_said_to_be(tmp_path: Path) -> None:
    write(tmp_path, "good.yaml")
    write(tmp_path, ".hidden.yaml", "h")
    (tmp_path / "README.md").write_text("x")
    built = builder.assemble(tmp_path, "vault", 1)
    assert built.left_out == (".hidden.yaml", "README.md")
    assert built.warnings == ()


def test_selection_by_what_the_host_says_is_warned_of(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "a", "app: a")
    assert builder.assemble(tmp_path, "vault", 1).warnings == ()
    (default,) = builder.assemble(tmp_path, "vault", 1, "audit").warnings
    assert "default audit" in default
    write(tmp_path, "b.yaml", "b")
    (labels,) = builder.assemble(tmp_path, "vault", 1).warnings
    assert "weakest policy" in labels
    assert "'a' ('a.yaml')" in labels


def test_a_target_with_a_default_that_refuses_nothing_is_warned_of(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml")
    for target in (Target(image_digests=(IMAGES[0],)), Target(labels=(("app", "a"),))):
        for default in ("allow", "audit", "deny"):
            warnings = builder.assemble(tmp_path, "vault", 1, default, terms=Terms(target=target)).warnings
            told = [warning for warning in warnings if f"target with the default {default}" in warning]
            assert len(told) == (default != "deny")


def test_rules_that_no_engine_enforces_are_warned_of(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml")
    text = (tmp_path / "a.yaml").read_text()
    names = "tcp,udp,raw,icmp,sctp,dgram,rdm"
    (tmp_path / "a.yaml").write_text(text + f"  network:\n    matchProtocols:\n      - protocol: {names}\n")
    (warning,) = builder.assemble(tmp_path, "vault", 1).warnings
    assert "found 7 rules that no engine enforces" in warning
    assert "a.yaml:" in warning
    assert "spec.network.matchProtocols[0]: Block network protocol tcp" in warning
    assert warning.endswith("; and 2 more")


def test_doubts_about_a_policy_are_told_and_refuse_nothing(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml")
    text = (tmp_path / "a.yaml").read_text()
    (tmp_path / "a.yaml").write_text(text + "  process:\n    matchDirectories:\n      - dir: /srv/secrets\n")
    (warning,) = builder.assemble(tmp_path, "vault", 1).warnings
    assert "a.yaml:" in warning
    assert "/srv/secrets" in warning
    rules = "".join(f"      - dir: /srv/{number}\n" for number in range(builder.MAXIMUM_PROBLEMS + 5))
    (tmp_path / "a.yaml").write_text(text + "  process:\n    matchDirectories:\n" + rules)
    *told, last = builder.assemble(tmp_path, "vault", 1).warnings
    assert len(told) == builder.MAXIMUM_PROBLEMS
    assert last.startswith("… and 5 more")


def test_the_commands_from_keys_to_a_verified_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "policies", "a.yaml")
    (tmp_path / "pass").write_text("secret\nsecond line\n")
    out, key, pub, sig = (tmp_path / name for name in ("b.json", "k.key", "k.pub", "b.sig"))
    assert run("keygen", "-o", tmp_path / "k", "--algorithm", "ed25519", "--passphrase-file", tmp_path / "pass") == 0
    assert key.stat().st_mode & 0o777 == 0o600
    assert run("keygen", "-o", tmp_path / "k") == 2
    assert run("build", tmp_path / "policies", "-o", out, "--name", "vault", "--version", 2) == 0
    assert run("sign", out, "--key", key, "-o", sig) == 2
    assert run("sign", out, "--key", key, "-o", sig, "--passphrase-file", tmp_path / "pass") == 0
    verify = ("verify", out, "--signature", sig, "--key", pub)
    assert run(*verify, "--minimum-version", 2, "--name", "vault") == 0
    assert run(*verify, "--minimum-version", 3) == 1
    assert run(*verify, "--name", "other") == 1
    assert run(*verify, "--minimum-version", 0) == 2
    assert run("verify", out, "--signature", sig, "--key", key) == 2
    assert run("verify", out, "--signature", tmp_path / "none", "--key", pub) == 2
    capsys.readouterr()
    assert run("show", out, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["name"], shown["version"], shown["signatureChecked"]) == ("vault", 2, False)
    assert shown["sha256"] == parse(out.read_bytes()).digest
    assert run("show", out) == 0
    assert "a.yaml" in capsys.readouterr().out
    out.write_bytes(out.read_bytes().replace(b"/secret", b"/public"))
    assert run(*verify) == 1
    assert "error: signature" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.json", "b.sig", "k.key", "k.pub", "pass", "policies"]


def test_wrong_usage_and_wrong_input_have_their_codes(tmp_path: Path) -> None:
    write(tmp_path / "bad", "a.yaml", "a", "{}")
    build_bad = ("build", tmp_path / "bad", "-o", tmp_path / "b", "--name")
    assert run(*build_bad, "vault", "--version", 1) == 1
    assert run(*build_bad, "-Vault", "--version", 1) == 2
    assert run(*build_bad, "vault", "--version", 0) == 2
    assert run("build", tmp_path / "absent", "-o", tmp_path / "b", "--name", "vault", "--version", 1) == 2
    (tmp_path / "junk").write_text("{}")
    assert run("show", tmp_path / "junk") == 1
    assert run("sign", tmp_path / "junk", "--key", tmp_path / "none", "-o", tmp_path / "s") == 1
    assert not (tmp_path / "b").exists()


def test_a_signature_takes_the_place_of_nothing_that_was_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "policies", "a.yaml")
    out, key, phrase = tmp_path / "b", tmp_path / "k.key", tmp_path / "phrase"
    phrase.write_text("words\n")
    assert run("build", tmp_path / "policies", "-o", out, "--name", "vault", "--version", 1) == 0
    assert run("keygen", "-o", tmp_path / "k", "--passphrase-file", phrase) == 0
    (tmp_path / "link").symlink_to(key)
    for place in (out, key, phrase, tmp_path / "link"):
        before = place.read_bytes()
        assert run("sign", out, "--key", key, "--passphrase-file", phrase, "-o", place) == 2
        assert "expected a place for the signature" in capsys.readouterr().err
        assert place.read_bytes() == before


def test_names_of_files_are_shown_without_what_a_terminal_obeys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "policies", "a.yaml")
    key, out, sig = (tmp_path / f"\x1b[31m\n{name}" for name in ("k", "b", "s"))
    assert run("keygen", "-o", key) == 0
    assert run("build", tmp_path / "policies", "-o", out, "--name", "vault", "--version", 1) == 0
    assert run("sign", out, "--key", f"{key}.key", "-o", sig) == 0
    assert run("verify", out, "--signature", sig, "--key", f"{key}.pub") == 0
    assert run("verify", out, "--signature", f"{sig}x", "--key", f"{key}.pub") == 2
    assert run("submit", out, "--signature", sig, "--socket", f"{sig}x") == 3
    told = capsys.readouterr()
    assert (told.out + told.err).count("\\x1b[31m\\n") == 7
    assert "\x1b" not in told.out + told.err


def test_a_reader_that_went_away_is_no_error_of_the_command(tmp_path: Path) -> None:
    write(tmp_path / "policies", "a.yaml")
    out = tmp_path / "b"
    assert run("build", tmp_path / "policies", "-o", out, "--name", "vault", "--version", 1) == 0
    read_end, write_end = os.pipe()
    os.close(read_end)
    words = [sys.executable, "-u", "-m", "hauberk.cli", "bundle", "show", str(out)]
    ended = subprocess.run(words, stdout=write_end, stderr=subprocess.PIPE, check=False)
    os.close(write_end)
    assert (ended.returncode, ended.stderr) == (3, b"")


def test_errors_name_the_file_that_was_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "policies", "a.yaml")
    place = tmp_path / "absent" / "b"
    assert run("build", tmp_path / "policies", "-o", place, "--name", "vault", "--version", 1) == 2
    assert f"error: {place}: found: No such file" in capsys.readouterr().err


def test_a_half_made_key_pair_is_taken_back(tmp_path: Path) -> None:
    (tmp_path / "k.pub").write_text("mine")
    assert run("keygen", "-o", tmp_path / "k") == 2
    assert not (tmp_path / "k.key").exists()
    assert (tmp_path / "k.pub").read_text() == "mine"


def test_special_files_are_not_replaced(tmp_path: Path) -> None:
    write(tmp_path / "policies", "a.yaml")
    os.mkfifo(tmp_path / "fifo")
    assert run("build", tmp_path / "policies", "-o", tmp_path / "fifo", "--name", "vault", "--version", 1) == 2
    assert (tmp_path / "fifo").is_fifo()


def test_heavy_libraries_are_imported_only_when_needed() -> None:
    code = (
        "import sys, hauberk.bundle, hauberk.cli.bundle, guest_agent.trust;"
        "sys.exit(bool({'cryptography', 'yaml', 'pydantic', 'grpc'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


IMAGES = tuple(f"sha256:{digit * 64}" for digit in "fa")


def built(tmp_path: Path, *options: object, code: int = 0) -> Bundle | None:
    if not (tmp_path / "policies").exists():
        write(tmp_path / "policies", "a.yaml")
    out = tmp_path / "b.json"
    out.unlink(missing_ok=True)
    assert run("build", tmp_path / "policies", "-o", out, "--name", "vault", "--version", 2, *options) == code
    return parse(out.read_bytes()) if out.exists() else None


def test_every_option_of_the_manifest_is_built_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("deputy", "second"):
        assert run("keygen", "-o", tmp_path / name) == 0
    bundle = built(
        tmp_path, "--image-digest", IMAGES[0], "--image-digest", IMAGES[1], "--network-posture", "audit",
        "--device-posture", "allow", "--capabilities-posture", "block", "--expires", "2099-01-31T00:00:00Z",
        "--successor-key", tmp_path / "deputy.pub", tmp_path / "second.pub", "--successor-threshold", 2,
    )  # fmt: skip
    assert bundle is not None
    assert bundle.terms.target == Target(image_digests=tuple(sorted(IMAGES)))
    assert bundle.terms.postures == (("capabilities", "block"), ("device", "allow"), ("network", "audit"))
    assert bundle.terms.successor is not None
    assert bundle.terms.successor.keys[0].public_key == (tmp_path / "deputy.pub").read_text()
    assert "warning" not in capsys.readouterr().err
    assert run("show", tmp_path / "b.json") == 0
    text = capsys.readouterr().out
    for shown in (*IMAGES, "network: audit", "2 of 2 keys: deputy, second", "2099-01-31T00:00:00Z (advice)"):
        assert shown in text
    assert run("show", tmp_path / "b.json", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["target"] == {"imageDigests": sorted(IMAGES)}
    assert told["posture"] == {"file": "block", "capabilities": "block", "device": "allow", "network": "audit"}
    assert (told["successor"]["threshold"], told["expires"]) == (2, "2099-01-31T00:00:00Z")


def test_a_plain_bundle_shows_what_is_not_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert built(tmp_path) is not None
    assert run("show", tmp_path / "b.json") == 0
    text = capsys.readouterr().out
    assert "every container" in text
    assert "none before the next boot" in text
    assert "expires" not in text
    assert run("show", tmp_path / "b.json", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["target"], told["successor"], told["expires"]) == (None, None, None)


def test_what_the_manifest_promises_too_little_for_is_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("deputy", "second"):
        assert run("keygen", "-o", tmp_path / name) == 0
    assert built(tmp_path, "--target-label", "app=a", "--target-label", "tier=b", "--successor-trust-root") is not None
    assert "target by labels" in capsys.readouterr().err
    assert run("show", tmp_path / "b.json") == 0
    assert "app=a" in capsys.readouterr().out
    keys = ("--successor-key", tmp_path / "deputy.pub", "--successor-key", tmp_path / "second.pub")
    assert built(tmp_path, *keys, "--expires", "2001-01-01T00:00:00Z") is not None
    errors = capsys.readouterr().err
    assert "any one of 2 keys alone" in errors
    assert "has passed by the clock" in errors
    assert run("sign", tmp_path / "b.json", "--key", tmp_path / "deputy.key", "-o", tmp_path / "s") == 0
    assert run("verify", tmp_path / "b.json", "--signature", tmp_path / "s", "--key", tmp_path / "deputy.pub") == 0
    assert "it has expired (2001-01-01T00:00:00Z)" in capsys.readouterr().err
    assert run("show", tmp_path / "b.json") == 0
    assert "past by the clock here" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--image-digest", "sha256:0"), "--image-digest"),
        (("--target-label", "app"), "--target-label 'app'"),
        (("--target-label", "a=1", "--target-label", "a=2"), "the label twice"),
        (("--target-label", "=1"), "--target-label"),
        (("--successor-threshold", "1"), "without keys"),
        (("--successor-key", "KEY", "--successor-threshold", "2"), "threshold"),
        (("--successor-key", "KEY", "KEY"), "keys[1].name"),
        (("--successor-key", "absent.pub"), "absent.pub"),
        (("--expires", "tomorrow"), "--expires"),
        (("--image-digest", IMAGES[0], "--target-label", "a=1"), "not allowed with"),
        (("--successor-trust-root", "--successor-key", "KEY"), "not allowed with"),
    ],
)
def test_wrong_options_of_the_manifest_are_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], text: str
) -> None:
    assert run("keygen", "-o", tmp_path / "k") == 0
    given = [str(tmp_path / "k.pub") if option == "KEY" else option for option in options]
    assert built(tmp_path, *given, code=2) is None
    assert text in capsys.readouterr().err
