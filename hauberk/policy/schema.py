# SPDX-License-Identifier: Apache-2.0
"""A JSON Schema (draft 2020-12) of all kinds of policies, for editors.

Made from the models, so that it cannot fall behind them. It says less than they do: what an expression for a text can
hold, and no more. An editor that follows it completes fields and words and marks typing errors; ``hauberk policy
check`` decides. It branches on ``kind``, so that a mistake is shown where it is, and not as "fits none of seven".
"""

from __future__ import annotations

import json
from typing import Any

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_DESCRIPTIONS = {
    "action": "What happens on a match. A rule's own value counts before its section's, that before the spec's; without"
    " any it is Block.",
    "allowedArgs": "Arguments that the program may be given; any other is refused.",
    "apparmor": "Lines for an AppArmor profile, as they are.",
    "capability": "Capabilities in lower case without cap_, with commas between them.",
    "cidr": "A network such as 10.0.0.0/8 or fd00::/8.",
    "class": "A class of USB devices: a name, a number from 1 to 255 or 0x1 to 0xff, or ALL.",
    "dir": "A directory, with / at its end.",
    "domain": "Domain names, with commas between them.",
    "description": "Said in alerts, unless there is log.",
    "duration": "After how long the quota begins anew, such as 1h30m.",
    "egress": "What goes out.",
    "egressDeny": "What may not go out, whatever allows it.",
    "enableDefaultDeny": "Whether what nothing allows is refused, for each direction.",
    "endPort": "The last port of a range that begins with port.",
    "endpointSelector": "The workloads that the policy covers.",
    "except": "Parts of cidr that are not meant.",
    "execname": "The last component of the executable's path.",
    "fromCIDR": "Networks.",
    "fromCIDRSet": "Networks, each without some of its parts.",
    "fromEndpoints": "Workloads of this machine by their labels.",
    "fromEntities": "Peers without labels.",
    "fromSource": "The executables that the rule is about; without it, all.",
    "icmps": "Types of ICMP.",
    "iface": "Network interfaces; * may stand at the end of a name.",
    "ingress": "What comes in.",
    "ingressDeny": "What may not come in, whatever allows it.",
    "ipBlock": "A network.",
    "level": "Of devices: ports in the chain, 1 for one plugged straight into a root port. Of network policies: whether"
    " a quota is counted for each pod or for all that the policy selects.",
    "limit": "How much traffic: digits and KB, MB, GB, K, M or G (powers of 1024); gigabytes without a unit.",
    "matchExpressions": "Conditions on labels.",
    "matchLabels": "Labels that must all be there, with these values.",
    "matchName": "A domain name.",
    "matchPattern": "Domain names: * stands for any part of a label, **. at the beginning for labels.",
    "matchPatterns": "Rules by glob: * and ? do not match /, ** does.",
    "message": "Said in alerts.",
    "namespaceSelector": "Namespaces, of whose labels kubernetes.io/metadata.name alone is known.",
    "nodeSelector": "The hosts that the policy covers.",
    "ownerOnly": "Only the owner of the object may.",
    "path": "A path from the root.",
    "pattern": "A glob for paths.",
    "podSelector": "Pods: at the top those that the policy covers, as peers those of this machine.",
    "policyTypes": "The directions in which only what is listed may pass.",
    "port": 'A destination port: a number, as text ("443") but for NetworkPolicy, or the name of a well-known service.',
    "presets": "Rules that are ready made.",
    "protocol": "A protocol.",
    "pts": "false: only where there is no controlling terminal. true asks for nothing.",
    "readOnly": "Reading is allowed, changing is not.",
    "recursive": "Everything below the directory, not its children alone.",
    "severity": "From 1 to 10, said in alerts.",
    "specs": "Several specs, each a policy of its own.",
    "subClass": "The USB subclass; any if not given.",
    "syscall": "Names of system calls.",
    "tags": "Said in alerts.",
    "toCIDR": "Networks.",
    "toCIDRSet": "Networks, each without some of its parts.",
    "toEndpoints": "Workloads of this machine by their labels.",
    "toEntities": "Peers without labels.",
    "toFQDNs": "Peers by the domain names that this machine found them by.",
    "toPorts": "Destination ports.",
}
"""What fields mean, by name."""


def policy_schema() -> dict[str, Any]:
    """Give the schema of a document of any kind."""
    from pydantic.json_schema import models_json_schema  # noqa: PLC0415 - heavy; see hauberk.policy.models

    from hauberk.policy.models import API_VERSIONS, KINDS  # noqa: PLC0415

    _, generated = models_json_schema([(model, "validation") for model in KINDS.values()])
    return {
        "$schema": DIALECT,
        "title": "Security policies",
        "type": "object",
        "required": ["apiVersion", "kind", "metadata"],
        "properties": {
            "apiVersion": {"enum": list(dict.fromkeys(API_VERSIONS.values()))},
            "kind": {"enum": list(KINDS)},
        },
        "allOf": [
            {
                "if": {"properties": {"kind": {"const": kind}}, "required": ["kind"]},
                "then": {"$ref": f"#/$defs/{kind}"},
            }
            for kind in KINDS
        ],
        "$defs": {name: _model(schema) for name, schema in sorted(generated["$defs"].items())},
    }


def policy_schema_text() -> str:
    """Give the schema as JSON text with a newline at its end, the same each time."""
    return json.dumps(policy_schema(), indent=2) + "\n"


def _model(schema: dict[str, Any]) -> dict[str, Any]:
    """Tidy the schema of one mapping."""
    tidy = {name: part for name, part in schema.items() if name != "title"}
    tidy["description"] = tidy["description"].replace("``", "`")
    tidy["properties"] = {name: _field(name, part) for name, part in schema["properties"].items()}
    return tidy


def _field(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """Tidy the schema of one field: null only where it may be written, and what the field means."""
    from hauberk.policy.models.base import NULL_IS_ABSENT_MARK  # noqa: PLC0415

    tidy = {key: part for key, part in schema.items() if key not in ("title", "default", NULL_IS_ABSENT_MARK)}
    if "anyOf" in tidy and {"type": "null"} in tidy["anyOf"]:
        (of_value,) = [choice for choice in tidy.pop("anyOf") if choice != {"type": "null"}]
        tidy |= of_value
    if NULL_IS_ABSENT_MARK in schema:
        tidy = {"anyOf": [tidy, {"type": "null"}]}
    if name in _DESCRIPTIONS:
        tidy["description"] = _DESCRIPTIONS[name]
    return tidy
