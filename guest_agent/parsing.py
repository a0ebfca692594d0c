# SPDX-License-Identifier: Apache-2.0
"""The agent's short-lived child: reads YAML, verifies and parses a bundle, compiles a large table; then it is gone.

The libraries this takes (cryptography, YAML, models) cost tens of MiB that a long-lived agent should not keep, and
parsing is where hostile input is met: a child with limits on time, memory and output is the place for it. The agent
starts it with ``sys.executable -I``, hands it one JSON request on standard input and takes one JSON answer from
standard output. An error is an answer too: ``{"error": {"kind": …, "message": …}}``.

The bundle's bytes arrive in the request; verified and parsed are those bytes. The agent compares the answer's digest
with that of what it sent.
"""

from __future__ import annotations

import base64
import gc
import json
import resource
import sys
from typing import TYPE_CHECKING, Final

from hauberk.errors import HauberkError

if TYPE_CHECKING:
    from collections.abc import Callable

    from guest_agent.trust.verification import Trust

MAXIMUM_MEMORY_BYTES: Final = 2 << 30
MAXIMUM_CPU_SECONDS: Final = 60
MAXIMUM_TOLD: Final = 1000
"""Most unenforced rules of a bundle that are told one by one; all are counted."""


class RequestError(Exception):
    """The request is not one of the agent's."""


