# SPDX-License-Identifier: Apache-2.0
"""What is fuzzed: for each target, what is done with the bytes, and the bytes to begin with.

The keys are fixed, so that a corpus of one run is worth something in the next. Two of them never sign anything:
whatever is accepted under those alone, or with one more signer than there is, is a forgery.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from functools import cache, partial
from hashlib import sha256
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from guest_agent.api import hook_socket
from guest_agent.engines.nftables import nflog_packets
from guest_agent.network import names
from guest_agent.trust import Trust, TrustError, TrustRoot
from guest_agent.trust import verify as verify_bundle
from guest_agent.workloads import oci_state
from hauberk.bundle import (
    PolicyFile,
    SignatureError,
    SigningKeyError,
    canonical,
    create,
    document,
    dsse,
    keys,
    signatures,
    sigstore,
)
from hauberk.policy import explain, models, normalise, peers
from hauberk.policy.rules import RuleSet
from tests.fuzz.properties import FindingError, check_text, ensure, possible_signatures, refuses_or
from tests.unit.agent import dns_messages
from tests.unit.policy import documents_of_each_kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import ModuleType

REPOSITORY = Path(__file__).parents[2]
HOOK = REPOSITORY / "hooks/hauberk-hook"
_TWICE = 16
"""Of 256 inputs so many are read twice: reading policies is slow."""
LONGEST_OF_A_KEY = 72
"""Characters of a key file that a text may hold: the label of a PEM block, quoted."""


@dataclass(frozen=True, slots=True)
class Target:
    """One thing that is fuzzed. ``run`` raises if the bytes made it do what it must not do."""

    name: str
    run: Callable[[bytes], None]
    seeds: Callable[[], Iterable[bytes]]


def _p256(secret: int) -> keys.PrivateKey:
    return keys.PrivateKey(keys.Algorithm.ECDSA_P256, ec.derive_private_key(secret, ec.SECP256R1()))


def _ed25519(secret: bytes) -> keys.PrivateKey:
    return keys.PrivateKey(keys.Algorithm.ED25519, ed25519.Ed25519PrivateKey.from_private_bytes(secret))


@dataclass(frozen=True)
class World:
    """Keys and signed bytes."""

    data: bytes
    first: keys.PrivateKey
    second: keys.PrivateKey
    never: tuple[keys.PublicKey, ...]
    root: TrustRoot
    forms: tuple[bytes, ...]


@cache
def world() -> World:
    """Make them once."""
    data = create("fuzz", 1, (PolicyFile("a.yaml", "x: 1\n"),))
    first, second = _p256(0x46757A7A), _ed25519(b"fuzz".ljust(32, b"\1"))
    never = (_p256(0x4E65766572).public(), _ed25519(b"never".ljust(32, b"\2")).public())
    entries = [("first", first.public()), ("second", second.public())]
    root = {
        "apiVersion": "hauberk/v1",
        "kind": "TrustRoot",
        "keys": [{"name": name, "publicKey": keys.public_pem(key).decode()} for name, key in entries],
        "bundle": {"name": "fuzz", "minimumVersion": 1},
        "threshold": 1,
    }
    by_first = dsse.add_signature(first, data)
    forms = (
        signatures.sign(first, data),
        base64.b64encode(signatures.sign(first, data)),
        signatures.sign(second, data),
        base64.encodebytes(signatures.sign(second, data)),
        sigstore.sign(first, data),
        sigstore.sign(second, data),
        by_first,
        dsse.add_signature(second, data, by_first),
    )
    return World(data, first, second, never, TrustRoot.load(json.dumps(root).encode()), forms)


@cache
def hook() -> ModuleType:
    """Load the hook, which is a file without a suffix, as a module."""
    loader = SourceFileLoader("hauberk_hook_under_fuzzing", str(HOOK))
    spec = spec_from_loader(loader.name, loader)
    if spec is None:
        message = f"{HOOK} cannot be loaded"
        raise FindingError(message)
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


# ---- policies ------------------------------------------------------------------------------------------------------


def policies(data: bytes) -> None:
    """Read policy documents, and bring those that are valid to their normal form."""
    found, problems = models.examine([("policy.yaml", data)])
    for problem in problems:
        check_text(str(problem), data)
    for policy in found:
        refuses_or(partial(_normal_form, policy), data)
    if sha256(data).digest()[0] < _TWICE:
        again = models.examine([("policy.yaml", data)])
        ensure(len(again[0]) == len(found) and again[1] == problems, "the same bytes are read in two ways")


def _normal_form(policy: models.Policy) -> object:
    return normalise.selector(policy.model), normalise.rules(policy)


def _policy_files() -> Iterator[bytes]:
    for text in documents_of_each_kind.ALL:
        yield text.encode()
    for directory in ("examples", "tests/data", "tests/demo"):
        for path in sorted((REPOSITORY / directory).rglob("*.y*ml")):
            yield path.read_bytes()


def questions(data: bytes) -> None:
    """Read a question as ``hauberk policy explain`` takes it from a file, and answer it."""
    line = data.decode("utf-8", "replace")
    question = refuses_or(lambda: explain.parse_question(line), line.encode())
    if question is not None:
        refuses_or(lambda: explain.as_json(_explainer().ask(question)), line.encode())


@cache
def _explainer() -> explain.Explainer:
    texts = [(f"{index}.yaml", text.encode()) for index, text in enumerate(documents_of_each_kind.ALL)]
    rules = tuple(rule for policy in models.examine(texts)[0] for rule in normalise.rules(policy))
    return explain.Explainer(RuleSet(rules))


def _questions() -> Iterator[bytes]:
    for operation, asked in (
        ("execute", "/bin/sh"), ("read", "/etc/shadow"), ("write", "/var/log/x"), ("map", "/lib/x.so"),
        ("socket", "raw/icmp"), ("resolve", "www.example.com"), ("capability", "net_raw"),
        ("syscall", "unlink /etc/passwd"), ("preset", "filelessExec"), ("attach", "8/6/80@2"),
        ("receive", "10.0.0.1 tcp/443 on eth0"), ("send", "fe80::1 udp/53"),
    ):  # fmt: skip
        yield json.dumps({"operation": operation, "object": asked, "source": "/usr/bin/nginx"}).encode()
    yield json.dumps(
        {
            "operation": "execute",
            "path": "/bin/sh",
            "parent": "/sbin/init",
            "uid": 0,
            "ownerUid": 0,
            "arguments": ["-c"],
            "terminal": True,
            "beyondQuota": False,
        }
    ).encode()


# ---- bundles -------------------------------------------------------------------------------------------------------


def bundles(data: bytes) -> None:
    """Parse a bundle: what is accepted is written again byte for byte."""
    bundle = refuses_or(lambda: document.parse(data), data)
    if bundle is not None:
        ensure(bundle.encode() == data, "an accepted bundle has a second spelling")
        ensure(bundle.digest == sha256(data).hexdigest(), "the digest is of something else")


def _bundles() -> Iterator[bytes]:
    here = world()
    yield here.data
    yield (REPOSITORY / "tests/data/signatures/cosign/vault.bundle").read_bytes()
    yield create("a", 2**31 - 1, (PolicyFile("a/b.yml", "é\n"), PolicyFile("ü.yaml", "")), "audit", "allow")
    plain = {**json.loads(here.data), "version": 8}
    named = [
        {"name": name, "publicKey": keys.public_pem(key).decode()} for name, key in zip("ab", here.never, strict=True)
    ]
    for terms in (
        {"successor": {"signedBy": "trustRoot"}, "expires": "2027-01-31T00:00:00Z"},
        {"successor": {"keys": named, "threshold": 2}, "target": {"labels": {"app": "web"}}},
        {"target": {"imageDigests": ["sha256:" + "0" * 64]}},
        {"posture": {"file": "block", "network": "audit", "capabilities": "allow", "device": "block"}},
    ):
        yield canonical.encode({**plain, **terms})


def signature_files(data: bytes) -> None:
    """Verify a signature file: nobody signs who did not, and nobody twice."""
    here = world()
    able = (here.first.public(), here.second.public())
    found = refuses_or(lambda: signatures.verify_any((*here.never, *able), 1, here.data, data), data)
    for key in found or ():
        ensure(key in able, "a key that never signs has signed")
        ensure(_has_signed(key, here.data, data), "accepted without a signature")
    if found is not None:
        ensure(len(set(found)) == len(found), "one key counts twice")
    for known, threshold in ((here.never, 1), ((*able, *here.never), 3), ((able[0], here.never[0]), 2)):
        forged = refuses_or(partial(signatures.verify_any, known, threshold, here.data, data), data)
        ensure(forged is None, "more have signed than can")


def _has_signed(key: keys.PublicKey, signed: bytes, file: bytes) -> bool:
    """Tell whether a signature by the key is in a file, by the library alone."""
    handle = key.handle()
    encoded = b"DSSEv1 35 application/vnd.hauberk.bundle+json %d %b" % (len(signed), signed)
    for candidate in possible_signatures(file):
        for message in (signed, encoded):
            try:
                if isinstance(handle, ed25519.Ed25519PublicKey):
                    handle.verify(candidate, message)
                else:
                    handle.verify(candidate, message, ec.ECDSA(hashes.SHA256()))
            except InvalidSignature:
                continue
            return True
    return False


def signed_bytes(data: bytes) -> None:
    """Verify a signature that is good, over bytes that are not those that were signed."""
    here = world()
    form = here.forms[sha256(data).digest()[0] % len(here.forms)]
    try:
        verify_bundle(here.root, data, form)
    except TrustError as error:
        check_text(str(error), data)
    else:
        ensure(data == here.data, "a signature fits other bytes")


def signed_anything(data: bytes) -> None:
    """Sign whatever it is, and hand it in as the first bundle and as a successor: a signature replaces no check."""
    here = world()
    signature = signatures.sign(here.second, data)
    first = refuses_or(lambda: Trust.empty(here.root).admit(data, signature), data, (TrustError,))
    if first is not None:
        bundle = document.parse(data)
        ensure(bundle.name == here.root.bundle_name, "a bundle of another name is accepted")
        ensure(bundle.version >= here.root.minimum_version, "a bundle below the floor is accepted")
        ensure(first.digest == sha256(data).hexdigest(), "accepted is another bundle than was given")
    sealed = _sealed()
    before = sealed.require_current().bundle.version
    after = refuses_or(lambda: sealed.succeed(data, signature), data, (TrustError,))
    if after is not None:
        bundle = after.require_current().bundle
        ensure(bundle.name == here.root.bundle_name, "a successor of another name is accepted")
        ensure(bundle.version > before, "a successor that is not newer is accepted")
        ensure(bundle.digest == sha256(data).hexdigest(), "in force is another bundle than was given")


@cache
def _sealed() -> Trust:
    data = canonical.encode({**json.loads(world().data), "version": 7, "successor": {"signedBy": "trustRoot"}})
    trust = Trust.empty(world().root).admit(data, signatures.sign(world().first, data))
    return trust.seal(sha256(data).hexdigest())


def envelopes_added_to(data: bytes) -> None:
    """Add a signature to an envelope: the result is one, whatever was there is kept."""
    here = world()
    made = refuses_or(lambda: dsse.add_signature(here.second, here.data, data), data, (SignatureError,))
    if made is not None:
        key = here.second.public()
        ensure(signatures.verify_any((key,), 1, here.data, made) == (key,), "one's own signature does not verify")
        before, after = json.loads(data)["signatures"], json.loads(made)["signatures"]
        ensure(after[: len(before)] == before, "signatures of others were changed")


def _signature_files() -> Iterator[bytes]:
    yield from world().forms
    for path in sorted((REPOSITORY / "tests/data/signatures").rglob("*.json")):
        yield path.read_bytes()


def trust_roots(data: bytes) -> None:
    """Read a trust root: what is accepted asks for at least one key, and for no more than it has."""
    root = refuses_or(lambda: TrustRoot.load(data), data, (TrustError,))
    if root is not None:
        distinct = {key.public for key in root.keys}
        ensure(len(distinct) == len(root.keys), "a key counts twice")
        ensure(1 <= root.threshold <= len(distinct), "a threshold that is always or never reached")
        ensure(root.minimum_version >= 1, "a floor below the first version")


def _trust_roots() -> Iterator[bytes]:
    here = world()
    entries = [{"name": key.name, "publicKey": keys.public_pem(key.public).decode()} for key in here.root.keys]
    root = {
        "apiVersion": "hauberk/v1",
        "kind": "TrustRoot",
        "keys": entries,
        "bundle": {"name": "fuzz", "minimumVersion": 1},
    }
    yield json.dumps(root).encode()
    yield json.dumps({**root, "threshold": 2}).encode()


def key_files(data: bytes) -> None:
    """Read a key file, public or private; no text may hold anything of a key."""
    for load in (keys.load_public, keys.load_private):
        try:
            load(data)
        except SigningKeyError as error:
            check_text(str(error), data, LONGEST_OF_A_KEY)


def _key_files() -> Iterator[bytes]:
    here = world()
    for key in (here.first, here.second):
        yield keys.public_pem(key.public())
        yield keys.private_pem(key)
    yield keys.private_pem(here.second, b"passphrase")


# ---- hooks ---------------------------------------------------------------------------------------------------------


def hook_requests(data: bytes) -> None:
    """Take a request apart as the agent's socket does."""
    size = hook_socket.HEADER.size
    found = refuses_or(lambda: hook_socket.decode_request_header(data[:size]), data, (hook_socket.FrameError,))
    if found is not None and found[1] == len(data) - size:
        stage, _ = found
        ensure(hook_socket.encode_request(stage, data[size:]) == data, "a request has a second spelling")
        oci_states(data[size:])


