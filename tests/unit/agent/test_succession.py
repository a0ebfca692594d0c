# SPDX-License-Identifier: Apache-2.0
"""Rules for a container that runs already: whatever it has prepared, it never comes to more than without it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest_agent.workloads import succession
from hauberk.policy import globs
from hauberk.policy.resolution import expand
from hauberk.policy.rules import (
    Action,
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

PATHS = ("/a", "/a/x", "/b", "/b/x", "/usr/lib", "/usr/lib/x.so")
SOURCES = ("/bin/one", "/bin/two")
OPERATIONS = (Operation.EXECUTE, Operation.MAP, Operation.READ, Operation.WRITE)
ORIGIN = Origin("p", "f")


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    kind = draw(st.sampled_from([ObjectKind.PATH, ObjectKind.DIRECTORY]))
    value = draw(st.sampled_from(PATHS))
    return Rule(
        draw(st.sampled_from([Section.FILE, Section.PROCESS])),
        kind,
        value + "/" * (kind is ObjectKind.DIRECTORY),
        draw(st.sampled_from(Action)),
        ORIGIN,
        recursive=kind is ObjectKind.DIRECTORY,
        read_only=draw(st.booleans()),
        owner_only=draw(st.booleans()),
        sources=draw(st.sampled_from([(), (), SOURCES[:1], SOURCES])),
    )


RULE_SETS = st.builds(
    lambda written, posture: RuleSet((*written, *implied_rules(written)), posture),
    st.lists(rules(), max_size=5).map(tuple),
    st.sampled_from(Verdict),
)
LINKS = st.dictionaries(st.sampled_from(PATHS + SOURCES), st.sampled_from(PATHS + SOURCES), max_size=4)


def verdict(rule_set: RuleSet, path: str, operation: Operation, source: str | None, *, owner: bool) -> Verdict:
    matching = [rule for rule in rule_set.rules if globs.matches(rule, path.encode())]
    return decide(rule_set, matching, operation, source=source, owner=owner).verdict


@given(new=RULE_SETS, old=RULE_SETS, links=LINKS)
def test_what_the_container_has_made_never_opens_anything(new: RuleSet, old: RuleSet, links: dict[str, str]) -> None:
    def recorded(path: str) -> tuple[str, ...]:
        return (path,)

    def found_now(path: str) -> tuple[str, ...]:
        return (path, links[path]) if path in links else (path,)

    granted = succession.granting(new, old, recorded)
    limits = succession.limiting(new)
    prepared = succession.joined(new, granted, expand(limits, found_now), resolve=recorded)
    untouched = succession.joined(new, granted, expand(limits, recorded), resolve=recorded)
    held = succession.privileged(old)
    for path in PATHS:
        for operation in OPERATIONS:
            for source in (None, *SOURCES):
                for owner in (False, True):
                    asked = (path, operation, source)
                    after = verdict(prepared, *asked, owner=owner)
                    assert after is Verdict.DENY or verdict(untouched, *asked, owner=owner) is not Verdict.DENY
                    if source is None or source not in held:
                        # A source without rights of its own before gets no more than anybody.
                        anybody = verdict(_without_sources(new), *asked, owner=owner)
                        assert after is Verdict.DENY or anybody is not Verdict.DENY


def _without_sources(rule_set: RuleSet) -> RuleSet:
    """Leave out what is limited to sources and lets pass; an allow-list stays one."""
    return replace(
        rule_set,
        rules=tuple(
            replace(rule, sources=("/nobody",)) if rule.sources and rule.action is not Action.BLOCK else rule
            for rule in rule_set.rules
        ),
    )


@given(new=RULE_SETS, old=RULE_SETS)
def test_without_links_and_new_rights_the_rules_mean_what_they_say(new: RuleSet, old: RuleSet) -> None:
    if not succession.with_grants(new) <= succession.privileged(old):
        return

    def literally(path: str) -> tuple[str, ...]:
        return (path,)

    found = succession.joined(
        new,
        succession.granting(new, old, literally),
        expand(succession.limiting(new), literally),
        resolve=literally,
    )
    for path in PATHS:
        for operation in OPERATIONS:
            for source in (None, *SOURCES):
                for owner in (False, True):
                    asked = (path, operation, source)
                    if operation is Operation.MAP and source in new.privileged_sources():
                        continue
                    assert verdict(found, *asked, owner=owner) is verdict(new, *asked, owner=owner)


@pytest.mark.parametrize("path", ["/", "/x", "/usr/bin/sh", "/a/b/c"])
def test_refusing_everything_refuses_everything(path: str) -> None:
    rule_set = succession.refuse_everything("why")
    assert succession.has_rules(rule_set)
    for operation in OPERATIONS:
        assert verdict(rule_set, path, operation, "/bin/one", owner=True) is Verdict.DENY


def test_recorded_forms_hold_below_directories_too() -> None:
    resolve = succession.recorded_forms((("/bin", ("/bin", "/usr/bin")), ("/bin/sh", ("/bin/sh", "/usr/bin/dash"))))
    assert resolve("/bin") == ("/bin", "/usr/bin")
    assert resolve("/bin/sh") == ("/bin/sh", "/usr/bin/dash")
    assert resolve("/bin/a/b") == ("/bin/a/b", "/usr/bin/a/b")
    assert resolve("/etc/a") == ("/etc/a",)
    assert resolve("/") == ("/",)


def test_a_source_that_was_only_named_has_no_rights_afterwards() -> None:
    grant = Rule(Section.FILE, ObjectKind.PATH, "/a", Action.ALLOW, ORIGIN, sources=("/bin/one",))
    new = RuleSet((grant,))
    silenced = succession.granting(new, RuleSet(()), lambda path: (path,))
    assert silenced.is_allow_list(Section.FILE)
    assert succession.privileged(silenced) == frozenset()
    assert succession.granting(new, new, lambda path: (path,)) == new
    assert not succession.has_rules(RuleSet((replace(grant, implied=True),)))


LIBRARY, PLUGIN = "/usr/lib/libc.so.6", "/opt/plugin.so"


def mapped(*rules: Rule) -> list[bool]:
    """Tell whether a source with rights may map a library and a plugin in a container that runs, under these rules."""
    grant = Rule(Section.FILE, ObjectKind.PATH, "/a", Action.ALLOW, ORIGIN, sources=("/bin/one",))
    written = (grant, *rules)
    new = RuleSet((*written, *implied_rules(written)))

    def literally(path: str) -> tuple[str, ...]:
        return (path,)

    found = succession.joined(
        new, succession.granting(new, new, literally), succession.limiting(new), resolve=literally
    )
    assert succession.privileged(found) == {"/bin/one"}
    return [
        verdict(found, path, Operation.MAP, "/bin/one", owner=True) is not Verdict.DENY for path in (LIBRARY, PLUGIN)
    ]


def test_a_source_with_rights_maps_libraries_and_what_is_named_for_it() -> None:
    # Nobody may write the plugin now; nothing says that nobody could before.
    assert mapped() == [True, False]
    for_one = Rule(Section.PROCESS, ObjectKind.PATH, PLUGIN, Action.ALLOW, ORIGIN, sources=("/bin/one",))
    assert mapped(for_one) == [True, True]
    denied = Rule(Section.PROCESS, ObjectKind.PATH, LIBRARY, Action.BLOCK, ORIGIN)
    assert mapped(denied) == [False, False]
    writable = Rule(Section.FILE, ObjectKind.DIRECTORY, "/usr/lib/", Action.ALLOW, ORIGIN, recursive=True)
    assert mapped(writable) == [False, False]
    for other in ("/usr/", "/usr/lib/x86/"):
        block = Rule(Section.PROCESS, ObjectKind.DIRECTORY, other, Action.BLOCK, ORIGIN, recursive=True)
        assert mapped(replace(block, sources=("/bin/one",))) == [False, False]
        assert mapped(replace(block, sources=("/bin/two",))) == [True, False]
    pattern = Rule(Section.PROCESS, ObjectKind.PATTERN, "/usr/l*/libc.so.6", Action.BLOCK, ORIGIN)
    assert mapped(replace(pattern, sources=("/bin/one",))) == [False, False]
    name = Rule(Section.PROCESS, ObjectKind.EXECNAME, "libc.so.6", Action.BLOCK, ORIGIN)
    assert mapped(name) == [False, False]
    assert mapped(replace(pattern, value="/opt/*")) == [True, False]
    elsewhere = Rule(Section.FILE, ObjectKind.DIRECTORY, "/opt/", Action.ALLOW, ORIGIN, recursive=True)
    assert mapped(elsewhere) == [True, False]
