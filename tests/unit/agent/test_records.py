# SPDX-License-Identifier: Apache-2.0
"""Records and the rules in them: written whole, read strictly, never believed when they are something else."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest_agent import records
from guest_agent.records import Record, RecordStore
from guest_agent.workloads.registry import MAXIMUM_WORKLOAD_ID, Identity
from hauberk.policy.rules import Action, ObjectKind, Operation, Origin, Rule, RuleSet, Section, Verdict
from hauberk.policy.selectors import WorkloadIdentity

if TYPE_CHECKING:
    from pathlib import Path

TEXT = st.text(st.characters(exclude_characters="\0"), max_size=12)  # half surrogate pairs too: undecodable names
RULES = st.builds(
    Rule,
    section=st.sampled_from(Section),
    kind=st.sampled_from(ObjectKind),
    value=TEXT,
    action=st.sampled_from(Action),
    origin=st.builds(Origin, policy=TEXT, field=TEXT, file=TEXT, line=st.integers(0, 99), column=st.integers(0, 99)),
    recursive=st.booleans(),
    read_only=st.booleans(),
    owner_only=st.booleans(),
    sources=st.lists(TEXT, max_size=3).map(tuple),
    severity=st.integers(0, 10),
    tags=st.lists(TEXT, max_size=3).map(tuple),
    message=TEXT,
    operations=st.lists(st.sampled_from(Operation), max_size=3).map(tuple),
    implied=st.booleans(),
)
RULE_SETS = st.builds(RuleSet, st.lists(RULES, max_size=4).map(tuple), st.sampled_from(Verdict))
RULE = Rule(Section.FILE, ObjectKind.PATH, "/a", Action.BLOCK, Origin(policy="p", field="f"), sources=("/b",))


def record(number: int = 1, rule_set: RuleSet | None = None) -> Record:
    return Record.make(
        workload_id=number,
        container_id="c1",
        table_digest="digest",
        identity=Identity(5, 6, 7, "/pod/\udcff", 8),
        names=WorkloadIdentity("name", "namespace", {"b": "2", "a": "1"}, "container", "image", "sha256:1"),
        policies=("p",),
        aliases=("/other/\udcfe",),
        unenforced=2,
        rule_set=rule_set or RuleSet((RULE,), Verdict.AUDIT),
        root_path="/run/root/\udcfd",
        held=False,
        forms=(("/bin", ("/bin", "/usr/bin")), ("/\udcfc", ("/elsewhere",))),
    )


def names(directory: Path) -> set[str]:
    return {entry.name for entry in directory.iterdir()}


@given(RULE_SETS)
def test_rules_come_back_as_they_went(rule_set: RuleSet) -> None:
    made = record(rule_set=rule_set)
    assert Record.decode(made.encode()) == made


def test_a_record_is_written_for_root_alone_and_read_back(tmp_path: Path) -> None:
    directory = tmp_path / "run" / "workloads"
    store = RecordStore(directory)
    store.write(record())
    assert store.read(1) == record()
    assert store.read(2) is None
    assert (directory / "1.json").stat().st_mode & 0o777 == 0o600
    assert directory.stat().st_mode & 0o777 == 0o700
    store.remove(1)
    store.remove(1)
    assert names(directory) == set()


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff", b"[]", b"5", b"null", b"{}", b'{"identity": [1]}', b"[" * 100_000, b'{"identity": 5}'],
    ids=range(9),
)
def test_what_is_no_record_is_none(tmp_path: Path, data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    store = RecordStore(tmp_path)
    (tmp_path / "1.json").write_bytes(data)
    assert store.read(1) is None
    assert "workload 1 cannot be used" in caplog.text


def test_a_write_that_fails_leaves_nothing_and_the_old_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RecordStore(tmp_path)
    store.write(record())
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def full(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(type(tmp_path), "replace", full)
        for number in (1, 2):
            with pytest.raises(OSError, match="No space"):
                store.write(record(number))
        with pytest.raises(OSError, match="No space"):
            store.reserve(5)
    assert names(tmp_path) == {"1.json"}
    assert store.read(1) == record()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    store = RecordStore(tmp_path / "records")
    target = tmp_path / "target"
    target.write_text("precious")
    (tmp_path / "records" / "1.new").symlink_to(target)
    with pytest.raises(OSError, match=r"1\.new"):
        store.write(record())
    assert target.read_text() == "precious"


def test_a_record_that_cannot_be_removed_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "1.json").mkdir()
    RecordStore(tmp_path).remove(1)
    assert "workload 1 cannot be removed" in caplog.text


def test_only_records_in_use_are_kept(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    store.claim()
    store.reserve(300)
    for number in (1, 2, 3):
        store.write(record(number))
    for stray in ("2.new", "x.json", "readme"):
        (tmp_path / stray).touch()
    store.keep_only({2})
    assert names(tmp_path) == {"2.json", "lock", "next-workload-id"}
    assert store.reserved_below() == 300
    store.give_up()


@pytest.mark.parametrize("data", [None, b"", b"x", b"-5", b"0", b"\xff", str(MAXIMUM_WORKLOAD_ID + 1).encode()])
def test_a_reservation_that_cannot_be_read_is_none(tmp_path: Path, data: bytes | None) -> None:
    if data is not None:
        (tmp_path / "next-workload-id").write_bytes(data)
    assert RecordStore(tmp_path).reserved_below() is None


def test_one_agent_holds_the_directory_until_it_gives_up(tmp_path: Path) -> None:
    first, second = RecordStore(tmp_path), RecordStore(tmp_path)
    first.claim()
    with pytest.raises(OSError, match="another agent holds"):
        second.claim()
    second.give_up()  # holds nothing
    with pytest.raises(OSError, match="another agent holds"):
        second.claim()
    first.give_up()
    first.give_up()
    second.claim()
    second.give_up()


def test_a_record_names_its_workload_as_policies_see_it() -> None:
    assert record().names == WorkloadIdentity(
        "name", "namespace", {"a": "1", "b": "2"}, "container", "image", "sha256:1"
    )


def test_the_next_record_takes_the_present_ones_place(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    store.write(record())
    following = record(rule_set=RuleSet(()))
    store.write_next(following)
    assert (store.read(1), store.read_next(1), store.read_next(2)) == (record(), following, None)
    store.promote(1)
    assert (store.read(1), store.read_next(1)) == (following, None)
    store.write_next(record())
    store.forget_next()
    assert names(tmp_path) == {"1.json"}


def test_a_chain_is_given_in_order_and_cut(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    assert store.read_chain(0) == []
    links = [(b"bundle %d" % number, b"signature %d" % number) for number in range(12)]
    for number, link in enumerate(links):
        store.write_link(number, *link)
    assert store.read_first() == links[0]
    assert store.read_chain(11) == links[1:]
    directory = tmp_path / "successors"
    (directory / "junk").write_text("")
    assert store.read_chain(2) == links[1:3]
    assert names(directory) == {f"{number}.{suffix}" for number in range(3) for suffix in ("bundle", "sig")}
    with pytest.raises(FileNotFoundError):
        store.read_chain(3)
    store.keep_only(set())
    assert store.read_chain(2) == links[1:3]
    assert store.read_chain(0) == []
    assert names(directory) == set()


def test_a_chain_has_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RecordStore(tmp_path)
    for number in range(3):
        store.write_link(number, b"x" * 10, b"y" * 10)
    with pytest.raises(OSError, match="at most 64"):
        store.read_chain(65)
    monkeypatch.setattr(records, "MAXIMUM_CHAIN_BYTES", 39)
    assert len(store.read_chain(1)) == 1
    store.write_link(2, b"x" * 10, b"y" * 10)
    with pytest.raises(OSError, match="more than 39 bytes"):
        store.read_chain(2)
