# SPDX-License-Identifier: Apache-2.0
"""Which of the bundle's policies a container gets: from its annotations to a rule set.

Where the names come from, as container managers really set them in ``config.json``:

* containerd (CRI): ``io.kubernetes.cri.container-name``, ``.container-type``, ``.sandbox-name``,
  ``.sandbox-namespace``, ``.image-name``; Kata's guest sees the same. Pod labels are not among them unless somebody
  stamps them.
* CRI-O: the kubelet's labels ``io.kubernetes.container.name``, ``io.kubernetes.pod.name``,
  ``io.kubernetes.pod.namespace``, ``io.kubernetes.cri-o.{ContainerType,ImageName}``, and
  ``io.kubernetes.cri-o.Labels``, a JSON object of labels.
* Anybody else (runc, crun, podman), and the NRI plugin for pod labels: ``io.hauberk.label.KEY`` = label KEY,
  ``io.hauberk.namespace``, ``io.hauberk.name``, ``io.hauberk.container-name``, ``io.hauberk.image-digest``. A plain
  container without a name is named by its id, which its operator chose.
* The digest of the image: the one that an image name ends with (``name@sha256:…``), or ``io.hauberk.image-digest``.

All of these are chosen by whoever starts the container. Selecting by them protects at best as the weakest policy of
the bundle does; two annotations that contradict each other refuse the container instead of letting one win.

A bundle's target narrows whom its policies are for. It is compared with the same announced names, so it protects
against mistakes and not against whoever starts containers: a digest counts for more only where the guest itself pulled
the image by it. A container outside the target, or whose digest is not known, is one that no policy covers.

A container that no policy covers gets the bundle's default: ``deny`` refuses it, ``allow`` registers it without
rules, ``audit`` registers it and tells each program it starts. A policy of which no engine enforces anything covers
nobody: it would take a container out of the default and protect it from nothing. One with network rules alone covers:
the container has these and may execute what it likes, as its author says.

A container's rules come in two sets, since two engines hold them: those about paths, and those about packets. The host
has rules about packets only, from the policies for hosts; the target is about containers.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Final

from guest_agent.workloads.interchange import pairs, requirements, requirements_to_json, rule_from_json, texts
from hauberk.policy.coverage import Unenforced
from hauberk.policy.rules import (
    PACKET_SECTIONS,
    POSTURES,
    Action,
    ObjectKind,
    Operation,
    Origin,
    Rule,
    RuleSet,
    Section,
    Verdict,
    join,
)
from hauberk.policy.selectors import Scope, Selector, WorkloadIdentity

if TYPE_CHECKING:
    from collections.abc import Mapping

LABEL_PREFIX: Final = "io.hauberk.label."
_NAMESPACES: Final = (
    "io.kubernetes.cri.sandbox-namespace", "io.kubernetes.pod.namespace", "io.kubernetes.cri-o.Namespace",
)  # fmt: skip
_PODS: Final = ("io.kubernetes.cri.sandbox-name", "io.kubernetes.pod.name", "io.kubernetes.cri-o.KubeName")
_CONTAINERS: Final = ("io.kubernetes.cri.container-name", "io.kubernetes.container.name")
_IMAGES: Final = ("io.kubernetes.cri.image-name", "io.kubernetes.cri-o.ImageName")
_MANAGED: Final = (
    "io.kubernetes.cri.", "io.kubernetes.pod.", "io.kubernetes.container.", "io.kubernetes.cri-o.KubeName",
)  # fmt: skip
"""What a Kubernetes runtime sets. podman sets ``io.kubernetes.cri-o.Created`` and others on containers of no pod."""
_CRIO_LABELS: Final = "io.kubernetes.cri-o.Labels"
_OWN_NAMESPACE: Final = "io.hauberk.namespace"
_OWN_NAME: Final = "io.hauberk.name"
_OWN_CONTAINER: Final = "io.hauberk.container-name"
_OWN_DIGEST: Final = "io.hauberk.image-digest"
_NAMED_DIGEST: Final = re.compile(r"@(sha256:[0-9a-f]{64})\Z")
_SHOWN: Final = 5
NO_PACKETS: Final = RuleSet(())
"""No rules about packets."""


class SelectionError(Exception):
    """The container gets no rule set and must be refused. The message says why."""


@dataclass(frozen=True, slots=True)
class Policy:
    """One policy of the bundle in the normal form, and whom it selects.

    ``rules`` are what an engine is to hold of it; ``unenforced`` counts the rules that none enforces as they are
    written.
    """

    name: str
    namespace: str
    selector: Selector
    rules: tuple[Rule, ...]
    unenforced: int = 0


@dataclass(frozen=True, slots=True)
class Target:
    """Whom a bundle's policies are for: containers of one of these images, or with all of these labels."""

    image_digests: frozenset[str] = frozenset()
    labels: tuple[tuple[str, str], ...] = ()

    def covers(self, identity: WorkloadIdentity) -> bool:
        """Whether a container is among them; one whose digest is not known is not."""
        if self.image_digests:
            return identity.image_digest in self.image_digests
        return all(identity.labels.get(key) == value for key, value in self.labels)


