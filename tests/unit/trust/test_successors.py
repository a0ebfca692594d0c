# SPDX-License-Identifier: Apache-2.0
"""Successors: what takes a sealed bundle's place, what does not and why, and that no order of calls gets round it."""

from __future__ import annotations

from functools import cache
from hashlib import sha256

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from guest_agent.trust import (
    Accepted,
    MalformedBundle,
    MalformedSeal,
    MalformedSignature,
    NameMismatch,
    NoSuccessorAllowed,
    NothingVerified,
    NotNewer,
    NotTheAcceptedSuccessor,
    Stage,
    SuccessorMissing,
    TooFewSignatures,
    Trust,
    TrustedKey,
    TrustError,
    TrustRoot,
    WrongSignature,
)
from hauberk.bundle import PolicyFile, SuccessorRule, Terms, create, dsse, keys, signatures
from hauberk.bundle.keys import Algorithm
from hauberk.bundle.terms import NamedKey

OWNER, DEPUTY, SECOND, STRANGER = "owner", "deputy", "second", "stranger"


@cache
def key(name: str) -> keys.PrivateKey:
    del name
    return keys.generate(Algorithm.ED25519)


def by(*names: str, threshold: int = 1) -> SuccessorRule:
    """Say who may sign; nobody named: the trust root."""
    named = tuple(NamedKey(name, keys.public_pem(key(name).public()).decode()) for name in names)
    return SuccessorRule(named, threshold if names else 0)


BY_ROOT, BY_DEPUTY = SuccessorRule(), by(DEPUTY)


def a_root(threshold: int = 1) -> TrustRoot:
    trusted = tuple(TrustedKey(name, key(name).public()) for name in (OWNER, SECOND))
    return TrustRoot(trusted, "vault", 1, threshold)


def a_bundle(version: int, successor: SuccessorRule | None = BY_ROOT, name: str = "vault", text: str = "") -> bytes:
    return create(name, version, (PolicyFile("a.yaml", text),), conditions=Terms(successor=successor))


def signed(data: bytes, name: str = OWNER) -> bytes:
    return signatures.sign(key(name), data)


def sealed(first: bytes, root: TrustRoot | None = None) -> Trust:
    admitted = Trust.empty(root or a_root()).admit(first, signed(first))
    return admitted.seal(sha256(first).hexdigest())


def version_of(trust: Trust) -> int:
    return trust.require_current().bundle.version


def test_a_chain_is_signed_link_by_link_under_the_rule_before() -> None:
    trust = sealed(a_bundle(1, BY_DEPUTY))
    second, third, fourth = a_bundle(4, BY_ROOT), a_bundle(5, None), a_bundle(6)
    with pytest.raises(WrongSignature, match="the successor rule of version 1"):
        trust.succeed(second, signed(second, OWNER))
    trust = trust.succeed(second, signed(second, DEPUTY))
    assert (version_of(trust), trust.successors, trust.stage) == (4, 1, Stage.SEALED)
    assert [one.name for one in trust.require_current().signed_by] == [DEPUTY]
    with pytest.raises(WrongSignature):
        trust.succeed(third, signed(third, DEPUTY))
    trust = trust.succeed(third, signed(third, OWNER))
    with pytest.raises(NoSuccessorAllowed):
        trust.succeed(fourth, signed(fourth, OWNER))
    assert trust.accepted == Accepted(sha256(third).hexdigest(), 5, 2)


def test_each_refusal_has_its_own_reason() -> None:
    trust = sealed(a_bundle(3, BY_ROOT))
    good, old, same = a_bundle(4), a_bundle(2), a_bundle(3, text="other")
    other_name, junk = a_bundle(4, name="other"), b"no bundle\n"
    cases: list[tuple[bytes, bytes, type[TrustError]]] = [
        (good, signed(good, STRANGER), WrongSignature),
        (good, signed(old), WrongSignature),
        (good, b"", MalformedSignature),
        (old, signed(old), NotNewer),
        (same, signed(same), NotNewer),
        (other_name, signed(other_name), NameMismatch),
        (junk, signed(junk), MalformedBundle),
        (b"x" * (8 * 1024 * 1024 + 1), b"", MalformedBundle),
    ]
    for bundle, signature, reason in cases:
        with pytest.raises(TrustError) as caught:
            trust.succeed(bundle, signature)
        assert type(caught.value) is reason
        assert "found" in str(caught.value)
        assert "expected" in str(caught.value)
    assert version_of(trust.succeed(good, signed(good))) == 4


