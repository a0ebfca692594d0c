# SPDX-License-Identifier: Apache-2.0
"""Precedence, written out: which rule decides, and what follows where none does."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hauberk.policy import globs
from hauberk.policy.rules import (
    LIBRARY_DIRECTORIES,
    Action,
    Decision,
    ObjectKind,
    Operation,
    Origin,
    Rule,
    RuleSet,
    Section,
    Verdict,
    decide,
    implied_rules,
)

ALLOW, AUDIT, DENY = Verdict.ALLOW, Verdict.AUDIT, Verdict.DENY
EXECUTE, MAP, READ, WRITE = Operation.EXECUTE, Operation.MAP, Operation.READ, Operation.WRITE


def make(text: str, section: Section, number: int = 0) -> Rule:
    """Read a rule such as ``Block /etc/ recursive from=/bin/cat``: with '*' a pattern, ``=x`` a name."""
    action, value, *words = text.split()
    if value.startswith("="):
        kind, value = ObjectKind.EXECNAME, value[1:]
    elif "*" in value:
        kind = ObjectKind.PATTERN
    else:
        kind = ObjectKind.DIRECTORY if value.endswith("/") else ObjectKind.PATH
    return Rule(
        section, kind, value, Action(action), Origin("test", f"rule[{number}]"),
        recursive="recursive" in words, read_only="readOnly" in words, owner_only="ownerOnly" in words,
        sources=tuple(word[5:] for word in words if word.startswith("from=")),
    )  # fmt: skip


def ask(
    rules: tuple[Rule, ...],
    operation: Operation,
    path: str,
    *,
    posture: Verdict = DENY,
    **who: Any,  # noqa: ANN401
) -> Decision:
    matching = [rule for rule in rules if globs.matches(rule, path)]
    return decide(RuleSet(rules, posture), matching, operation, source=who.get("source"), owner=who.get("owner", True))


FILE_TABLE = [
    # rules, what is asked, verdict
    ([], (READ, "/x", {}), ALLOW),
    (["Block /x"], (READ, "/x", {}), DENY),
    (["Block /x"], (WRITE, "/x", {}), DENY),
    (["Audit /x"], (READ, "/x", {}), AUDIT),
    (["Block /x"], (READ, "/y", {}), ALLOW),
    # one Allow makes an allow-list, also with a source
    (["Allow /x"], (READ, "/x", {}), ALLOW),
    (["Allow /x"], (READ, "/y", {}), DENY),
    (["Allow /x"], (READ, "/y", {"posture": AUDIT}), AUDIT),
    (["Allow /x"], (READ, "/y", {"posture": ALLOW}), ALLOW),
    (["Allow /x from=/bin/a"], (READ, "/y", {}), DENY),
    (["Allow /x from=/bin/a"], (READ, "/x", {"source": "/bin/a"}), ALLOW),
    (["Allow /x from=/bin/a"], (READ, "/x", {"source": "/bin/b"}), DENY),
    (["Allow /x from=/bin/a"], (READ, "/x", {}), DENY),
    # same thing: Block beats Audit beats Allow
    (["Allow /x", "Block /x"], (READ, "/x", {}), DENY),
    (["Allow /x", "Audit /x"], (READ, "/x", {}), AUDIT),
    (["Audit /x", "Block /x"], (READ, "/x", {}), DENY),
    (["Allow /d/ recursive", "Block /d/"], (READ, "/d/x", {}), DENY),
    (["Allow /d/", "Block /d/**"], (READ, "/d/x", {}), DENY),
    # the more specific decides: source, then path, then name, then the longer prefix
    (["Block /x", "Allow /x from=/bin/a"], (READ, "/x", {"source": "/bin/a"}), ALLOW),
    (["Allow /x", "Block /d/ recursive from=/bin/a"], (READ, "/d/x", {"source": "/bin/a"}), DENY),
    (["Block /d/ recursive from=/bin/a", "Allow /d/x"], (READ, "/d/x", {"source": "/bin/a"}), DENY),
    (["Block /d/ recursive", "Allow /d/x"], (READ, "/d/x", {}), ALLOW),
    (["Block /d/ recursive", "Allow /d/x"], (READ, "/d/y", {}), DENY),
    (["Block /d/ recursive", "Allow /d/e/ recursive"], (READ, "/d/e/f", {}), ALLOW),
    (["Allow /d/ recursive", "Block /d/e/ recursive"], (READ, "/d/e/f", {}), DENY),
    (["Allow /d/ recursive", "Block /d/*.key"], (READ, "/d/a.key", {}), DENY),
    (["Block /d/ recursive", "Allow /d/a*"], (READ, "/d/ab", {}), ALLOW),
    (["Block /d/a*", "Allow /d/ recursive"], (READ, "/d/ab", {}), DENY),
    # readOnly
    (["Allow /x readOnly"], (READ, "/x", {}), ALLOW),
    (["Allow /x readOnly"], (WRITE, "/x", {}), DENY),
    (["Allow /x readOnly"], (WRITE, "/x", {"posture": AUDIT}), DENY),
    (["Block /x readOnly"], (READ, "/x", {}), ALLOW),
    (["Block /x readOnly"], (WRITE, "/x", {}), DENY),
    (["Audit /x readOnly"], (READ, "/x", {}), ALLOW),
    (["Audit /x readOnly"], (WRITE, "/x", {}), AUDIT),
    (["Block /x readOnly", "Allow /y"], (READ, "/x", {}), DENY),  # Block grants nothing
    # ownerOnly
    (["Allow /x ownerOnly"], (READ, "/x", {}), ALLOW),
    (["Allow /x ownerOnly"], (READ, "/x", {"owner": False}), DENY),
    (["Block /x ownerOnly"], (READ, "/x", {}), ALLOW),
    (["Block /x ownerOnly"], (READ, "/x", {"owner": False}), DENY),
    (["Audit /x ownerOnly"], (READ, "/x", {"owner": False}), AUDIT),
    (["Block /x ownerOnly", "Allow /y"], (READ, "/x", {}), DENY),
    (["Allow /x ownerOnly readOnly"], (WRITE, "/x", {}), DENY),
    (["Allow /x ownerOnly readOnly"], (READ, "/x", {}), ALLOW),
    # a narrowed rule that says nothing leaves the decision to the less specific one
    (["Block /d/x readOnly", "Block /d/"], (READ, "/d/x", {}), DENY),
    (["Block /d/x readOnly", "Audit /d/"], (READ, "/d/x", {}), AUDIT),
    # sections do not touch each other
    (["Allow /x"], (EXECUTE, "/x", {}), ALLOW),
    (["Block /x"], (EXECUTE, "/x", {}), ALLOW),
]


@pytest.mark.parametrize(("rules", "question", "verdict"), FILE_TABLE)
def test_precedence_of_file_rules(
    rules: list[str], question: tuple[Operation, str, dict[str, Any]], verdict: Verdict
) -> None:
    made = tuple(make(text, Section.FILE, number) for number, text in enumerate(rules))
    operation, path, who = question
    assert ask(made, operation, path, **who).verdict is verdict
    assert ask(made[::-1], operation, path, **who).verdict is verdict, "the order of the rules must not matter"


PROCESS_TABLE = [
    (["Block /bin/sh"], (EXECUTE, "/bin/sh", {}), DENY),
    (["Block /bin/sh"], (MAP, "/bin/sh", {}), DENY),  # the dynamic loader is no way round
    (["Block =sh"], (EXECUTE, "/opt/x/sh", {}), DENY),
    (["Block =sh", "Allow /opt/sh"], (EXECUTE, "/opt/sh", {}), ALLOW),
    (["Allow /opt/ recursive", "Block =sh"], (EXECUTE, "/opt/sh", {}), DENY),
    (["Block /bin/sh from=/bin/a"], (EXECUTE, "/bin/sh", {"source": "/bin/a"}), DENY),
    (["Block /bin/sh from=/bin/a"], (EXECUTE, "/bin/sh", {"source": "/bin/b"}), ALLOW),
    (["Allow /bin/a"], (EXECUTE, "/bin/b", {}), DENY),
    (["Allow /bin/a"], (READ, "/bin/b", {}), ALLOW),
    (["Allow /bin/a ownerOnly"], (EXECUTE, "/bin/a", {"owner": False}), DENY),
]


@pytest.mark.parametrize(("rules", "question", "verdict"), PROCESS_TABLE)
def test_precedence_of_process_rules(
    rules: list[str], question: tuple[Operation, str, dict[str, Any]], verdict: Verdict
) -> None:
    made = tuple(make(text, Section.PROCESS, number) for number, text in enumerate(rules))
    operation, path, who = question
    assert ask(made, operation, path, **who).verdict is verdict


def with_implied(*rules: Rule, posture: Verdict = DENY) -> tuple[Rule, ...]:
    return (*rules, *implied_rules(rules, posture))


LIBRARY = "/usr/lib/x86_64-linux-gnu/libc.so.6"


def test_an_allow_list_of_programs_maps_libraries_that_nobody_can_change() -> None:
    rules = with_implied(make("Allow /bin/a", Section.PROCESS))
    assert ask(rules, MAP, LIBRARY).verdict is ALLOW
    assert ask(rules, EXECUTE, LIBRARY).verdict is DENY
    assert ask(rules, MAP, "/tmp/evil.so").verdict is DENY
    assert ask(rules, WRITE, LIBRARY).verdict is DENY
    assert ask(rules, WRITE, "/usr/lib/python3/x.py").verdict is ALLOW
    assert ask(rules, READ, LIBRARY).verdict is ALLOW


def test_a_deny_list_of_programs_leaves_libraries_alone() -> None:
    rules = with_implied(make("Block /bin/a", Section.PROCESS))
    assert ask(rules, WRITE, LIBRARY).verdict is ALLOW
    assert ask(rules, MAP, "/opt/x.so").verdict is ALLOW


@pytest.mark.parametrize("posture", [ALLOW, AUDIT])
def test_a_posture_that_lets_pass_does_not_imply_refusals(posture: Verdict) -> None:
    rules = with_implied(make("Allow /bin/a", Section.PROCESS), posture=posture)
    assert ask(rules, WRITE, LIBRARY, posture=posture).verdict is ALLOW


def test_implied_rules_make_no_allow_list() -> None:
    rules = with_implied(make("Block /secret", Section.FILE))
    assert not RuleSet(rules).is_allow_list(Section.PROCESS)
    assert ask(rules, EXECUTE, "/bin/x").verdict is ALLOW


GRANT = make("Allow /secret from=/bin/server", Section.FILE)
OPEN = make("Allow / recursive", Section.FILE)


def test_what_a_source_with_rights_is_made_of_cannot_be_changed() -> None:
    rules = with_implied(GRANT, OPEN)
    assert RuleSet(rules).privileged_sources() == {"/bin/server"}
    assert ask(rules, WRITE, "/bin/server").verdict is DENY
    assert ask(rules, WRITE, "/usr/lib/python3/x.py").verdict is DENY
    assert ask(rules, READ, "/bin/server").verdict is ALLOW
    assert ask(rules, WRITE, "/tmp/x").verdict is ALLOW
    assert {path for path in LIBRARY_DIRECTORIES if ask(rules, WRITE, path + "/x").verdict is not DENY} == set()


def test_a_source_with_rights_maps_only_what_cannot_be_written() -> None:
    rules = with_implied(GRANT, OPEN)
    assert ask(rules, MAP, LIBRARY, source="/bin/server").verdict is ALLOW
    preload = ask(rules, MAP, "/tmp/evil.so", source="/bin/server")
    assert preload.verdict is DENY
    assert "with rights of its own" in preload.reason
    assert ask(rules, MAP, "/tmp/evil.so", source="/bin/other").verdict is ALLOW


def test_a_general_allow_rule_does_not_open_a_source_with_rights_to_preloading() -> None:
    everything = make("Allow / recursive", Section.PROCESS)
    rules = with_implied(GRANT, OPEN, everything)
    refused = ask(rules, MAP, "/opt/plugin.so", source="/bin/server")
    assert refused.verdict is DENY
    assert (everything, "does not name the source") in refused.lost
    named = make("Allow /opt/plugin.so from=/bin/server", Section.PROCESS)
    assert (
        ask(with_implied(GRANT, OPEN, everything, named), MAP, "/opt/plugin.so", source="/bin/server").verdict is ALLOW
    )
    fixed = make("Block /opt/ recursive readOnly", Section.FILE)
    assert (
        ask(with_implied(GRANT, OPEN, everything, fixed), MAP, "/opt/plugin.so", source="/bin/server").verdict is ALLOW
    )


def test_a_library_made_writable_by_the_author_is_not_mapped_by_a_source_with_rights() -> None:
    rules = with_implied(GRANT, OPEN, make("Allow /usr/lib/plugins/ recursive", Section.FILE))
    assert ask(rules, WRITE, "/usr/lib/plugins/x.so").verdict is ALLOW
    assert ask(rules, MAP, "/usr/lib/plugins/x.so", source="/bin/server").verdict is DENY


def test_an_audit_rule_grants_rights_only_where_something_is_refused() -> None:
    watch = make("Audit /secret from=/bin/server", Section.FILE)
    assert RuleSet((watch,)).privileged_sources() == frozenset()
    assert RuleSet((watch, make("Block /secret", Section.FILE))).privileged_sources() == {"/bin/server"}
    assert RuleSet((watch, make("Block /bin/x", Section.PROCESS))).privileged_sources() == frozenset()


def test_why_rules_lost() -> None:
    rules = tuple(
        make(text, Section.FILE, number)
        for number, text in enumerate(
            [
                "Block /d/x from=/bin/a",
                "Audit /d/x from=/bin/a",
                "Block /d/x",
                "Block /d/ from=/bin/a",
                "Allow /d/ from=/bin/b",
                "Block /d/x readOnly",
                "Block /d/x ownerOnly",
                "Block /d/x from=/bin/a",
            ]
        )
    )
    decision = ask(rules, READ, "/d/x", source="/bin/a")
    assert decision.rule in (rules[0], rules[7])
    reasons = {rule.origin.field: why for rule, why in decision.lost}
    assert reasons["rule[1]"] == "is the weaker action for the same object"
    assert reasons["rule[2]"] == "not limited to the source, unlike the deciding rule"
    assert reasons["rule[3]"] == "names the object less exactly"
    assert reasons["rule[4]"] == "limited to source /bin/b"
    assert reasons["rule[5]"] == "says nothing about read"
    assert reasons["rule[6]"] == "says nothing about read by the owner"
    assert "says the same" in reasons.values()
    assert len(reasons) == 7


@pytest.mark.parametrize(
    ("value", "length"),
    [("/a/*", 3), (r"/a\*b*", 4), ("/ä*", 3), ("/a{b,c}", 2), ("/a?", 2), ("/a[b]", 2), ("/abc", 4)],
)
def test_the_literal_prefix_counts_bytes_before_the_first_wildcard(value: str, length: int) -> None:
    rule = Rule(Section.FILE, ObjectKind.PATTERN, value, Action.BLOCK, Origin("", ""))
    assert rule.literal_prefix() == length


def test_paths_that_are_not_utf8_have_a_length_too() -> None:
    assert make("Block /a\udcff", Section.FILE).literal_prefix() == 3


TEXTS = st.builds(
    lambda action, value, words: " ".join([action, value, *words]),
    st.sampled_from(["Allow", "Audit", "Block"]),
    st.sampled_from(["/d/x", "/d/", "/d/*", "/d/**", "/"]),
    st.lists(st.sampled_from(["recursive", "readOnly", "ownerOnly", "from=/bin/a"]), max_size=3),
)


@given(st.lists(TEXTS, max_size=6), st.randoms(use_true_random=False), st.sampled_from([READ, WRITE]), st.booleans())
def test_order_never_matters(texts: list[str], random: Any, operation: Operation, owner: bool) -> None:  # noqa: ANN401, FBT001
    rules = [make(text, Section.FILE, number) for number, text in enumerate(texts)]
    shuffled = list(rules)
    random.shuffle(shuffled)
    first = ask(tuple(rules), operation, "/d/x", source="/bin/a", owner=owner)
    second = ask(tuple(shuffled), operation, "/d/x", source="/bin/a", owner=owner)
    assert first.verdict is second.verdict


@given(st.lists(TEXTS, max_size=6), st.sampled_from([READ, WRITE]), st.booleans())
def test_one_more_block_rule_never_allows_more(texts: list[str], operation: Operation, owner: bool) -> None:  # noqa: FBT001
    rules = tuple(make(text, Section.FILE, number) for number, text in enumerate(texts))
    for extra in ("Block /d/x", "Block /d/ readOnly", "Block /d/** ownerOnly"):
        more = (*rules, make(extra, Section.FILE, 99))
        before = ask(rules, operation, "/d/x", owner=owner)
        after = ask(more, operation, "/d/x", owner=owner)
        assert after.verdict >= before.verdict