@dataclass(frozen=True, slots=True)
class Succession:
    """What the bundle in force says of its successor and its end, and how it came to be in force.

    ``rule`` is the successor rule in words, "" where none is allowed; ``number`` counts the successors so far;
    ``weaker`` says that a successor needs fewer signatures than the trust root asks for.
    """

    rule: str = ""
    number: int = 0
    expires: str = ""
    weaker: bool = False


@dataclass(frozen=True, slots=True)
class PolicySet:
    """A verified bundle's content, as far as the agent needs it. ``default`` is "deny", "audit" or "allow".

    ``unenforced`` has the first rules that no engine enforces as they are written; the policies' counts have all.
    ``posture`` is what is enforced for programs and files; ``postures`` are the words for all classes, of which
    ``network`` is enforced for packets.
    """

    digest: str
    name: str
    version: int
    default: str
    posture: Verdict
    signed_by: str
    policies: tuple[Policy, ...]
    unenforced: tuple[Unenforced, ...] = ()
    postures: tuple[tuple[str, str], ...] = ()
    target: Target | None = None
    succession: Succession = Succession()

    @property
    def packet_postures(self) -> tuple[tuple[Section, Verdict], ...]:
        """The posture of packets where the bundle says one; otherwise they follow files, as in every rule set."""
        word = dict(self.postures).get(Section.NETWORK.value)
        return ((Section.NETWORK, POSTURES[word]),) if word in POSTURES else ()

    @property
    def unenforced_count(self) -> int:
        """How many rules no engine enforces as they are written."""
        return sum(policy.unenforced for policy in self.policies)

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> PolicySet:
        """Read what ``guest_agent.parsing`` writes. Raises ValueError."""
        version, policies, posture = value.get("version"), value.get("policies"), value.get("posture")
        if type(version) is not int or not isinstance(policies, list) or str(posture) not in POSTURES:
            message = "found no policy set, expected one with version, posture and policies"
            raise ValueError(message)
        default = str(value.get("default"))
        if default not in ("deny", "audit", "allow"):
            message = f"found default {default!r}, expected deny, audit or allow"
            raise ValueError(message)
        return cls(
            digest=str(value.get("digest")),
            name=str(value.get("name")),
            version=version,
            default=default,
            posture=POSTURES[str(posture)],
            signed_by=str(value.get("signedBy")),
            policies=tuple(_policy(policy) for policy in policies),
            unenforced=_unenforced(value.get("unenforced")),
            postures=pairs(value.get("postures")),
            target=_target(value.get("target")),
            succession=_succession(value.get("succession")),
        )


@dataclass(frozen=True, slots=True)
class Selection:
    """The rules of one container and the policies they are from; no policies: the bundle's default.

    ``rule_set`` is about paths, ``packets`` about packets; ``unenforced`` counts the rules of all policies that select
    the container and that no engine enforces as written.
    """

    rule_set: RuleSet
    policies: tuple[str, ...]
    unenforced: int = 0
    packets: RuleSet = NO_PACKETS


def identify(annotations: Mapping[str, str], container_id: str) -> WorkloadIdentity:
    """Read a container's identity from its annotations. Raises SelectionError when they contradict each other."""
    managed = any(key.startswith(_MANAGED) for key in annotations)
    labels = {
        key.removeprefix(LABEL_PREFIX): value
        for key, value in annotations.items()
        if key.startswith(LABEL_PREFIX) and key != LABEL_PREFIX
    }
    for key, value in _crio_labels(annotations).items():
        if labels.setdefault(key, value) != value:
            message = f"label {key} has two values in the annotations, expected one; correct {LABEL_PREFIX}{key}"
            raise SelectionError(message)
    container = _one(annotations, (*_CONTAINERS, _OWN_CONTAINER))
    image = _one(annotations, _IMAGES)
    return WorkloadIdentity(
        name=_one(annotations, (*_PODS, _OWN_NAME)),
        namespace=_one(annotations, (*_NAMESPACES, _OWN_NAMESPACE)),
        labels=labels,
        container_name=container or ("" if managed else container_id),
        image=image,
        image_digest=_digest(image, annotations.get(_OWN_DIGEST, "")),
    )


