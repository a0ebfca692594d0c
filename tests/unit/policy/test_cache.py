# SPDX-License-Identifier: Apache-2.0
"""What is kept is what was read, and nothing that cannot be believed is taken for it."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import stat
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hauberk.errors import PolicyError, Problem
from hauberk.policy import cache as cache_module
from hauberk.policy import collection, models
from hauberk.policy.cache import Cache, user_directory
from hauberk.policy.collection import Collection, NormalPolicy
from hauberk.policy.rules import Operation, PeerGroup, PeerMatch, PeerSelector, Rule, Section
from hauberk.policy.selectors import Selector, WorkloadIdentity
from tests.unit.policy.normal_forms import numbers, rules, selectors, text

if TYPE_CHECKING:
    from pathlib import Path

POLICY = b"""\
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata: {name: web, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  file: {matchPaths: [{path: /etc/shadow, fromSource: [{path: /bin/cat}]}], matchDirectories: [{dir: /x/}]}
"""
FILES = [("p.yaml", POLICY)]

collections = st.builds(
    Collection,
    st.lists(
        st.builds(NormalPolicy, text, text, text, text, selectors, st.lists(rules, max_size=3).map(tuple)), max_size=3
    ).map(tuple),
    st.lists(st.builds(Problem, text, numbers, numbers, text, text, text, text, st.just(value=True)), max_size=2).map(
        tuple
    ),
)


def entries(directory: Path) -> list[Path]:
    return sorted(directory.iterdir()) if directory.is_dir() else []


@given(collections)
@settings(max_examples=150)
def test_what_is_kept_is_found_as_it_was(tmp_path_factory: pytest.TempPathFactory, written: Collection) -> None:
    kept = Cache(str(tmp_path_factory.getbasetemp() / "kept"))
    kept.keep(FILES, written)
    found = kept.find(FILES)
    assert found == written
    assert found is not None
    for mine, theirs in zip(found.policies, written.policies, strict=True):
        assert mine.selector.scope is theirs.selector.scope
        for one, other in zip(mine.rules, theirs.rules, strict=True):
            assert (one.section, one.kind, one.action) == (other.section, other.kind, other.action)
            assert type(one.section) is Section
            assert all(type(operation) is Operation for operation in one.operations)
            assert hash(one) == hash(other)


def test_every_field_that_rules_and_selectors_have_is_in_the_test_above() -> None:
    drawn = {"section", "kind", "value", "action", "origin", "recursive", "read_only", "owner_only", "sources"}
    drawn |= {"severity", "tags", "message", "operations", "implied", "allowed_arguments", "terminal", "match"}
    drawn |= {"default_deny"}
    assert {field.name for field in dataclasses.fields(Rule)} == drawn
    drawn = {"labels", "within", "without", "container_name", "scope", "cluster", "namespaces"}
    drawn |= {"excluded_namespaces", "host_names", "host_expressions", "requirements"}
    assert {field.name for field in dataclasses.fields(Selector)} == drawn
    drawn = {"cidrs", "interfaces", "ports", "quota", "exceptions", "icmp", "groups", "nothing"}
    assert {field.name for field in dataclasses.fields(PeerMatch)} == drawn
    assert {field.name for field in dataclasses.fields(PeerGroup)} == {"kind", "value", "selector"}
    assert {field.name for field in dataclasses.fields(PeerSelector)} == {"labels", "namespaces", "namespace_labels"}


def test_a_second_reading_needs_no_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = collection.load(FILES, Cache(str(tmp_path / "c")))
    assert first == collection.load(FILES)
    monkeypatch.setattr(models, "examine", None)
    assert collection.load(FILES, Cache(str(tmp_path / "c"))) == first
    assert first[0].covers(WorkloadIdentity(labels={"app": "web"}))
    assert not first[0].covers(WorkloadIdentity(labels={"app": "db"}))


@pytest.mark.parametrize(
    "other",
    [
        [("q.yaml", POLICY)],
        [("p.yaml", POLICY + b"\n")],
        [*FILES, ("q.yaml", b"")],
        [],
        [("p.yam", b"l" + POLICY)],
    ],
)
def test_other_names_or_contents_are_other_entries(tmp_path: Path, other: list[tuple[str, bytes]]) -> None:
    kept = Cache(str(tmp_path))
    kept.keep(FILES, Collection((), ()))
    assert kept.find(FILES) is not None
    assert kept.find(other) is None


def test_another_reader_finds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Cache(str(tmp_path)).keep(FILES, Collection((), ()))
    assert Cache(str(tmp_path)).find(FILES) is not None
    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "__version__", "99")
        assert Cache(str(tmp_path)).find(FILES) is None
    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "_library", lambda _: "other")
        assert Cache(str(tmp_path)).find(FILES) is None
    package = tmp_path / "policy"
    package.mkdir()
    (tmp_path / "errors.py").write_text("")
    (package / "models.py").write_text("x = 1\n")
    monkeypatch.setattr(cache_module, "__file__", str(package / "cache.py"))
    Cache(str(tmp_path)).keep(FILES, Collection((), ()))
    assert Cache(str(tmp_path)).find(FILES) is not None
    (package / "models.py").write_text("x = 2\n")
    assert Cache(str(tmp_path)).find(FILES) is None


def test_nothing_is_kept_where_the_reader_cannot_be_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "path", [])
        Cache(str(tmp_path)).keep(FILES, Collection((), ()))
    assert entries(tmp_path) == []


def test_invalid_policies_are_not_kept(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="spec"):
        collection.load([("p.yaml", POLICY.replace(b"spec", b"spek"))], Cache(str(tmp_path / "c")))
    assert entries(tmp_path / "c") == []


def test_warnings_are_kept(tmp_path: Path) -> None:
    kept = Cache(str(tmp_path))
    warned = Collection((), (Problem("f", 1, 2, "spec", "a", "b", "c", warning=True),))
    assert warned.valid
    kept.keep(FILES, warned)
    assert kept.find(FILES) == warned


def test_an_entry_is_for_its_owner_alone(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        Cache(str(tmp_path / "a/b")).keep(FILES, Collection((), ()))
    finally:
        os.umask(old)
    (entry,) = entries(tmp_path / "a/b")
    assert stat.S_IMODE(entry.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "a/b").stat().st_mode) == 0o700


def test_what_cannot_be_believed_is_ignored_and_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Cache(str(tmp_path))
    kept.keep(FILES, Collection((), ()))
    (entry,) = entries(tmp_path)
    good = entry.read_bytes()
    for bad in (b"", good[:-1], good[:63], good[:70] + b"x" + good[71:], b"0" * 64 + good[64:]):
        entry.write_bytes(bad)
        assert kept.find(FILES) is None
    for payload in (b"[", b"[[1], []]", b"{}", b"[[[]], []]", b"\xff", b"7"):
        entry.write_bytes(hashlib.sha256(entry.name.encode() + payload).hexdigest().encode() + payload)
        assert kept.find(FILES) is None
    kept.keep(FILES, Collection((), ()))
    assert entry.read_bytes() == good
    assert kept.find(FILES) is not None
    entry.chmod(0o660)
    assert kept.find(FILES) is None
    entry.chmod(0o600)
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        assert kept.find(FILES) is None
    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "MAXIMUM_BYTES", -60)
        assert kept.find(FILES) is None
    entry.unlink()
    (tmp_path / "elsewhere").write_bytes(good)
    entry.symlink_to("elsewhere")
    assert kept.find(FILES) is None
    entry.unlink()
    os.mkfifo(entry)
    assert kept.find(FILES) is None
    entry.unlink()
    entry.mkdir()
    assert kept.find(FILES) is None


def test_an_entry_in_the_place_of_another_is_ignored(tmp_path: Path) -> None:
    kept = Cache(str(tmp_path))
    kept.keep(FILES, Collection((), ()))
    (entry,) = entries(tmp_path)
    kept.keep([("other.yaml", b"")], Collection((), ()))
    (other,) = (found for found in entries(tmp_path) if found != entry)
    other.rename(entry)
    assert kept.find(FILES) is None


def test_what_cannot_be_kept_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    Cache(str(tmp_path / "file")).keep(FILES, Collection((), ()))
    Cache(str(tmp_path / "file/below")).keep(FILES, Collection((), ()))
    assert (tmp_path / "file").read_text() == ""
    directory = tmp_path / "kept"
    monkeypatch.setattr(cache_module, "MAXIMUM_BYTES", 1)
    Cache(str(directory)).keep(FILES, Collection((), ()))
    assert entries(directory) == []


def test_nothing_half_written_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fails)
    Cache(str(tmp_path)).keep(FILES, Collection((), ()))
    assert entries(tmp_path) == []


def test_the_oldest_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "MAXIMUM_ENTRIES", 3)
    kept = Cache(str(tmp_path))
    for number in range(6):
        kept.keep([(str(number), b"")], Collection((), ()))
        for entry in entries(tmp_path):
            os.utime(entry, ns=(0, entry.stat().st_mtime_ns - 10**9))
    assert [kept.find([(str(number), b"")]) is not None for number in range(6)] == [False] * 3 + [True] * 3


def test_the_directory_is_where_users_keep_such_things(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/someone")
    assert user_directory() == "/var/cache/someone/hauberk"
    for ignored in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert user_directory() == "/home/someone/.cache/hauberk"
    monkeypatch.setenv("HOME", "relative")
    assert user_directory() is None