def _hook_requests() -> Iterator[bytes]:
    for stage in hook_socket.Stage:
        for state in _oci_states():
            yield hook_socket.encode_request(stage, state)


def oci_states(data: bytes) -> None:
    """Parse an OCI state: the hook, which reads a refused one too, never finds another container in it."""
    state = refuses_or(lambda: oci_state.parse(data), data, (oci_state.OciStateError,))
    members = hook().leading_members(bytearray(data))
    ensure(isinstance(members, dict), "the hook found no members")
    if state is not None:
        ensure(members.get("id") == state.id, "hook and agent read two ids")
        ensure((members.get("pid") or None) == state.pid, "hook and agent read two pids")


def _oci_states() -> Iterator[bytes]:
    state = {"ociVersion": "1.0.2", "id": "abc", "status": "created", "pid": 42, "bundle": "/run/b"}
    yield json.dumps(state).encode()
    yield json.dumps({**state, "annotations": {"a/b": "c"}, "root": "/x", "owner": ""}, indent=1).encode()
    yield json.dumps({**state, "status": "", "pid": 0, "annotations": None}).encode()
    yield json.dumps({"id": "a", "bundle": "/"}).encode()


def hook_answers(data: bytes) -> None:
    """Parse an answer as the hook does, and as the agent's own code does: they agree on what was accepted."""
    try:
        answer = hook().parse_answer(data)
    except ValueError:
        answer = None
    strict = refuses_or(lambda: hook_socket.decode_answer(data), data, (hook_socket.FrameError,))
    expected = None if strict is None else (strict.accepted, strict.message)
    ensure(answer == expected, f"two readings of one answer: {answer!r} and {expected!r}")


