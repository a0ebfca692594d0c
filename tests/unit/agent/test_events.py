# SPDX-License-Identifier: Apache-2.0
"""Alerts name what decided; streams lose alerts for slow readers and hold up nobody."""

from __future__ import annotations

import json
import queue
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from guest_agent.engines.port import EVENT_OPERATIONS, KernelEvent
from guest_agent.events.alerts import DEFAULT_POSTURE, OWN_POLICY, AlertMaker, Subject
from guest_agent.events.stream import MAXIMUM_SUBSCRIBERS, AlertStream, FileSink, TooManySubscribersError
from hauberk.policy.rules import Action, ObjectKind, Origin, Rule, RuleSet, Section

if TYPE_CHECKING:
    from pathlib import Path

    from guest_agent.events.alerts import Alert

BLOCK = Rule(
    Section.FILE, ObjectKind.DIRECTORY, "/secret/", Action.BLOCK,
    Origin("shop/secrets", "spec.file.matchDirectories[0]", "s.yaml", 12, 9),
    recursive=True, severity=8, tags=("a", "b"), message="secrets stay",
)  # fmt: skip
ALLOW = Rule(
    Section.FILE, ObjectKind.DIRECTORY, "/secret/", Action.ALLOW,
    Origin("shop/secrets", "spec.file.matchDirectories[1]"),
    recursive=True, sources=("/usr/bin/vault",),
)  # fmt: skip
AUDIT = Rule(Section.PROCESS, ObjectKind.PATH, "/usr/bin/id", Action.AUDIT, Origin("who", "spec.process.matchPaths[0]"))
EVENT = KernelEvent(
    timestamp_ns=90_000_000_000, workload_id=3, pid=77, parent_pid=70, uid=1000, verdict="deny", operation="read",
    detail="open", path="/secret/key", other_path="", source="/usr/bin/cat", command="cat", owner=False,
    path_known=True,
)  # fmt: skip
SUBJECT = Subject("c1", "app", "shop", "pod-1", "image:1", "app=secrets", RuleSet((BLOCK, ALLOW, AUDIT)))


@pytest.fixture
def maker() -> AlertMaker:
    # 100 s after boot it is 1,700,000,100.25 s; programs are known by their number
    clock = (1_700_000_100_250_000_000, 100_000_000_000)
    return AlertMaker("host-1", "bpf_lsm", lambda: clock, lambda pid: f"/program/{pid}")


def test_an_alert_names_policy_rule_process_path_and_container(maker: AlertMaker) -> None:
    assert maker.make(EVENT, SUBJECT) == {
        "Timestamp": 1_700_000_090,
        "UpdatedTime": "2023-11-14T22:14:50.250000Z",
        "HostName": "host-1",
        "NamespaceName": "shop",
        "PodName": "pod-1",
        "ContainerID": "c1",
        "ContainerName": "app",
        "HostPID": 77,
        "PPID": 70,
        "UID": 1000,
        "PolicyName": "shop/secrets",
        "Severity": "8",
        "Tags": "a,b",
        "ATags": ["a", "b"],
        "Message": "secrets stay",
        "Type": "MatchedPolicy",
        "Source": "/usr/bin/cat",
        "Operation": "File",
        "Resource": "/secret/key",
        "Data": "operation=read detail=open command=cat",
        "Action": "Block",
        "Result": "Permission denied",
        "ProcessName": "/usr/bin/cat",
        "ParentProcessName": "/program/70",
        "Labels": "app=secrets",
        "ContainerImage": "image:1",
        "Enforcer": "bpf_lsm",
        "Rule": "spec.file.matchDirectories[0] (s.yaml:12)",
    }


def test_an_audited_program_passed(maker: AlertMaker) -> None:
    event = replace(EVENT, verdict="audit", operation="execute", detail="exec", path="/usr/bin/id")
    alert = maker.make(event, SUBJECT)
    assert (alert["PolicyName"], alert["Action"], alert["Result"]) == ("who", "Audit", "Passed")
    assert (alert["Operation"], alert["ProcessName"], alert["Source"]) == ("Process", "/usr/bin/id", "/usr/bin/cat")


def test_the_second_name_of_a_rename_may_be_the_reason(maker: AlertMaker) -> None:
    alert = maker.make(
        replace(EVENT, operation="write", detail="rename", path="/tmp/a", other_path="/secret/b"),
        replace(SUBJECT, rule_set=RuleSet((BLOCK,))),
    )
    assert alert["PolicyName"] == "shop/secrets"
    assert alert["Data"].endswith("other=/secret/b")


def test_a_rename_above_a_protected_path_names_what_it_protects(maker: AlertMaker) -> None:
    deep = replace(BLOCK, value="/data/secret/")
    subject = replace(SUBJECT, rule_set=RuleSet((deep,)))
    alert = maker.make(replace(EVENT, operation="write", detail="rename", path="/data", other_path="/tmp/x"), subject)
    assert alert["PolicyName"] == "shop/secrets"
    assert "below this directory" in alert["Message"]


