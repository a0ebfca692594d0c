# SPDX-License-Identifier: Apache-2.0
"""The agent's process: configuration, engines, sockets, signals, the service manager's notifications.

Ready is told only after the gate is in force and the hook socket listens. The watchdog is fed only while every thread
of the agent works; without it the service manager restarts the agent, and enforcement goes on meanwhile.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING, Final

from guest_agent import configuration as configurations
from guest_agent.agent import Agent, StartError
from guest_agent.api import hook_socket
from guest_agent.engines.network_port import EngineError
from guest_agent.network import flushing
from guest_agent.records import RecordStore
from guest_agent.workloads import verification
from guest_agent.workloads.verification import Machine
from hauberk.policy import coverage

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

    from guest_agent.configuration import Configuration
    from guest_agent.engines.network_port import NetworkEngine
    from guest_agent.engines.port import Engine, Probe

logger = logging.getLogger("hauberk")

NO: Final = 1
USAGE: Final = 2
ENVIRONMENT: Final = 3


class _JsonFormatter(logging.Formatter):
    """One JSON object a line. Messages carry names, numbers and reasons; never arguments, environment or contents."""

    def format(self, record: logging.LogRecord) -> str:
        """Render a record."""
        entry: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def make_engine(settings: Configuration | None = None) -> Engine:
    """Make the engine for programs and files; the module of the one that loads libbpf is imported only here."""
    if settings is not None and coverage.ENGINE not in settings.engines:
        absent = importlib.import_module("guest_agent.engines.absent")
        remembering: Engine = absent.AbsentEngine(
            RecordStore(settings.state_directory).absent_engine, lambda pid: verification.cgroups_of(pid, Machine())
        )
        return remembering
    module = importlib.import_module("guest_agent.engines.bpf_lsm.engine")
    engine: Engine = module.BpfLsmEngine(regions=settings.table_regions) if settings else module.BpfLsmEngine()
    return engine


def make_packets() -> NetworkEngine:
    """Make the engine for packets; imported only here, too."""
    engine: NetworkEngine = importlib.import_module("guest_agent.engines.nftables.engine").NftablesEngine()
    return engine


def probe() -> dict[str, Probe]:
    """Probe every engine."""
    found: dict[str, Probe] = {}
    for engine in (make_engine(), make_packets()):
        found[engine.name] = engine.probe()
        engine.close()
    return found


def flush(path: Path) -> int:
    """Take the rules about packets away where no agent runs. Returns the exit code, with what was done on stdout."""
    try:
        settings = configurations.load(path)
        # Also where no such engine is configured (any more): what is left of one is removed all the same.
        done = flushing.flush(settings, make_packets(), Machine())
    except configurations.ConfigurationError as error:
        print(f"hauberk: {error}", file=sys.stderr)  # noqa: T201 - the command's output
        return USAGE
    except (EngineError, OSError) as error:
        print(f"hauberk: {error}", file=sys.stderr)  # noqa: T201 - as above
        return NO
    for problem in done.problems:
        print(f"hauberk: {problem}", file=sys.stderr)  # noqa: T201 - as above
    print(f"flushed {done.namespaces} network namespace(s)")  # noqa: T201 - as above
    return NO if done.problems else 0


def run(path: Path, engine: Engine | None = None, packets: NetworkEngine | None = None) -> int:
    """Run until SIGTERM or SIGINT. Returns the exit code."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    _protect()
    try:
        settings = configurations.load(path)
    except configurations.ConfigurationError as error:
        logger.error("%s", error)  # noqa: TRY400 - the message says all; the traceback is ours
        return USAGE
    try:
        service = importlib.import_module("guest_agent.api.service")
    except ImportError as error:
        # Before the seal: a gate whose agent cannot serve would only stand in the way.
        logger.error("not started: %s; install hauberk[agent]", error)  # noqa: TRY400 - as above
        return ENVIRONMENT
    chosen = engine or make_engine(settings)
    offered = chosen.probe()
    if not offered.available:
        logger.error("the %s engine cannot work here: %s", chosen.name, offered.reason)
        return ENVIRONMENT
    filtering = packets
    if engine is None and filtering is None and coverage.NFTABLES in settings.engines:
        filtering = make_packets()
    agent = Agent(settings, chosen, packets=filtering)
    try:
        agent.start()
    except StartError as error:
        logger.error("not started: %s", error)  # noqa: TRY400 - as above
        return NO
    return _serve(agent, settings, service)


def _serve(agent: Agent, settings: Configuration, service: ModuleType) -> int:
    """Listen, tell that the agent is ready, and wait for its end. Returns the exit code."""
    try:
        hooks = hook_socket.serve(settings.hook_socket, agent.handle, agent.check_peer)
    except (OSError, hook_socket.HookSocketError) as error:
        logger.error("not started: %s", error)  # noqa: TRY400 - as above
        agent.stop()
        return ENVIRONMENT
    try:
        server = service.serve(agent, settings.agent_socket)
    except OSError as error:
        logger.error("not started: %s", error)  # noqa: TRY400 - as above
        hooks.close()
        agent.stop()
        return ENVIRONMENT
    _wait(agent)
    notify("STOPPING=1")
    hooks.close()
    agent.alerts.end()
    server.stop(grace=1).wait()
    healthy = agent.healthy
    agent.stop()
    logger.info("stopped; what was in force stays in force")
    return 0 if healthy else NO


def _wait(agent: Agent) -> None:
    """Tell that the agent is ready, then wait for the end, feeding the watchdog."""
    end = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: end.set())
    interval = int(os.environ.get("WATCHDOG_USEC", "0")) / 1_000_000 / 2 or 5.0
    notify("READY=1")
    logger.info("ready")
    while not end.wait(interval):
        if not agent.healthy:
            logger.error("a thread of the agent has ended; the agent ends too and expects to be started again")
            return
        notify("WATCHDOG=1")


def notify(state: str) -> None:
    """Tell the service manager (sd_notify(3)); nothing happens without one."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        try:
            sender.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)
        except OSError as error:
            logger.warning("the service manager cannot be told %s: %s", state, error)


def _protect() -> None:
    """Keep others of the same user from tracing the agent or reading a core of it."""
    import resource  # noqa: PLC0415 - used here alone

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o077)
