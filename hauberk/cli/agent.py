# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: T201 - a command line prints
"""``hauberk agent``, ``status``, ``workloads`` and ``alerts``: run the agent, and ask a running one.

gRPC is imported when a question is asked, the agent when it is run; the command's start-up pays for neither. Alerts
come with KubeArmor's field names, one JSON object a line with ``--json``.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hauberk.errors import visible

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    _Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001 - it has no public name

DONE, NO, USAGE, ENVIRONMENT = 0, 1, 2, 3
_SOCKET = Path("/run/hauberk/agent.sock")
CONFIGURATION = Path("/etc/hauberk/agent.yaml")
DEADLINE_SECONDS = 10.0
_CHANNEL = (("grpc.max_metadata_size", 1 << 20), ("grpc.absolute_max_metadata_size", 1 << 20))
"""A refusal travels as metadata, and one that names every rule of a bundle is long."""
_SUBMIT_SECONDS = 300.0  # every container's rules are computed before anything changes


def register(subparsers: _Subparsers) -> None:
    """Add the commands to the parser of ``hauberk``."""
    group = subparsers.add_parser("agent", help="run the agent, or see what this kernel offers it")
    commands = group.add_subparsers(title="commands", dest="agent_command", required=True)
    run = commands.add_parser("run", help="verify the bundle, seal, enforce; as root")
    run.add_argument("--configuration", type=Path, default=CONFIGURATION, help=f"default {CONFIGURATION}")
    run.set_defaults(run=_run)
    probe = commands.add_parser("probe", help="show which engines this kernel offers; changes nothing")
    probe.add_argument("--json", action="store_true", help="for scripts")
    probe.set_defaults(run=_probe)
    for name, text, action in (
        ("status", "show what the agent enforces", _status),
        ("workloads", "list the workloads the agent knows", _workloads),
        ("alerts", "show what was refused and audited", _alerts),
    ):
        command = subparsers.add_parser(name, help=text)
        add_socket(command)
        if name == "alerts":
            command.add_argument("--follow", action="store_true", help="go on with those to come")
        command.set_defaults(run=asking(action))


def add_socket(command: argparse.ArgumentParser) -> None:
    """Add the options of a command that asks a running agent."""
    command.add_argument("--socket", type=Path, default=_SOCKET, help=f"default {_SOCKET}")
    command.add_argument("--json", action="store_true", help="for scripts")


def submit(arguments: argparse.Namespace, bundle: bytes, signature: bytes) -> int:
    """Submit a successor to the agent and say what came of it. Gives the exit code."""

    def action(stub: Any, _: argparse.Namespace) -> int:  # noqa: ANN401 - a generated stub
        grpc = importlib.import_module("grpc")
        try:
            done = stub.SubmitBundle(
                messages().SubmitBundleRequest(bundle=bundle, signature=signature), timeout=_SUBMIT_SECONDS
            )
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                raise
            print(visible(f"error: {error.details()}"), file=sys.stderr)
            print("hauberk: the agent did not take it; everything is as before", file=sys.stderr)
            return NO
        if arguments.json:
            print(json.dumps(plain(done), sort_keys=True))
            return DONE
        print(f"in force: bundle {done.bundle_name} version {done.bundle_version}, successor {done.successors}")
        print(f"sha256 {done.bundle_digest}, {done.workloads} running containers follow")
        for refused in done.refused:
            print(visible(f"refused everything from now on: container {refused.container_id}: {refused.reason}"))
        return DONE

    return asking(action)(arguments)


def _run(arguments: argparse.Namespace) -> int:
    try:
        main = importlib.import_module("guest_agent.main")
    except ImportError as error:
        print(f"hauberk: the agent is not installed ({error}); install hauberk[agent]", file=sys.stderr)
        return ENVIRONMENT
    return int(main.run(arguments.configuration))


def _probe(arguments: argparse.Namespace) -> int:
    try:
        main = importlib.import_module("guest_agent.main")
    except ImportError as error:
        print(f"hauberk: the agent is not installed ({error}); install hauberk[agent]", file=sys.stderr)
        return ENVIRONMENT
    found = main.probe()
    if arguments.json:
        engines = {
            name: {"available": probe.available, "reason": probe.reason, "details": dict(probe.details)}
            for name, probe in found.items()
        }
        print(json.dumps(engines, indent=1, sort_keys=True))
    else:
        for name, probe in found.items():
            print(f"{name}: {'available' if probe.available else 'not available'}: {probe.reason}")
    return DONE if any(probe.available for probe in found.values()) else ENVIRONMENT


def asking(action: Callable[[Any, argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """Turn an action on a stub into a command."""

    def command(arguments: argparse.Namespace) -> int:
        try:
            grpc = importlib.import_module("grpc")
            stubs = importlib.import_module("hauberk._wire.hauberk_v1_agent_pb2_grpc")
        except ImportError as error:
            print(f"hauberk: {error}; install hauberk[agent]", file=sys.stderr)
            return ENVIRONMENT
        try:
            arguments.socket.lstat()
        except OSError as error:
            advice = "run as root" if isinstance(error, PermissionError) else "is hauberk-agent.service running?"
            message = f"hauberk: no agent at {arguments.socket} ({error.strerror}); {advice}"
            print(visible(message), file=sys.stderr)
            return ENVIRONMENT
        with grpc.insecure_channel(f"unix:{arguments.socket}", options=_CHANNEL) as channel:
            try:
                return action(stubs.AgentStub(channel), arguments)
            except grpc.RpcError as error:
                message = (
                    f"hauberk: no answer from the agent at {arguments.socket} ({error.code().name}: {error.details()});"
                    " run as root, and look at its log"
                )
                print(visible(message), file=sys.stderr)
                return ENVIRONMENT

    return command


def messages() -> Any:  # noqa: ANN401 - a module that is generated
    """Give the module of the agent's messages."""
    return importlib.import_module("hauberk._wire.hauberk_v1_agent_pb2")