def test_what_no_rule_decided_is_told_as_that(maker: AlertMaker) -> None:
    allow_list = RuleSet((replace(ALLOW, sources=()),))
    alert = maker.make(replace(EVENT, path="/etc/shadow"), replace(SUBJECT, rule_set=allow_list))
    assert alert["PolicyName"] == DEFAULT_POSTURE
    assert "allow-list" in alert["Rule"]


@pytest.mark.parametrize("operation", sorted(set(EVENT_OPERATIONS) - {"execute", "map", "read", "write"}))
def test_hauberks_own_refusals_say_why(maker: AlertMaker, operation: str) -> None:
    event = replace(EVENT, operation=operation, workload_id=0)  # type: ignore[arg-type] # one of them
    alert = maker.make(event, Subject())
    assert (alert["PolicyName"], alert["Type"]) == (OWN_POLICY, "MatchedHostPolicy")
    assert alert["Message"] not in ("", operation)


def test_an_unknown_path_and_unknown_rules_are_not_guessed(maker: AlertMaker) -> None:
    assert maker.make(replace(EVENT, path="", path_known=False), SUBJECT)["Rule"] == "unknown path"
    unknown = maker.make(EVENT, replace(SUBJECT, rule_set=None))
    assert unknown["PolicyName"] == ""
    assert "not known" in unknown["Message"]


def test_a_path_that_is_no_text_is_still_told(maker: AlertMaker) -> None:
    alert = maker.make(replace(EVENT, path="/secret/\udcff", command="\udc80"), SUBJECT)
    assert alert["Resource"] == "/secret/\\xff"
    assert alert["PolicyName"] == "shop/secrets"
    json.dumps(alert).encode("ascii")


def test_workloads_with_equal_events_keep_their_own_rules(maker: AlertMaker) -> None:
    other = replace(SUBJECT, rule_set=RuleSet((replace(BLOCK, origin=Origin("other", "spec")),)))
    assert maker.make(EVENT, SUBJECT)["PolicyName"] == "shop/secrets"
    assert maker.make(replace(EVENT, workload_id=4), other)["PolicyName"] == "other"


def alerts(maker: AlertMaker, count: int) -> list[Alert]:
    return [maker.make(replace(EVENT, pid=number), SUBJECT) for number in range(count)]


def test_a_reader_gets_what_was_and_what_comes(maker: AlertMaker) -> None:
    stream = AlertStream(kept=2)
    first, second, third, fourth = alerts(maker, 4)
    for alert in (first, second, third):
        stream.publish(alert)
    assert stream.recent() == [second, third]
    recent, subscription = stream.subscribe()
    assert recent == [second, third]
    stream.publish(fourth)
    assert subscription.take(5) == fourth
    with pytest.raises(queue.Empty):
        subscription.take(0.001)
    stream.end()
    assert subscription.take(5) is None
    subscription.close()
    assert stream.statistics()["alert_readers"] == 0


def test_a_slow_reader_loses_alerts_and_nobody_waits(maker: AlertMaker) -> None:
    stream = AlertStream(queued=2)
    slow = stream.subscribe()[1]
    made = alerts(maker, 5)
    for alert in made:
        stream.publish(alert)
    assert stream.statistics()["alerts_dropped"] == 3
    assert [slow.take(5), slow.take(5)] == made[:2]
    slow.close()
    assert stream.statistics() == {"alerts": 5, "alerts_dropped": 3, "alert_readers": 0}


def test_readers_are_bounded_and_a_late_one_sees_the_end() -> None:
    stream = AlertStream()
    readers = [stream.subscribe()[1] for _ in range(MAXIMUM_SUBSCRIBERS)]
    with pytest.raises(TooManySubscribersError):
        stream.subscribe()
    readers[0].close()
    stream.end()
    assert stream.subscribe()[1].take(5) is None


def test_the_file_gets_one_line_each_and_survives_rotation(maker: AlertMaker, tmp_path: Path) -> None:
    path = tmp_path / "alerts.jsonl"
    sink = FileSink(path)
    first, second = alerts(maker, 2)
    sink.write(first)
    path.rename(tmp_path / "alerts.1")
    sink.write(second)
    sink.close()
    assert [json.loads(line) for line in (tmp_path / "alerts.1").read_text().splitlines()] == [first]
    assert [json.loads(line) for line in path.read_text().splitlines()] == [second]
    assert path.stat().st_mode & 0o777 == 0o600
    assert sink.lost == 0


def test_a_full_disk_costs_counted_alerts(maker: AlertMaker, tmp_path: Path) -> None:
    path = tmp_path / "alerts.jsonl"
    sink = FileSink(path)
    path.unlink()
    path.mkdir()
    for alert in alerts(maker, 3):
        sink.write(alert)
    assert sink.lost == 3
    path.rmdir()
    sink.write(alerts(maker, 1)[0])
    assert sink.lost == 3
    assert len(path.read_text().splitlines()) == 1
    sink.close()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "alerts.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="Too many levels"):
        FileSink(tmp_path / "alerts.jsonl")