def select(policy_set: PolicySet, identity: WorkloadIdentity) -> Selection:
    """Choose the policies of a container and join their rules (not resolved yet).

    Raises SelectionError when no policy covers it and the bundle's default is deny.
    """
    selecting = selected_by(policy_set, identity)
    unenforced = sum(policy.unenforced for policy in selecting)
    covering = [policy for policy in selecting if policy.rules]
    if covering:
        rules = [rule for policy in covering for rule in policy.rules]
        rule_set = join((rule for rule in rules if rule.section not in PACKET_SECTIONS), policy_set.posture)
        names = tuple(policy.name for policy in covering)
        return Selection(rule_set, names, unenforced, _packets(policy_set, rules))
    match policy_set.default:
        case "allow":
            return Selection(RuleSet((), Verdict.ALLOW), (), unenforced)
        case "audit":
            return Selection(RuleSet((_audited(policy_set),), Verdict.AUDIT), (), unenforced)
        case _:
            raise SelectionError(_uncovered(policy_set, identity, selecting))


def selected_by(policy_set: PolicySet, identity: WorkloadIdentity) -> list[Policy]:
    """Give the policies that select a container, or the host; nobody outside of a bundle's target is selected."""
    if not identity.host and policy_set.target is not None and not policy_set.target.covers(identity):
        return []
    return [policy for policy in policy_set.policies if policy.selector.matches(policy.namespace, identity)]


def host_packets(policy_set: PolicySet, host: WorkloadIdentity) -> RuleSet:
    """Give the rules about packets of the machine itself."""
    return _packets(policy_set, [rule for policy in selected_by(policy_set, host) for rule in policy.rules])


def _packets(policy_set: PolicySet, rules: list[Rule]) -> RuleSet:
    held = tuple(rule for rule in rules if rule.section in PACKET_SECTIONS)
    return RuleSet(held, policy_set.posture, policy_set.packet_postures)


def _uncovered(policy_set: PolicySet, identity: WorkloadIdentity, selecting: list[Policy]) -> str:
    """Say why a container is refused that gets no rules."""
    container = f"container {identity.container_name or '(unnamed)'} in namespace {identity.namespace or '(none)'}"
    if selecting:
        names = ", ".join(policy.name for policy in selecting[:_SHOWN])
        return (
            f"{container} is covered only by policies of which no engine enforces any rule ({names}), and the default "
            f"of bundle {policy_set.name} is deny; add a policy with rules that are enforced here and that selects it, "
            "or sign a bundle with another default"
        )
    if policy_set.target is not None and not policy_set.target.covers(identity):
        found = identity.image_digest or "unknown"
        return (
            f"{container} (image digest {found}) is outside the target of bundle {policy_set.name}, and the bundle's "
            "default is deny; start an image that the target names, by its digest, or sign a bundle for this one"
        )
    return (
        f"no policy of bundle {policy_set.name} covers {container}, and the bundle's default is deny; add a policy "
        "that selects it, or correct the container's labels"
    )


def _audited(policy_set: PolicySet) -> Rule:
    """Give the rule of the default "audit": every program start is told, nothing is refused."""
    return Rule(
        Section.PROCESS,
        ObjectKind.DIRECTORY,
        "/",
        Action.AUDIT,
        Origin(policy=f"(default of bundle {policy_set.name})", field="default"),
        recursive=True,
        operations=(Operation.EXECUTE,),
        message="no policy covers this workload",
    )


def _one(annotations: Mapping[str, str], keys: tuple[str, ...]) -> str:
    """Give the one value that several annotations agree on, "" when none is set."""
    found = {annotations[key] for key in keys if annotations.get(key)}
    if len(found) > 1:
        present = ", ".join(key for key in keys if annotations.get(key))
        message = f"the annotations {present} contradict each other, expected one value"
        raise SelectionError(message)
    return found.pop() if found else ""


