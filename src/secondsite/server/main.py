"""The server's process: everything put together from one configuration, or from none."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import text

from secondsite.base.clock import Clock, SystemClock
from secondsite.base.errors import SecondsiteError
from secondsite.base.files import replace_file
from secondsite.server.api.app import build_app
from secondsite.server.api.certificate import CertificateFiles, ListenerCertificate
from secondsite.server.api.errors import NotReady
from secondsite.server.api.listener import ApiServer, bind
from secondsite.server.api.logs import log_json_lines
from secondsite.server.api.metrics import Metrics
from secondsite.server.api.services import Services
from secondsite.server.calls.bells import Bells
from secondsite.server.calls.service import Calls
from secondsite.server.config import ServerConfig, load_config
from secondsite.server.database.engine import Database, open_database
from secondsite.server.database.migrations import require_current, upgrade
from secondsite.server.identity.service import MASTER_KEY_NAME, Identity
from secondsite.server.inventory.reader import InventoryReader
from secondsite.server.inventory.service import Inventories
from secondsite.server.jobs.definitions import Definition, Registry
from secondsite.server.jobs.service import Jobs
from secondsite.server.jobs.worker import Worker
from secondsite.server.operations.points import operations
from secondsite.server.people.audit import Audit
from secondsite.server.people.login import Logins
from secondsite.server.people.passwords import Passwords
from secondsite.server.people.tokens import Tokens
from secondsite.server.people.users import Users

log = logging.getLogger(__name__)

SETUP_TOKEN_NAME = "setup-token"  # noqa: S105 - a file's name
AUTHORITY_NAME = "authority.crt"
HOUSEKEEPING_SECONDS = 600.0


class Server:
    """Every part of one server, started in order and stopped in the reverse."""

    def __init__(
        self,
        config: ServerConfig,
        *,
        clock: Clock | None = None,
        passwords: Passwords | None = None,
        definitions: Sequence[Definition[Any]] = (),
    ) -> None:
        """passwords: a cheap hasher, for tests. definitions: kinds of jobs besides its own."""
        self._definitions = definitions
        self._config = config
        self.clock = clock or SystemClock()
        self._passwords = passwords or Passwords()
        self._stop = contextlib.ExitStack()
        self._stopping = threading.Event()
        self.ended = threading.Event()
        self.services: Services | None = None
        self.address: tuple[str, int] | None = None

    def open(self) -> Services:
        """Everything but the listener. What was opened is closed again when a part fails."""
        config = self._config
        config.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            database = open_database(config.database_url(), self.clock)
            self._stop.callback(database.close)
            upgrade(database)
            self.services = self._open_services(database)
        except BaseException:
            self.stop()
            raise
        return self.services

    def _open_services(self, database: Database) -> Services:
        config = self._config
        identity = Identity.open(
            database,
            master_key=config.state_dir / MASTER_KEY_NAME,
            url=config.reached_at(),
            clock=self.clock,
            name=config.name,
            system_trust=config.tls is not None,
        )
        self._identity = identity
        audit = Audit(database, identity.authority.master.derive("audit 1"))
        tokens = Tokens(database, audit)
        logins = Logins(
            database, audit, tokens, self._passwords, setup_file=config.state_dir / SETUP_TOKEN_NAME
        )
        calls, inventories = Calls(database, Bells()), Inventories(database)
        jobs = Jobs(Registry([*self._definitions, *operations(calls)]), self.clock)
        calls.on_answer = jobs.wake
        self._worker = Worker(database, jobs)
        return Services(
            clock=self.clock,
            database=database,
            metrics=Metrics(),
            audit=audit,
            users=Users(database, audit, self._passwords),
            tokens=tokens,
            logins=logins,
            identity=identity,
            calls=calls,
            inventories=inventories,
            inventory_reader=InventoryReader(calls, inventories, identity.gateways.connected, self.clock),
            jobs=jobs,
            nudge_jobs=self._worker.nudge,
            vault_id=lambda vault: identity.vaults.get(vault).id,
            checks=[self._not_stopping, lambda: _answers(database), lambda: require_current(database)],
        )

    def start(self) -> None:
        """Everything up, the listener last."""
        services = self.open()
        try:
            self._identity.start()
            self._stop.callback(self._identity.close)
            assert services.inventory_reader is not None
            services.inventory_reader.start()
            self._stop.callback(services.inventory_reader.close)
            self._worker.start()
            self._stop.callback(self._worker.stop, self._config.limits.stop_seconds)
            made = services.logins.prepare()
            if made is not None:
                log.info("set-up token made", extra={"fields": {"file": str(made)}})
            self._listen(services)
        except BaseException:
            self.stop()
            raise

    def _listen(self, services: Services) -> None:
        config = self._config
        authority = self._identity.authority
        replace_file(config.state_dir / AUTHORITY_NAME, authority.pem.encode(), mode=0o644)
        own = config.tls
        directory = config.state_dir / "tls"
        certificate = ListenerCertificate(
            CertificateFiles(own.cert, own.key)
            if own
            else CertificateFiles(directory / "server.crt", directory / "server.key"),
            authority_pem=authority.pem,
            names=config.reached_as(),
            make=None if own else lambda names: authority.server_leaf(config.name, names),
            clock=self.clock,
        )
        listener = bind(config.listen.host, config.listen.port)
        self.address = _address(listener)
        api = ApiServer(
            build_app(services),
            listener,
            context=certificate.context,
            limits=config.limits,
            trusted_proxies=config.listen.trusted_proxies,
            ended=self.ended.set,
        )
        api.start()
        self._stop.callback(api.stop)
        keeper = threading.Thread(
            target=self._keep_house, args=(services, certificate), name="housekeeping", daemon=True
        )
        keeper.start()
        self._stop.callback(keeper.join, 5.0)
        # gateways that wait for work go away with nothing, instead of holding the listener open
        assert services.calls is not None
        self._stop.callback(services.calls.bells.close)
        # undone first: whoever asks /ready is told before the listener goes
        self._stop.callback(self._stopping.set)

    def stop(self) -> None:
        """Requests in progress end; then everything closes."""
        self._stopping.set()
        self._stop.close()

    def _not_stopping(self) -> None:
        if self._stopping.is_set():
            raise NotReady(why="it is stopping")

    def _keep_house(self, services: Services, certificate: ListenerCertificate) -> None:
        while not self.clock.wait(self._stopping, HOUSEKEEPING_SECONDS):
            try:
                certificate.refresh()
                services.tokens.sweep()
            except (SecondsiteError, OSError) as error:
                # tried again in ten minutes; what expires meanwhile expires anyway
                log.warning("housekeeping failed", extra={"fields": {"why": str(error)}})


def _answers(database: Database) -> None:
    with database.read() as connection:
        connection.execute(text("SELECT 1"))


def _address(listener: socket.socket) -> tuple[str, int]:
    host, port = listener.getsockname()[:2]
    return str(host), int(port)


def serve(server: Server) -> int:
    """Run until SIGTERM or SIGINT; 1 when the API ended by itself."""
    asked = threading.Event()

    def end(*_: object) -> None:
        asked.set()
        server.ended.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    server.start()
    assert server.address is not None
    host, port = server.address
    log.info("server runs", extra={"fields": {"host": host, "port": port}})
    server.ended.wait()
    server.stop()
    log.info("server ended")
    return 0 if asked.is_set() else 1


def run(config: Path | None) -> int:
    """``secondsite server``: read the configuration and serve. Raises InvalidInput for a wrong one."""
    log_json_lines()
    return serve(Server(load_config(config)))


def new_setup_token(config: Path | None) -> Path:
    """Make another set-up token for the owner: for who lost every other way in, and owns the machine."""
    server = Server(load_config(config))
    try:
        made = server.open().logins.prepare(again=True)
    finally:
        server.stop()
    assert made is not None
    return made
