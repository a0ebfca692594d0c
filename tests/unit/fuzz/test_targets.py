# SPDX-License-Identifier: Apache-2.0
"""Every fuzzing target over its seeds and fixed mutations of them; and that the properties can be violated."""

from __future__ import annotations

import json
import random
from base64 import b64encode
from typing import TYPE_CHECKING

import pytest

from hauberk.bundle import PolicyFile, SignatureError, canonical, create, dsse, signatures
from hauberk.errors import HauberkError
from tests.fuzz import targets
from tests.fuzz.properties import FindingError, check_text, ensure, possible_signatures, refuses_or

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hauberk.bundle.keys import PublicKey

MUTATIONS = 400
"""Of all seeds of a target together, at least three of each."""
every_target = pytest.mark.parametrize("target", targets.TARGETS.values(), ids=targets.TARGETS)


def mutations(seed: bytes, count: int, chance: random.Random) -> Iterator[bytes]:
    """Cut, overwrite, repeat and remove: what a fuzzer does first."""
    for _ in range(count):
        start = chance.randrange(len(seed))
        end = min(len(seed), start + chance.randrange(1, 16))
        yield chance.choice(
            (
                seed[:start],
                seed[:start] + bytes([chance.randrange(256)]) + seed[start + 1 :],
                seed[:end] + seed[start:],
                seed[:start] + seed[end:],
            )
        )


@every_target
def test_the_seeds_and_their_mutations_hold_the_properties(target: targets.Target) -> None:
    seeds = list(target.seeds())
    assert seeds
    chance = random.Random(target.name)  # noqa: S311 - the same mutations each time
    for seed in seeds:
        target.run(seed)
        for mutated in mutations(seed, max(3, MUTATIONS // len(seeds)), chance):
            target.run(mutated)
    for content in (b"", b"\0", b"\xff" * 70, b"{" * 9000, b"[" * 100_000, b"-" * 5000):
        target.run(content)


def test_what_is_said_may_not_carry_the_input_on() -> None:
    secret = b"x" * 300
    check_text("found 'xxxx…', expected y", secret)
    for text in ("", " \n ", "found \x1b[2J", "found " + "x" * 300, "y" * 9000):
        with pytest.raises(FindingError):
            check_text(text, secret)


def test_only_refusals_of_the_family_are_refusals() -> None:
    def refuse() -> None:
        message = "found x, expected y"
        raise HauberkError(message)

    def fail() -> None:
        raise KeyError

    assert refuses_or(refuse, b"") is None
    assert refuses_or(lambda: 3, b"") == 3
    with pytest.raises(KeyError):
        refuses_or(fail, b"")
    with pytest.raises(FindingError):
        ensure(condition=False, what="it")


def test_a_forgery_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A verifier that believes everybody violates the property at once."""
    monkeypatch.setattr(signatures, "verify_any", lambda known, *_: tuple(known))
    another = create("fuzz", 2, (PolicyFile("a.yaml", "x: 1\n"),))
    for name, content in (("signature-files", b"{}"), ("signed-bytes", another)):
        with pytest.raises(FindingError):
            targets.TARGETS[name].run(content)


def test_a_signature_is_found_without_the_code_that_verifies() -> None:
    here = targets.world()
    raw = signatures.sign(here.first, here.data)
    assert raw in set(possible_signatures(b64encode(raw)))
    for form in here.forms:
        signers = [key for key in (here.first.public(), here.second.public()) if _verifies(key, form)]
        assert signers
        assert all(targets._has_signed(key, here.data, form) for key in signers)  # noqa: SLF001 - the oracle itself
    assert not targets._has_signed(here.never[0], here.data, here.forms[0])  # noqa: SLF001
    assert not list(possible_signatures(b"x"))[1:]


def _verifies(key: PublicKey, form: bytes) -> bool:
    try:
        signatures.verify(key, targets.world().data, form)
    except SignatureError:
        return False
    return True


def test_the_corpus_stays_worth_something() -> None:
    """The keys of the targets are the same in every run."""
    fingerprints = [key.public().fingerprint for key in (targets.world().first, targets.world().second)]
    targets.world.cache_clear()
    assert [key.public().fingerprint for key in (targets.world().first, targets.world().second)] == fingerprints
    assert dsse.PAYLOAD_TYPE == "application/vnd.hauberk.bundle+json"


@pytest.mark.parametrize(
    "operation", ["receive", "read", "attach", "resolve", "socket", "capability", "syscall", "preset"]
)
def test_found_by_fuzzing_a_long_object_was_repeated_whole(operation: str) -> None:
    targets.questions(json.dumps({"operation": operation, "object": "1" + "-" * 1000}).encode())


@pytest.mark.parametrize("field", ["successor", "target"])
def test_found_by_fuzzing_names_of_fields_repainted_the_terminal(field: str) -> None:
    for value in ({"thresh\x7fld": 1, "keys": []}, {"\x1b[2J": 1}, {"x" * 5000: 1}, {}):
        content = canonical.encode({**json.loads(targets.world().data), field: value})
        targets.bundles(content)
        targets.signed_anything(content)