def main() -> None:
    """Answer one request and end; always with exit code 0 when there is an answer."""
    gc.disable()  # it ends soon, and collecting among ten thousands of rules takes longer than reading them
    resource.setrlimit(resource.RLIMIT_AS, (MAXIMUM_MEMORY_BYTES, MAXIMUM_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (MAXIMUM_CPU_SECONDS, MAXIMUM_CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.stdout.write(json.dumps(answer(sys.stdin.buffer.read())))


def answer(request: bytes) -> dict[str, object]:
    """Do what one request asks for; every failure becomes an ``error`` answer that carries no content of a workload."""
    try:
        document = json.loads(request)
        task = _TASKS.get(document.get("task"))
        if task is None:
            message = f"unknown task {document.get('task')!r}, expected one of {', '.join(map(str, _TASKS))}"
            raise RequestError(message)  # noqa: TRY301 - told in the same way as every other failure
        return task(document)
    except HauberkError as error:
        return {"error": {"kind": type(error).__name__, "message": str(error)}}
    except Exception as error:  # noqa: BLE001 - the boundary of the process: whatever it is becomes a refusal
        return {"error": {"kind": type(error).__name__, "message": f"{type(error).__name__}: {error}"}}


def _configuration(request: dict[str, object]) -> dict[str, object]:
    """Read one YAML document: ``text``, and ``file`` for messages."""
    from hauberk.errors import PolicyError, Problem  # noqa: PLC0415 - each task loads what it needs
    from hauberk.policy import documents  # noqa: PLC0415

    problems: list[Problem] = []
    found = documents.read(str(request["text"]).encode(), str(request["file"]), problems)
    if problems and problems[0].found != "no document":  # what that says is about policies
        raise PolicyError(problems)
    if len(found) != 1:
        message = f"{request['file']} holds {len(found)} documents, expected one"
        raise RequestError(message)
    return {"value": found[0].value}


def _bundle(request: dict[str, object]) -> dict[str, object]:
    """Verify the bundle in force and parse it.

    ``trustRoot``, ``bundle``, ``signature`` in base64, ``sealedDigest`` or null; ``successors``, pairs of bundle and
    signature in base64, in their order; ``accepted``, digest, version and number of the one that the kernel has in
    force, or null. A bundle that is submitted is the last of the successors. ``engines`` are those that work here,
    ``entities`` the entities the configuration resolves, ``resolvers`` is whether there are any.
    """
    from guest_agent.network import groups  # noqa: PLC0415
    from guest_agent.trust.verification import successor_rule  # noqa: PLC0415
    from guest_agent.workloads.interchange import rule_to_json  # noqa: PLC0415
    from guest_agent.workloads.selection import selector_to_json  # noqa: PLC0415
    from hauberk.policy import coverage, models, normalise  # noqa: PLC0415
    from hauberk.policy.selectors import Scope  # noqa: PLC0415

    trust = _trust(request)
    verified = trust.require_current()
    bundle, terms = verified.bundle, verified.bundle.terms
    rule = successor_rule(trust.root, bundle)
    engines = frozenset(_texts(request, "engines"))
    known = groups.Known(frozenset(_texts(request, "entities")), resolvers=request["resolvers"] is True)
    policies: list[object] = []
    unenforced: list[coverage.Unenforced] = []
    for policy in models.load((file.file, file.text.encode()) for file in bundle.policies):
        selector = normalise.selector(policy.model)
        rules = normalise.rules(policy)
        packets = coverage.packets_in_force(rules) if coverage.NFTABLES in engines else ()
        reported = (*coverage.report(rules, selector.scope, engines), *groups.report(packets, known))
        unenforced += reported[: MAXIMUM_TOLD - len(unenforced)]
        by_path = selector.scope is Scope.CONTAINER and coverage.ENGINE in engines
        held = (*(coverage.in_force(rules) if by_path else ()), *groups.held(packets, known))
        policies.append(
            {
                "name": policy.name,
                "namespace": policy.model.metadata.namespace,
                "selector": selector_to_json(selector),
                "rules": [rule_to_json(rule) for rule in held],
                "unenforced": len(reported),
            }
        )
    return {
        "digest": bundle.digest,
        "name": bundle.name,
        "version": bundle.version,
        "default": bundle.default.value,
        "posture": bundle.posture.value,
        "postures": [["file", bundle.posture.value], *([name, posture.value] for name, posture in terms.postures)],
        "signedBy": ", ".join(key.name for key in verified.signed_by),
        "policies": policies,
        "target": None if terms.target is None else [terms.target.image_digests, terms.target.labels],
        "succession": [
            "" if terms.successor is None else terms.successor.describe(),
            trust.successors,
            terms.expires or "",
            rule is not None and rule[1] < trust.root.threshold,
        ],
        "unenforced": [
            [one.origin.policy, one.origin.field, one.origin.file, one.origin.line, one.origin.column, one.rule,
             one.reason, one.instead]
            for one in unenforced
        ],
    }  # fmt: skip


def _trust(request: dict[str, object]) -> Trust:
    """Go the way from the trust root to the bundle in force: each link verified under the one before."""
    from guest_agent.trust.root import TrustRoot  # noqa: PLC0415
    from guest_agent.trust.verification import Accepted, Trust  # noqa: PLC0415

    root = TrustRoot.load(_bytes(request, "trustRoot"))
    sealed, found, successors = (request[name] for name in ("sealedDigest", "accepted", "successors"))
    accepted = Accepted(str(found[0]), int(found[1]), int(found[2])) if isinstance(found, list) else None
    if not isinstance(successors, list):
        message = f"found {type(successors).__name__}, expected a list of successors"
        raise RequestError(message)
    trust = Trust.empty(root) if sealed is None else Trust.resume(root, str(sealed), accepted)
    trust = trust.admit(_bytes(request, "bundle"), _bytes(request, "signature"))
    for successor in successors:
        trust = trust.succeed(*(base64.b64decode(str(part), validate=True) for part in successor))
    return trust


def _table(request: dict[str, object]) -> dict[str, object]:
    """Compile a table: ``ruleSet``."""
    from guest_agent.engines.bpf_lsm.plan import compile_table  # noqa: PLC0415
    from guest_agent.workloads.interchange import rule_set_from_json  # noqa: PLC0415

    table = compile_table(rule_set_from_json(request["ruleSet"]))
    return {"blob": base64.b64encode(table.blob).decode("ascii")}


def _texts(request: dict[str, object], name: str) -> list[str]:
    found = request[name]
    if not isinstance(found, list):
        message = f"found {type(found).__name__}, expected a list for {name}"
        raise RequestError(message)
    return list(map(str, found))


def _bytes(request: dict[str, object], name: str) -> bytes:
    return base64.b64decode(str(request[name]), validate=True)


_TASKS: Final[dict[object, Callable[[dict[str, object]], dict[str, object]]]] = {
    "configuration": _configuration,
    "bundle": _bundle,
    "table": _table,
}

if __name__ == "__main__":
    main()