def _hook_answers() -> Iterator[bytes]:
    for accepted in (True, False):
        for message in ("", "no policy covers it", "é" * 100):
            yield hook_socket.encode_answer(hook_socket.HookAnswer(accepted, message))


# ---- network -------------------------------------------------------------------------------------------------------


def resolver_answers(data: bytes) -> None:
    """Read a resolver's answer: it says nothing that is not in it, and cut no more than whole."""
    answer = names.read(data)
    if answer is None:
        return
    ensure(peers.name_matches("*", answer.name), "a name that no pattern can match")
    ensure(answer.addresses, "an answer without addresses")
    for text, seconds in answer.addresses:
        address = ip_address(text)
        ensure(str(address) == text, "an address has a second spelling")
        ensure(address.packed in data, "an address that is not in the answer")
        ensure(0 <= seconds <= names.MAXIMUM_SECONDS, "a time that is none")
    whole = dict(answer.addresses)
    cut = names.read(data[: sha256(data).digest()[0] * len(data) // 256])
    for text, seconds in () if cut is None else cut.addresses:
        ensure(text in whole and seconds >= whole[text], "a cut answer says more than the whole one")


def _resolver_answers() -> Iterator[bytes]:
    address, alias, asked = dns_messages.address, dns_messages.alias, dns_messages.QUESTION
    name = dns_messages.name
    yield dns_messages.message("www.example.com", dns_messages.A, address(asked, "192.0.2.1", 60))
    yield dns_messages.message("www.example.com", dns_messages.AAAA, address(asked, "2001:db8::1", 60))
    yield dns_messages.message(
        "www.example.com",
        dns_messages.ANY,
        alias(asked, "b.example.net", 30),
        address(name("b.example.net"), "192.0.2.1", 60),
        address(name("b.example.net"), "2001:db8::1", 20),
        address(b"\1c" + dns_messages.pointer(16), "192.0.2.2"),
    )


def logged_packets(data: bytes) -> None:
    """Read a packet as the kernel logs it: nothing raises, and less of it never says another thing."""
    packet = nflog_packets.parse(data)
    if packet is None:
        return
    for address in (packet.source, packet.destination):
        ip_address(address)
    ports = (packet.source_port, packet.destination_port)
    ensure(all(port is None or 0 <= port < 1 << 16 for port in ports), "a port that is none")
    ensure(packet.payload in data, "bytes that were not there")
    cut = nflog_packets.parse(data[: sha256(data).digest()[0] * len(data) // 256])
    if cut is not None:
        ensure(packet.payload.startswith(cut.payload), "another payload")
        ensure({cut.source_port, cut.destination_port} <= {None, *ports}, "other ports")


def _logged_packets() -> Iterator[bytes]:
    from tests.unit.engines.nftables import test_adapter_packets as packets  # noqa: PLC0415 - for its examples

    yield from packets.WHOLE
    yield packets.ipv6(0, bytes([44, 0]) + bytes(6) + bytes([17, 0]) + bytes(6) + packets.udp(b"answer"))


TARGETS = {
    target.name: target
    for target in (
        Target("policies", policies, _policy_files),
        Target("questions", questions, _questions),
        Target("bundles", bundles, _bundles),
        Target("signature-files", signature_files, _signature_files),
        Target("signed-bytes", signed_bytes, _bundles),
        Target("signed-anything", signed_anything, _bundles),
        Target("envelopes-added-to", envelopes_added_to, _signature_files),
        Target("trust-roots", trust_roots, _trust_roots),
        Target("key-files", key_files, _key_files),
        Target("hook-requests", hook_requests, _hook_requests),
        Target("oci-states", oci_states, _oci_states),
        Target("hook-answers", hook_answers, _hook_answers),
        Target("resolver-answers", resolver_answers, _resolver_answers),
        Target("logged-packets", logged_packets, _logged_packets),
    )
}
