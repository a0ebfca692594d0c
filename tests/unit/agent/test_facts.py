# SPDX-License-Identifier: Apache-2.0
"""What is read of a bundle, and every second name of a protected file."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from guest_agent.workloads import facts
from guest_agent.workloads.facts import (
    NETWORK_CAPABILITIES,
    BundleConfig,
    ConfigError,
    MountTable,
    gather,
    parse_config,
    read_config,
)
from hauberk.errors import FactsError
from hauberk.policy.rules import Action, ObjectKind, Origin, Rule, RuleSet, Section

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.agent.machine import Container, FakeMachine

ORIGIN = Origin("policy", "spec.file.matchPaths[0]")


def rule(value: str, kind: ObjectKind = ObjectKind.PATH, action: Action = Action.BLOCK, **more: bool) -> Rule:
    return Rule(Section.FILE, kind, value, action, ORIGIN, **more)  # type: ignore[arg-type] # only flags are given


def values(container: Container, fake: FakeMachine, *rules: Rule) -> set[tuple[ObjectKind, str]]:
    config = read_config(str(container.bundle))
    found = gather(container.pid, config, RuleSet(rules), fake.machine)
    return {(entry.kind, entry.value) for entry in found.rule_set.rules}


def mount(fake: FakeMachine, container: Container, *lines: str) -> None:
    root = f"{container.bundle}/rootfs"
    path = fake.proc / str(container.pid) / "mountinfo"
    path.write_text(path.read_text() + "".join(line.replace("ROOT", root) + "\n" for line in lines))


def test_the_configuration_gives_root_annotations_and_rights_over_the_network_only(fake: FakeMachine) -> None:
    container = fake.container(annotations={"a": "b"})
    root = f"{container.bundle}/rootfs"
    assert read_config(str(container.bundle)) == BundleConfig(root, {"a": "b"}, NETWORK_CAPABILITIES)  # it does not say
    for capabilities, expected in (
        ({}, ()),
        ({"bounding": ["CAP_CHOWN", "cap_net_raw"], "ambient": None}, ("CAP_NET_RAW",)),
        ({"bounding": [], "effective": ["CAP_NET_ADMIN"]}, ("CAP_NET_ADMIN",)),
    ):
        text = json.dumps({"root": {"path": "rootfs"}, "process": {"args": ["x"], "capabilities": capabilities}})
        assert parse_config(text.encode(), str(container.bundle)) == BundleConfig(root, {}, expected)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"[]", "found no object"),
        (b"{", "no strict JSON"),
        (b'{"root":{"path":"a"},"root":{"path":"b"}}', "twice in one object"),
        (b'{"root":{"path":"a"},"x":NaN}', "no strict JSON"),
        (b'{"root":{"path":"a\\ud800"}}', "surrogate"),
        (b'{"root":{"path":"a"},"annotations":{"x":"\\udc00"}}', "surrogate"),
        (b'\xff{"root":{"path":"a"}}', "no strict JSON"),
        (b"[" * 100_000, "no strict JSON"),
        (b'{"root":{}}', r"root\.path is missing"),
        (b'{"root":{"path":""}}', r"root\.path is missing"),
        (b'{"root":{"path":"a\\u0000b"}}', r"root\.path is missing"),
        (b'{"root":{"path":"a"},"annotations":{"x":1}}', "no object of strings"),
    ],
)
def test_a_configuration_that_two_readers_could_read_differently_is_refused(text: bytes, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        parse_config(text, "/b")


def test_a_refusal_tells_nothing_of_the_file(fake: FakeMachine) -> None:
    container = fake.container()
    (container.bundle / "config.json").write_text('{"process":{"env":["TOKEN=hunter2"]}')
    with pytest.raises(ConfigError) as refusal:
        read_config(str(container.bundle))
    assert "hunter2" not in str(refusal.value)


def test_whoever_else_can_write_the_bundle_could_choose_the_policy(fake: FakeMachine) -> None:
    container = fake.container()
    config = container.bundle / "config.json"
    for path, mode in ((config, 0o664), (config, 0o646), (container.bundle, 0o777)):
        before = path.stat().st_mode
        path.chmod(mode)
        with pytest.raises(ConfigError, match="only its owner can write"):
            read_config(str(container.bundle))
        path.chmod(before)
    read_config(str(container.bundle))


def test_a_bundle_of_somebody_else_is_refused(fake: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    container = fake.container()
    somebody = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: somebody)
    with pytest.raises(ConfigError, match="could choose the policy"):
        read_config(str(container.bundle))


def test_a_link_a_pipe_and_too_much_are_refused(fake: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    container = fake.container()
    config = container.bundle / "config.json"
    monkeypatch.setattr(facts, "MAXIMUM_CONFIG_BYTES", 8)
    with pytest.raises(ConfigError, match="larger than 8"):
        read_config(str(container.bundle))
    config.rename(container.bundle / "other.json")
    config.symlink_to("other.json")
    with pytest.raises(ConfigError, match="cannot be opened"):
        read_config(str(container.bundle))
    config.unlink()
    os.mkfifo(config, 0o600)
    with pytest.raises(ConfigError, match="no regular file"):
        read_config(str(container.bundle))
    with pytest.raises(ConfigError, match="cannot be opened"):
        read_config("/no/such/bundle")


def test_links_of_the_image_are_followed_inside_it(fake: FakeMachine) -> None:
    found = values(fake.container(), fake, rule("/bin/sh"))
    assert found == {(ObjectKind.PATH, name) for name in ("/bin/sh", "/usr/bin/sh", "/usr/bin/dash")}


def test_a_root_that_is_not_mounted_is_refused(fake: FakeMachine) -> None:
    container = fake.container()
    (fake.proc / str(container.pid) / "mountinfo").write_text("22 1 8:1 / / rw - ext4 /dev/vda rw\n")
    with pytest.raises(FactsError, match="nothing is mounted"):
        values(container, fake, rule("/secret/key"))


def test_a_root_path_with_a_link_leads_where_the_init_sees_it(fake: FakeMachine, tmp_path: Path) -> None:
    container = fake.container()
    (tmp_path / "alias").symlink_to(container.bundle)
    config = container.bundle / "config.json"
    config.write_text(json.dumps({"root": {"path": f"{tmp_path}/alias/rootfs"}}))
    assert (ObjectKind.PATH, "/usr/bin/dash") in values(container, fake, rule("/bin/sh"))


def test_a_volume_mounted_twice_has_two_names(fake: FakeMachine) -> None:
    container = fake.container()
    mount(
        fake,
        container,
        "50 40 8:1 /srv/vault ROOT/secret rw - ext4 /dev/vda rw",
        "51 40 8:1 /srv ROOT/tmp rw - ext4 /dev/vda rw",
        "52 40 9:9 /srv ROOT/other rw - ext4 /dev/vdb rw",
    )
    found = values(container, fake, rule("/secret/key"))
    assert found == {(ObjectKind.PATH, "/secret/key"), (ObjectKind.PATH, "/tmp/vault/key")}


def test_a_mount_of_a_part_is_covered_by_the_rule_on_the_whole(fake: FakeMachine) -> None:
    container = fake.container()
    mount(
        fake,
        container,
        "50 40 8:1 /srv ROOT/secret rw - ext4 /dev/vda rw",
        "51 40 8:1 /srv/deep/er ROOT/tmp rw - ext4 /dev/vda rw",
    )
    assert (ObjectKind.DIRECTORY, "/tmp/") in values(
        container, fake, rule("/secret/", ObjectKind.DIRECTORY, recursive=True)
    )
    assert (ObjectKind.PATTERN, "/tmp/{**,}.key") in values(container, fake, rule("/secret/**.key", ObjectKind.PATTERN))
    with pytest.raises(FactsError, match="under a second name"):
        values(container, fake, rule("/secret/*/er/x", ObjectKind.PATTERN))
    allowed = rule("/secret/*/er/x", ObjectKind.PATTERN, Action.ALLOW)
    assert values(container, fake, allowed) == {(ObjectKind.PATTERN, "/secret/*/er/x")}


def test_a_mounted_child_of_a_flat_directory_is_covered_too(fake: FakeMachine) -> None:
    container = fake.container()
    mount(
        fake,
        container,
        "50 40 8:1 /srv ROOT/secret rw - ext4 /dev/vda rw",
        "51 40 8:1 /srv/key ROOT/tmp/k rw - ext4 /dev/vda rw",
        "52 40 8:1 /srv/a/b ROOT/tmp/b rw - ext4 /dev/vda rw",
    )
    found = values(container, fake, rule("/secret/", ObjectKind.DIRECTORY))
    assert found == {(ObjectKind.DIRECTORY, "/secret/"), (ObjectKind.PATH, "/tmp/k")}


def test_a_mount_hidden_by_a_later_one_does_not_decide(fake: FakeMachine) -> None:
    container = fake.container()
    mount(
        fake,
        container,
        "50 40 8:1 /old ROOT/secret rw - ext4 /dev/vda rw",
        "51 40 9:1 /new ROOT/secret rw - ext4 /dev/vdb rw",
        "52 40 9:1 /new ROOT/tmp rw - ext4 /dev/vdb rw",
    )
    assert (ObjectKind.PATH, "/tmp/key") in values(container, fake, rule("/secret/key"))


def test_the_other_name_of_a_hard_link_is_protected_alike(fake: FakeMachine) -> None:
    container = fake.container()
    root = container.bundle / "rootfs"
    (root / "tmp" / "copy").hardlink_to(root / "secret" / "key")
    assert (ObjectKind.PATH, "/tmp/copy") in values(container, fake, rule("/secret/key"))
    below = rule("/secret/", ObjectKind.DIRECTORY, recursive=True)
    assert (ObjectKind.PATH, "/tmp/copy") in values(container, fake, below)
    assert (ObjectKind.PATH, "/tmp/copy") not in values(container, fake, rule("/secret/key", action=Action.ALLOW))


def test_a_search_that_would_not_end_refuses(fake: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    container = fake.container()
    root = container.bundle / "rootfs"
    (root / "tmp" / "copy").hardlink_to(root / "secret" / "key")
    monkeypatch.setattr(facts, "MAXIMUM_SEARCHED_ENTRIES", 3)
    with pytest.raises(FactsError, match="more than 3 directory entries"):
        values(container, fake, rule("/secret/key"))


def test_no_descriptor_is_left_open(fake: FakeMachine) -> None:
    container = fake.container()
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - counted, not looked at
    for _ in range(3):
        values(container, fake, rule("/bin/sh"), rule("/secret/", ObjectKind.DIRECTORY, recursive=True))
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_mount_points_with_odd_names_are_read() -> None:
    table = MountTable.parse(
        "40 1 0:50 / /r\\040x rw - overlay o rw\n41 40 8:1 /v /r\\040x/a\\011b rw - ext4 d rw\n", "/r x"
    )
    assert [entry.point for entry in table.mounts] == ["/", "/a\tb"]