def test_a_rule_asks_for_its_own_number_of_keys() -> None:
    trust = sealed(a_bundle(1, by(DEPUTY, SECOND, threshold=2)))
    successor = a_bundle(2)
    alone = dsse.add_signature(key(DEPUTY), successor)
    with pytest.raises(TooFewSignatures):
        trust.succeed(successor, alone)
    both = dsse.add_signature(key(SECOND), successor, alone)
    assert len(trust.succeed(successor, both).require_current().signed_by) == 2


def test_a_successor_by_the_trust_root_needs_the_roots_threshold() -> None:
    root = a_root(threshold=2)
    first, second = a_bundle(1), a_bundle(2)
    envelopes = [
        dsse.add_signature(key(SECOND), data, dsse.add_signature(key(OWNER), data)) for data in (first, second)
    ]
    trust = Trust.empty(root).admit(first, envelopes[0]).seal(sha256(first).hexdigest())
    with pytest.raises(TooFewSignatures):
        trust.succeed(second, signed(second))
    assert version_of(trust.succeed(second, envelopes[1])) == 2


def test_nothing_succeeds_before_the_seal() -> None:
    first, second = a_bundle(1), a_bundle(2)
    empty = Trust.empty(a_root())
    for trust in (empty, empty.admit(first, signed(first)), Trust.resume(a_root(), sha256(first).hexdigest())):
        with pytest.raises(NothingVerified):
            trust.succeed(second, signed(second))
    with pytest.raises(NothingVerified):
        empty.require_current()


def test_a_bundle_whose_rule_cannot_be_kept_is_not_admitted() -> None:
    pem = keys.public_pem(key(DEPUTY).public()).decode()
    spoilt = pem.replace(pem.splitlines()[1][:8], "AAAAAAAA")
    first = a_bundle(1, SuccessorRule((NamedKey("a", spoilt),), 1))
    with pytest.raises(MalformedBundle, match="successor"):
        Trust.empty(a_root()).admit(first, signed(first))
    trust = sealed(a_bundle(1))
    second = a_bundle(2, SuccessorRule((NamedKey("a", spoilt),), 1))
    with pytest.raises(MalformedBundle, match="successor"):
        trust.succeed(second, signed(second))


def test_one_key_cannot_pass_for_two_by_its_spelling() -> None:
    private = keys.generate(Algorithm.ECDSA_P256)
    point = private.public().subject_public_key_info[-64:]
    prefix = bytes.fromhex("3039301306072a8648ce3d020106082a8648ce3d030107032200") + bytes([2 + point[-1] % 2])
    compressed = keys.public_pem(keys.PublicKey(Algorithm.ECDSA_P256, prefix + point[:32])).decode()
    assert keys.load_public(compressed.encode()) == private.public()
    plain = keys.public_pem(private.public()).decode()
    rule = SuccessorRule((NamedKey("a", plain), NamedKey("b", compressed)), 2)
    first = a_bundle(1, rule)
    with pytest.raises(MalformedBundle, match="another spelling"):
        Trust.empty(a_root()).admit(first, signed(first))


def resumed(first: bytes, accepted: Accepted) -> Trust:
    return Trust.resume(a_root(), sha256(first).hexdigest(), accepted).admit(first, signed(first))


def test_a_restarted_agent_has_the_newest_of_the_chain_or_nothing() -> None:
    first, second, third = a_bundle(1), a_bundle(2), a_bundle(3)
    accepted = Accepted(sha256(third).hexdigest(), 3, 2)
    trust = resumed(first, accepted)
    assert trust.current is None
    with pytest.raises(SuccessorMissing, match="found a chain of 0"):
        trust.require_current()
    trust = trust.succeed(second, signed(second))
    assert trust.current is None
    with pytest.raises(SuccessorMissing):
        trust.require_current()
    trust = trust.succeed(third, signed(third))
    assert version_of(trust) == 3
    assert trust.accepted == accepted


