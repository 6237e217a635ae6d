"""A whole server in processes that die where a test says: ``python -m support.server_process CONFIG PLAN``.

The first process only imports, and serves once, of a state of its own, so that what is imported or built at
a first use is there; each server is a fork of it, which takes a tenth of the time, and one that died is
followed by the next at once, as a supervisor does it. SIGTERM ends the last one in order.

``PLAN`` is a directory. ``PLAN/at`` holds the points to die at, a line each, or ``*``: at every one. Each is
died at once: what is there as a file of ``PLAN/died`` is passed. A point is a mark and where it is passed:
``jobs.called item.failover/begin/do/Done``, ``calls.answering begin/do/look``.
"""

from __future__ import annotations

import ctypes
import logging
import os
import re
import signal
import sys
import tempfile
import threading
import tomllib
from pathlib import Path

from secondsite.base import crash
from secondsite.base.errors import SecondsiteError
from secondsite.server.calls import service
from secondsite.server.config import Listen, ServerConfig
from secondsite.server.jobs import runner, worker
from secondsite.server.main import AUTHORITY_NAME, Server, serve
from support.server import cheap_passwords, tls_caller, trusting

_NUMBER = re.compile(r"\b[0-9a-f]{32}\b")
_PARENT_DEATH = 1  # PR_SET_PDEATHSIG of prctl(2)
log = logging.getLogger(__name__)
# What passes by itself, as a database that is slow to answer: it is started again, as by a supervisor.
AGAIN = os.EX_TEMPFAIL
# How long a step waits before it looks again, whose wake died with its server.
LOOK_SECONDS = 0.3
# Two servers of one database: the other one is seen to be dead within a second.
QUICK = worker.WorkerSettings(lease_seconds=3.0, beat_seconds=0.3, poll_seconds=0.05)


def point(name: str, within: str) -> str | None:
    """How a test names it; None: of no job's step, or without a place."""
    if name.startswith("calls."):
        job, _, step = within.partition(":")
        if not step or not re.fullmatch(r"[0-9a-f-]{20,}", job):
            return None
        within = "/".join(_NUMBER.sub("N", step).split(":"))
    return f"{name} {within}" if within else None


class Plan:
    """The directory, as a server reads it at every pass."""

    def __init__(self, directory: Path) -> None:
        self._at, self._died = directory / "at", directory / "died"

    def passes(self, name: str, within: str = "") -> None:
        """Instead of `crash_point`."""
        found = point(name, within)
        try:
            wanted = self._at.read_text().splitlines()
        except FileNotFoundError:
            return
        if found is None or not (wanted == ["*"] or found in wanted):
            return
        try:
            file = os.open(self._died / found.replace("/", "|"), os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return
        os.close(file)
        os.kill(os.getpid(), signal.SIGKILL)


def _serve(config: ServerConfig, plan: Plan) -> int:
    ctypes.CDLL(None).prctl(_PARENT_DEATH, signal.SIGKILL)
    for module in (runner, service):
        module.crash_point = plan.passes  # type: ignore[attr-defined]
    worker.WorkerSettings = lambda: QUICK  # type: ignore[assignment, misc]
    for name, module in list(sys.modules.items()):
        for seconds in ("POLL_SECONDS", "LOOK_SECONDS"):
            if name.startswith("secondsite.server.operations.") and hasattr(module, seconds):
                setattr(module, seconds, LOOK_SECONDS)
    return serve(Server(config, passwords=cheap_passwords()))


def _serve_once() -> None:
    """A request to a server that has nothing; no thread of it is left to be forked."""
    with tempfile.TemporaryDirectory(prefix="sw") as name:
        listen = Listen(host="127.0.0.1", port=0)
        first = Server(ServerConfig(state_dir=Path(name) / "s", listen=listen), passwords=cheap_passwords())
        first.start()
        try:
            assert first.address is not None
            authority = trusting(Path(name) / "s" / AUTHORITY_NAME)
            assert tls_caller(*first.address, authority)("GET", "/api/v1/health").status == 200
        finally:
            first.stop()
    assert threading.active_count() == 1, threading.enumerate()


def main(config: Path, directory: Path) -> int:
    assert crash.MARKS  # what is imported here need not be by each server
    _serve_once()
    settings, plan = ServerConfig(**tomllib.loads(config.read_text())), Plan(directory)
    ctypes.CDLL(None).prctl(_PARENT_DEATH, signal.SIGTERM)
    child, ended = 0, False

    def end(*_: object) -> None:
        nonlocal ended
        ended = True
        if child:
            os.kill(child, signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)
    while not ended:
        child = os.fork()
        if not child:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            try:
                os._exit(_serve(settings, plan))
            except SecondsiteError as error:
                log.exception("the server did not start")
                os._exit(AGAIN if error.retryable else 1)
            except BaseException:  # root of the process: it is said before it ends
                log.exception("the server did not start")
                os._exit(1)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        if code not in (-signal.SIGKILL, AGAIN):
            return code
    return 0


if __name__ == "__main__":
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(process)d %(name)s %(message)s"
    )
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