def plain(message: Any) -> dict[str, Any]:  # noqa: ANN401 - any protobuf message
    """Give a message as JSON values."""
    converter = importlib.import_module("google.protobuf.json_format")
    found: dict[str, Any] = converter.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return found


def _status(stub: Any, arguments: argparse.Namespace) -> int:  # noqa: ANN401 - a generated stub
    status = stub.GetStatus(messages().GetStatusRequest(), timeout=DEADLINE_SECONDS)
    if arguments.json:
        print(json.dumps(plain(status), sort_keys=True))
        return DONE
    print(f"mode       {status.mode}")
    bundle = f"{status.bundle_name} version {status.bundle_version}, default {status.bundle_default}"
    print(visible(f"bundle     {bundle}"))
    print(visible(f"           {status.bundle_digest}, signed by {status.signed_by}"))
    if status.successors:
        print(f"sealed     {status.sealed_digest}, of which this is successor {status.successors}")
    print(visible(f"successor  {status.successor_rule or 'none before the next boot'}"))
    if status.expires:
        print(visible(f"expires    {status.expires} (advice)"))
    chosen = [f"{one.policy} (selects {one.selected})" for one in status.selections]
    print(visible(f"policies   {', '.join(chosen)}"))
    for engine in status.engines:
        print(visible(f"engine     {engine.name}: {engine.reason}"))
    print(f"workloads  {status.workloads}")
    postures = sorted(status.postures.items(), key=lambda pair: (pair[0] != "file", pair[0]))
    filtered = any(engine.name == "nftables" and engine.available for engine in status.engines)
    held = {"file": "", "network": " (packets)" if filtered else " (not enforced)"}
    shown = [f"{name} {word}{held.get(name, ' (not enforced)')}" for name, word in postures]
    print(f"posture    {', '.join(shown)}")
    for told in status.unenforced:
        place = f"{told.file}:{told.line}:{told.column}: {told.policy} {told.field}"
        print(visible(f"unenforced {place}: {told.rule}: {told.reason}; {told.instead}"))
    print("counters   " + ", ".join(f"{name} {value}" for name, value in sorted(status.counters.items())))
    for warning in status.warnings:
        print(visible(f"warning    {warning}"))
    return DONE


def _workloads(stub: Any, arguments: argparse.Namespace) -> int:  # noqa: ANN401 - a generated stub
    answer = stub.ListWorkloads(messages().ListWorkloadsRequest(), timeout=DEADLINE_SECONDS)
    if arguments.json:
        print(json.dumps([plain(workload) for workload in answer.workloads], sort_keys=True))
        return DONE
    for workload in answer.workloads:
        policies = ", ".join(workload.policies) or "(bundle's default)"
        if workload.unenforced:
            policies += f" ({workload.unenforced} rule(s) not enforced as written)"
        line = f"{workload.id:>5}  {workload.state:<9} {workload.container_id:<32} {workload.cgroup:<32} {policies}"
        print(visible(line))
    return DONE


def _alerts(stub: Any, arguments: argparse.Namespace) -> int:  # noqa: ANN401 - a generated stub
    request = messages().WatchAlertsRequest(follow=arguments.follow)
    timeout = None if arguments.follow else DEADLINE_SECONDS
    for alert in _lines(stub.WatchAlerts(request, timeout=timeout), as_json=arguments.json):
        print(alert, flush=arguments.follow)
    return DONE


def _lines(alerts: Any, *, as_json: bool) -> Iterator[str]:  # noqa: ANN401 - a generated stream
    for alert in alerts:
        members = plain(alert)
        # protobuf's JSON writes 64-bit numbers as text; KubeArmor's readers want numbers
        members |= {name: int(members[name]) for name in ("Timestamp", "UID")}
        if as_json:
            yield json.dumps(members)
        else:
            where = members["ContainerName"] or members["ContainerID"] or "(no workload)"
            if members["Type"] == "MatchedNetworkPolicy":  # a packet has ends, and no process
                what = f"{members['Resource']} {members['Data']}"
            else:
                what = f"{members['Resource'] or members['Data']} by {members['ProcessName'] or '?'}"
            yield visible(
                f"{members['UpdatedTime']} {members['Action']:<5} {members['Operation']:<7} {what}"
                f" in {where}: {members['PolicyName']} {members['Rule']}"
            )