def test_another_chain_than_the_accepted_one_is_refused() -> None:
    first, second, other = a_bundle(1), a_bundle(2), a_bundle(2, text="other")
    trust = resumed(first, Accepted(sha256(second).hexdigest(), 2, 1))
    with pytest.raises(NotTheAcceptedSuccessor, match="digest"):
        trust.succeed(other, signed(other))
    lying = resumed(first, Accepted(sha256(second).hexdigest(), 7, 1))
    with pytest.raises(NotTheAcceptedSuccessor, match="version"):
        lying.succeed(second, signed(second))


def test_the_first_bundle_again_is_no_way_back() -> None:
    first, second = a_bundle(1), a_bundle(2)
    trust = sealed(first).succeed(second, signed(second))
    assert trust.admit(first, signed(first)) == trust


@pytest.mark.parametrize(("digest", "version", "number"), [("", 2, 1), ("0" * 64, 0, 1), ("0" * 64, 2, 0)])
def test_a_damaged_record_is_not_taken_for_none(digest: str, version: int, number: int) -> None:
    with pytest.raises(MalformedSeal):
        Accepted(digest, version, number)


RULES: dict[str, SuccessorRule | None] = {"none": None, "root": BY_ROOT, "deputy": BY_DEPUTY}
MAY_SIGN = {"none": set[str](), "root": {OWNER, SECOND}, "deputy": {DEPUTY}}


class Boot(RuleBasedStateMachine):
    """One boot in which anybody hands in anything in any order, and the agent dies between any two steps.

    ``history`` is what a fair judge has seen accepted: (version, rule, bytes, signature). The kernel holds the first
    digest and the last record.
    """

    @initialize(version=st.integers(1, 3), successor=st.sampled_from(sorted(RULES)))
    def begin(self, version: int, successor: str) -> None:
        """Seal."""
        first = a_bundle(version, RULES[successor])
        self.trust = sealed(first)
        self.history = [(version, successor, first, signed(first))]

    @rule(
        version=st.integers(1, 12),
        successor=st.sampled_from(sorted(RULES)),
        signer=st.sampled_from([OWNER, DEPUTY, SECOND, STRANGER]),
        name=st.sampled_from(["vault", "vault", "vault", "other"]),
    )
    def submit(self, version: int, successor: str, signer: str, name: str) -> None:
        """Hand in a new bundle, rightly signed or not."""
        data = a_bundle(version, RULES[successor], name)
        present, present_rule, *_ = self.history[-1]
        in_force = self.trust.current is not None
        allowed = signer in MAY_SIGN[present_rule] and version > present and name == "vault"
        try:
            following = self.trust.succeed(data, signed(data, signer))
        except TrustError:
            assert not (allowed and in_force)
            return
        if in_force:
            assert allowed
            self.history.append((version, successor, data, signed(data, signer)))
        self.trust = following

    @rule(index=st.integers(0, 20))
    def hand_in_something_old(self, index: int) -> None:
        """Replay, in whatever state the agent is."""
        _, _, data, signature = self.history[index % len(self.history)]
        for attempt in (self.trust.succeed, self.trust.admit):
            try:
                self.trust = attempt(data, signature)
            except TrustError:
                continue

    @rule()
    def restart(self) -> None:
        """Kill the agent: what the next one knows is what the kernel has."""
        version, _, data, _ = self.history[-1]
        number = len(self.history) - 1
        accepted = Accepted(sha256(data).hexdigest(), version, number) if number else None
        self.trust = Trust.resume(a_root(), sha256(self.history[0][2]).hexdigest(), accepted)

    @precondition(lambda self: self.trust.current is None)
    @rule(kept=st.integers(0, 20))
    def take_up(self, kept: int) -> None:
        """Give a restarted agent the chain, or only the beginning of it."""
        trust = self.trust
        try:
            for place, (_, _, data, signature) in enumerate(self.history[: kept + 1]):
                trust = trust.succeed(data, signature) if place else trust.admit(data, signature)
        except TrustError:
            return  # what was handed in before was part of it
        self.trust = trust

    @invariant()
    def the_bundle_in_force_is_the_last_that_was_rightly_accepted(self) -> None:
        """That bundle, or none at all and an error that says so."""
        if not hasattr(self, "trust"):
            return
        assert self.trust.stage is Stage.SEALED
        current = self.trust.current
        if current is None:
            with pytest.raises(TrustError):
                self.trust.require_current()
        else:
            assert current.digest == sha256(self.history[-1][2]).hexdigest()


TestBoot = Boot.TestCase
TestBoot.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