def _digest(image: str, announced: str) -> str:
    """Give the digest of a container's image, "" when it is not known. Raises SelectionError for a contradiction."""
    named = _NAMED_DIGEST.search(image)
    if named is None or announced in ("", named[1]):
        return named[1] if named else announced
    message = (
        f"the image's name and the annotation {_OWN_DIGEST} say different digests, expected one; remove one of them"
    )
    raise SelectionError(message)


def _crio_labels(annotations: Mapping[str, str]) -> dict[str, str]:
    text = annotations.get(_CRIO_LABELS)
    if not text:
        return {}
    try:
        labels = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        message = f"annotation {_CRIO_LABELS} is no JSON, or holds a key twice; expected an object of labels"
        raise SelectionError(message) from error
    if not isinstance(labels, dict) or not all(isinstance(value, str) for value in labels.values()):
        message = f"annotation {_CRIO_LABELS} is no object of strings, expected labels"
        raise SelectionError(message)
    return labels


def _policy(value: object) -> Policy:
    if not isinstance(value, dict):
        message = f"found {type(value).__name__}, expected a policy"
        raise ValueError(message)  # noqa: TRY004 - a malformed record, not a wrong argument
    try:
        selector = _selector(value["selector"])
        rules = tuple(rule_from_json(rule) for rule in value["rules"])
        unenforced = value["unenforced"]
    except (KeyError, TypeError) as error:
        message = f"found a policy without what one has ({type(error).__name__}: {error})"
        raise ValueError(message) from error
    if type(unenforced) is not int or unenforced < 0:
        message = f"found {unenforced!r} unenforced rules, expected a number"
        raise ValueError(message)
    return Policy(str(value["name"]), str(value["namespace"]), selector, rules, unenforced)


def selector_to_json(selector: Selector) -> dict[str, object]:
    """Give a selector as JSON values, each field by its name."""
    found = {field.name: getattr(selector, field.name) for field in fields(selector)}
    found["requirements"] = requirements_to_json(selector.requirements)
    return found


def _selector(value: object) -> Selector:
    """Read a selector back: every field must be there, and be of its type. Raises ValueError, KeyError, TypeError."""
    if not isinstance(value, dict) or value.keys() != {field.name for field in fields(Selector)}:
        message = "found no selector, expected an object with its fields"
        raise ValueError(message)
    name, cluster = value["container_name"], value["cluster"]
    if not isinstance(name, str | None) or not isinstance(cluster, bool):
        message = "found a selector whose fields have other types than expected"
        raise ValueError(message)  # noqa: TRY004 - a malformed record, not a wrong argument
    return Selector(
        labels=pairs(value["labels"]),
        within=texts(value["within"]),
        without=texts(value["without"]),
        container_name=name,
        scope=Scope(value["scope"]),
        cluster=cluster,
        namespaces=texts(value["namespaces"]),
        excluded_namespaces=texts(value["excluded_namespaces"]),
        host_names=pairs(value["host_names"]),
        host_expressions=pairs(value["host_expressions"]),
        requirements=requirements(value["requirements"]),
    )


def _target(value: object) -> Target | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(part, list) for part in value):  # noqa: PLR2004
        message = "found no target, expected digests and labels"
        raise ValueError(message)
    digests, labels = value
    found = Target(frozenset(texts(digests)), pairs(labels))
    if bool(found.image_digests) is bool(found.labels):
        message = "found a target with both digests and labels or neither, expected one of them"
        raise ValueError(message)
    return found


def _succession(value: object) -> Succession:
    if value is None:
        return Succession()
    kinds = (str, int, str, bool)
    if not isinstance(value, list) or [type(part) for part in value] != [*kinds]:
        message = "found no succession, expected rule, number, expiry and comparison"
        raise ValueError(message)
    return Succession(*value)


def _unenforced(value: object) -> tuple[Unenforced, ...]:
    if not isinstance(value, list):
        message = f"found {type(value).__name__}, expected the list of unenforced rules"
        raise ValueError(message)  # noqa: TRY004 - a malformed record, not a wrong argument
    try:
        return tuple(
            Unenforced(Origin(str(policy), str(field), str(file), int(line), int(column)), *map(str, told))
            for policy, field, file, line, column, *told in value
        )
    except TypeError as error:
        message = f"found an unenforced rule without what one has ({error})"
        raise ValueError(message) from error


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        message = "a key stands twice in one object"
        raise ValueError(message)
    return members
