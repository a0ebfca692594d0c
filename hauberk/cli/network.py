# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: T201 - a command line prints
"""``hauberk network``: what is filtered in each network namespace, and the way back when a policy locks its author out.

``flush`` asks the agent where one runs, since it would put its rules in force again otherwise; without one it removes
the table itself. Sealed machines refuse both.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hauberk.cli import agent
from hauberk.errors import visible

if TYPE_CHECKING:
    import argparse

    _Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001 - it has no public name

_FLUSH_SECONDS = 60.0


def register(subparsers: _Subparsers) -> None:
    """Add the commands to the parser of ``hauberk``."""
    group = subparsers.add_parser("network", help="show what is filtered in each network, or take it away")
    commands = group.add_subparsers(title="commands", dest="network_command", required=True)
    status = commands.add_parser("status", help="show each network namespace with rules, and the use of quotas")
    agent.add_socket(status)
    status.set_defaults(run=agent.asking(_status))
    flush = commands.add_parser("flush", help="remove all rules about packets, until the agent starts again; as root")
    flush.add_argument("--yes", action="store_true", help="say that nothing is to be filtered any more")
    flush.add_argument(
        "--configuration",
        type=Path,
        default=agent.CONFIGURATION,
        help=f"the agent's, where none runs; default {agent.CONFIGURATION}",
    )
    agent.add_socket(flush)
    flush.set_defaults(run=_flush)


def _status(stub: Any, arguments: argparse.Namespace) -> int:  # noqa: ANN401 - a generated stub
    status = stub.GetNetwork(agent.messages().GetNetworkRequest(), timeout=agent.DEADLINE_SECONDS)
    if arguments.json:
        print(json.dumps(agent.plain(status), sort_keys=True))
        return agent.DONE
    engine = status.engine.name or "none configured"
    print(visible(f"engine     {engine}: {status.engine.reason or 'no rule about packets is enforced'}"))
    for namespace in status.namespaces:
        whose = "the machine's own" if namespace.own else "of workloads"
        held = namespace.digest[:16] or "nothing"
        print(f"namespace  {namespace.inode} ({whose}) holds {held}")
        for endpoint in namespace.endpoints:
            name = endpoint.container_name or endpoint.container_id or ("the machine" if not endpoint.id else "(gone)")
            print(visible(f"  endpoint {endpoint.id:>5}  {name}: {endpoint.rules} rule(s), by {endpoint.attachment}"))
        for quota in namespace.quotas:
            whom = quota.container_id or "all together"
            used = f"{quota.used_bytes} of {quota.limit_bytes} bytes in {quota.seconds} s"
            print(visible(f"  quota    {quota.policy} {quota.direction}, {whom}: {used}"))
        if namespace.problem:
            print(visible(f"  problem  {namespace.problem}"))
    for problem in status.problems:
        print(visible(f"problem    {problem}"))
    return agent.DONE


def _flush(arguments: argparse.Namespace) -> int:
    if not arguments.yes:
        print("hauberk: found no --yes, expected it: afterwards nothing is filtered on this machine", file=sys.stderr)
        return agent.USAGE
    if arguments.socket.is_socket():
        return agent.asking(_ask_to_flush)(arguments)
    try:
        main = importlib.import_module("guest_agent.main")
    except ImportError as error:
        print(f"hauberk: the agent is not installed ({error}); install hauberk[agent]", file=sys.stderr)
        return agent.ENVIRONMENT
    return int(main.flush(arguments.configuration))


def _ask_to_flush(stub: Any, arguments: argparse.Namespace) -> int:  # noqa: ANN401 - a generated stub
    grpc = importlib.import_module("grpc")
    try:
        done = stub.FlushNetwork(agent.messages().FlushNetworkRequest(), timeout=_FLUSH_SECONDS)
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            # The socket of an agent that was killed: whether one runs is settled by its lock.
            return int(importlib.import_module("guest_agent.main").flush(arguments.configuration))
        if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
            raise
        print(visible(f"hauberk: {error.details()}"), file=sys.stderr)
        return agent.NO
    if arguments.json:
        print(json.dumps(agent.plain(done), sort_keys=True))
    else:
        print(f"flushed {done.namespaces} network namespace(s); the agent puts the rules in force again when it starts")
    return agent.DONE
