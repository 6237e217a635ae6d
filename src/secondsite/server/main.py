"""The server's process: everything put together from one configuration, or from none."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import text

from secondsite.base.clock import Clock, SystemClock
from secondsite.base.errors import SecondsiteError
from secondsite.base.files import replace_file
from secondsite.base.logs import log_json_lines
from secondsite.base.parse import prepare_structs
from secondsite.model.auditlog import SEAL_PURPOSE
from secondsite.server.api.app import build_app
from secondsite.server.api.certificate import CertificateFiles, ListenerCertificate
from secondsite.server.api.errors import NotReady
from secondsite.server.api.listener import ApiServer, bind
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
from secondsite.server.items.together import open_items
from secondsite.server.jobs.definitions import Definition, Registry
from secondsite.server.jobs.service import Jobs
from secondsite.server.jobs.worker import Worker
from secondsite.server.mappings.topology import Topology
from secondsite.server.operations.approvals import change_approvals
from secondsite.server.operations.points import operations
from secondsite.server.people.approvals import Approvals
from secondsite.server.people.audit import Audit
from secondsite.server.people.login import Logins
from secondsite.server.people.oidc_login import OidcLogins
from secondsite.server.people.oidc_settings import OidcSettings
from secondsite.server.people.passwords import Passwords
from secondsite.server.people.sessions import Sessions
from secondsite.server.people.tokens import Tokens
from secondsite.server.people.users import Users
from secondsite.server.standby.becoming import begin_standby
from secondsite.server.standby.files import Role, StandbyFiles
from secondsite.server.standby.process import serve_standby
from secondsite.server.standby.replica import require_no_replica
from secondsite.server.survival.service import Survival
from secondsite.server.telling import Telling

log = logging.getLogger(__name__)

# A request takes Python's lock a dozen times, and waits so long each time while a report is compared; with
# the default, 5 ms, a page took 114 ms beside it, with this one 49 (medians, on a busy machine).
SWITCH_SECONDS = 0.0005

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
        self.certificate: ListenerCertificate | None = None

    def open(self) -> Services:
        """Everything but the listener. What was opened is closed again when a part fails."""
        config = self._config
        prepare_structs()
        config.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            database = open_database(config.database_url(), self.clock)
            self._stop.callback(database.close)
            require_no_replica(database)
            upgrade(database)
            self.services = self._open_services(database)
        except BaseException:
            self.stop()
            raise
        return self.services

    def _open_identity(self, database: Database) -> Identity:
        config = self._config
        return Identity.open(
            database,
            master_key=config.state_dir / MASTER_KEY_NAME,
            url=config.reached_at(),
            clock=self.clock,
            name=config.name,
            system_trust=config.tls is not None,
        )

    def _open_services(self, database: Database) -> Services:
        config = self._config
        self._identity = identity = self._open_identity(database)
        self._survival = survival = Survival(database, identity, config, self.clock)
        audit = Audit(database, identity.authority.master.derive(SEAL_PURPOSE))
        tokens = Tokens(database, audit)
        sessions = Sessions(database, audit, tokens)
        oidc_settings = OidcSettings(database, audit, identity.authority.master)
        logins = Logins(
            database, audit, tokens, self._passwords, setup_file=config.state_dir / SETUP_TOKEN_NAME
        )
        calls, inventories = Calls(database, Bells()), Inventories(database)
        topology = Topology.open(database, identity, inventories)
        self._telling = telling = Telling(database, identity)
        items = open_items(database, identity, topology.mappings, telling.events)
        definitions = [*self._definitions, *operations(calls), change_approvals(audit)]
        definitions += telling.definitions()
        definitions += items.operations(identity, inventories, calls)
        definitions += topology.operations(database, calls)
        definitions += survival.operations(calls)
        jobs = Jobs(Registry(definitions), self.clock)
        approvals = Approvals(database, audit, jobs, telling.events.emit)
        jobs.on_approval = approvals.asked
        calls.on_answer = items.reports.wake = jobs.wake
        calls.nudge = items.reports.nudge = self._nudge
        items.reports.looked = telling.looked
        self._jobs, self._worker = jobs, Worker(database, jobs)
        telling.connect(jobs, self._nudge)
        survival.connect(calls, telling.events)
        return Services(
            clock=self.clock,
            database=database,
            metrics=Metrics(),
            audit=audit,
            users=Users(database, audit, self._passwords),
            tokens=tokens,
            logins=logins,
            sessions=sessions,
            events=telling.events,
            telling=telling,
            identity=identity,
            survival=survival,
            calls=calls,
            inventories=inventories,
            topology=topology,
            inventory_reader=InventoryReader(calls, inventories, identity.gateways.connected, self.clock),
            policies=items.policies,
            items=items,
            jobs=jobs,
            approvals=approvals,
            oidc_settings=oidc_settings,
            oidc=OidcLogins(database, audit, sessions, identity.authority.master, oidc_settings),
            nudge_jobs=self._nudge,
            vault_id=identity.vaults.id_of,
            checks=[
                self._not_stopping,
                lambda: _answers(database),
                lambda: require_current(database),
                survival.life.check_work,
            ],
        )

    def start(self) -> None:
        """Everything up, the listener last."""
        services = self.open()
        try:
            self._identity.start()
            self._stop.callback(self._identity.close)
            self._telling.start()
            self._stop.callback(self._telling.close)
            assert services.items is not None
            services.items.reports.start()
            self._stop.callback(services.items.reports.close)
            assert services.inventory_reader is not None
            services.inventory_reader.start()
            self._stop.callback(services.inventory_reader.close)
            # a later life of this server carries its jobs on: once that is met, this one does nothing
            life = self._survival.life
            life.on_superseded = self._stop_working
            life.on_handed_over = self._hand_over
            if not life.superseded and not life.handed_over:
                self._worker.start()
            self._stop.callback(self._stop_worker)
            self._survival.start()
            self._stop.callback(self._survival.close)
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
        replace_file(config.state_dir / AUTHORITY_NAME, authority.bundle.encode(), mode=0o644)
        own = config.tls
        directory = config.state_dir / "tls"
        certificate = ListenerCertificate(
            CertificateFiles(own.cert, own.key)
            if own
            else CertificateFiles(directory / "server.crt", directory / "server.key"),
            authority_pem=authority.bundle,
            issuer=authority.signing,
            names=config.reached_as(),
            make=None if own else lambda names: authority.server_leaf(config.name, names),
            clock=self.clock,
        )
        self.certificate = certificate
        authority.on_change.append(lambda: self._authority_changed(certificate))
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

    def _authority_changed(self, certificate: ListenerCertificate) -> None:
        """Our own authority is rotated: clients of both are taken, and our certificate is the new one's."""
        authority = self._identity.authority
        self._identity.keys.use_authority(authority.fingerprint)
        replace_file(self._config.state_dir / AUTHORITY_NAME, authority.bundle.encode(), mode=0o644)
        certificate.trust(authority.bundle)
        certificate.refresh()

    def _stop_working(self) -> None:
        # not in the request's thread that told it: steps under way end first
        wait = self._config.limits.stop_seconds
        threading.Thread(target=self._worker.stop, args=(wait,), name="superseded", daemon=True).start()

    def _stop_worker(self) -> None:
        self._worker.stop(self._config.limits.stop_seconds)

    def _nudge(self) -> None:
        self._worker.nudge()

    def _hand_over(self) -> None:
        """Jobs stop for a standby to go on with them, or go on here after all."""
        if self._survival.life.handed_over:
            self._stop_working()
            return
        assert self.services is not None
        self._worker = Worker(self.services.database, self._jobs)  # one that was stopped stays so
        self._worker.start()

    def _not_stopping(self) -> None:
        if self._stopping.is_set():
            raise NotReady(why="it is stopping")

    def _keep_house(self, services: Services, certificate: ListenerCertificate) -> None:
        while not self.clock.wait(self._stopping, HOUSEKEEPING_SECONDS):
            self.tidy(services, certificate)

    def tidy(self, services: Services, certificate: ListenerCertificate) -> None:
        """One round of the housekeeping; what fails keeps nothing else from being done."""
        approvals, jobs = services.approvals, services.jobs
        chores: list[Callable[[], object]] = [certificate.refresh, services.tokens.sweep, self._telling.tidy]
        if approvals is not None:
            chores.append(approvals.expire)
        if jobs is not None:
            chores.append(lambda: self._survival.keep_house(jobs))
        chores.append(services.nudge_jobs)  # for jobs that these made due
        for chore in chores:
            try:
                chore()
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


def run(config: Path | None, *, standby: bool = False) -> int:
    """``secondsite server``: read the configuration and serve, as the active server or as a standby.

    standby: it is to be one from now on. Raises InvalidInput for a wrong configuration, NotNew.
    """
    log_json_lines()
    settings = load_config(config)
    files = StandbyFiles(settings.state_dir)
    with files.running():
        if standby:
            begin_standby(settings)
        while files.role() is Role.STANDBY:
            ended = serve_standby(settings)
            if ended is not None:
                return ended
        sys.setswitchinterval(SWITCH_SECONDS)
        return serve(Server(settings))


def new_setup_token(config: Path | None) -> Path:
    """Make another set-up token for the owner: for who lost every other way in, and owns the machine."""
    server = Server(load_config(config))
    try:
        made = server.open().logins.prepare(again=True)
    finally:
        server.stop()
    assert made is not None
    return made
