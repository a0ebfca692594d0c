# SPDX-License-Identifier: Apache-2.0
"""Whatever can be asked about, one of the texts is matched by the same rules."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hauberk.policy import objects, vocabulary, witnesses
from hauberk.policy.rules import (
    SECTION_OF,
    Action,
    DeviceMatch,
    ObjectKind,
    Operation,
    Origin,
    Rule,
    SyscallMatch,
)
from hauberk.policy.witnesses import TooManyTextsError

ORIGIN = Origin("p", "f")
LABELS = ("a", "b", "svc", "cluster", "local", "other")
domains = st.lists(st.sampled_from(LABELS), min_size=1, max_size=4).map(".".join)
names = st.tuples(domains, st.sampled_from(("", ".cluster.local", ".svc.cluster.local"))).map("".join)
paths = st.sampled_from(("/", "/etc", "/etc/", "/etc/a", "/var/x/", "/etcx"))
some_bytes = st.none() | st.sampled_from((1, 2, 255))


def a_rule(operation: Operation, kind: ObjectKind, value: str, match: object = None) -> Rule:
    return Rule(SECTION_OF[operation], kind, value, Action.BLOCK, ORIGIN, match=match)  # type: ignore[arg-type]


RULES = {
    Operation.SOCKET: st.sampled_from(vocabulary.PROTOCOLS).map(
        lambda word: a_rule(Operation.SOCKET, ObjectKind.PROTOCOL, word)
    ),
    Operation.RESOLVE: names.map(lambda word: a_rule(Operation.RESOLVE, ObjectKind.DOMAIN, word)),
    Operation.CAPABILITY: st.sampled_from(vocabulary.CAPABILITIES[:3]).map(
        lambda word: a_rule(Operation.CAPABILITY, ObjectKind.CAPABILITY, word)
    ),
    Operation.PRESET: st.sampled_from(vocabulary.PRESETS).map(
        lambda word: a_rule(Operation.PRESET, ObjectKind.PRESET, word)
    ),
    Operation.SYSCALL: st.builds(
        SyscallMatch, st.sampled_from((("open",), ("open", "unlink"), ("other",))), st.none() | paths, st.booleans()
    ).map(lambda match: a_rule(Operation.SYSCALL, ObjectKind.SYSCALL, "", match)),
    Operation.ATTACH: st.builds(DeviceMatch, some_bytes, some_bytes, some_bytes, some_bytes).map(
        lambda match: a_rule(Operation.ATTACH, ObjectKind.DEVICE, "", match)
    ),
}
a_byte = st.sampled_from((0, 1, 2, 3, 255))
TEXTS = {
    Operation.SOCKET: st.sampled_from((*vocabulary.PROTOCOLS[:-1], "raw/icmp", "dgram/udp", "packet/tcp")),
    Operation.RESOLVE: names,
    Operation.CAPABILITY: st.sampled_from(vocabulary.CAPABILITIES),
    Operation.PRESET: st.sampled_from(vocabulary.PRESETS),
    Operation.SYSCALL: st.tuples(
        st.sampled_from(("open", "unlink", "other", "close")), st.sampled_from(("", " /", " /etc", " /etc/a/b", " /v"))
    ).map("".join),
    Operation.ATTACH: st.builds("{}/{}/{}@{}".format, a_byte.filter(bool), a_byte, a_byte, a_byte)
    | st.sampled_from(("1", "2/2", "HID/1/2")),
}


@pytest.mark.parametrize("operation", RULES, ids=str)
@given(data=st.data())
@settings(max_examples=150)
def test_one_text_is_matched_by_the_same_rules(operation: Operation, data: st.DataObject) -> None:
    rules = data.draw(st.lists(RULES[operation], max_size=5))
    asked = objects.read(operation, data.draw(TEXTS[operation]))

    def matching(thing: objects.Object) -> frozenset[int]:
        return frozenset(number for number, rule in enumerate(rules) if objects.matches(rule, thing))

    found = {matching(objects.read(operation, text)) for text in witnesses.texts(operation, rules)}
    assert matching(asked) in found


def test_what_multiplies_ends_in_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(witnesses, "MAXIMUM_TEXTS", 10)
    rules = [a_rule(Operation.ATTACH, ObjectKind.DEVICE, "", DeviceMatch(number, number)) for number in range(1, 5)]
    with pytest.raises(TooManyTextsError, match="more than 10 objects of attach"):
        witnesses.texts(Operation.ATTACH, rules)
