"""A standby without its active server: a store with copies of a state, made without any server running."""

from __future__ import annotations

import io
from pathlib import Path

from secondsite.base.clock import SystemClock
from secondsite.journal.store_local import LocalStore
from secondsite.server.config import BackupSettings, Listen, ServerConfig, StandbySettings
from secondsite.server.database.engine import Database, open_database
from secondsite.server.database.migrations import upgrade
from secondsite.server.database.values import from_moment
from secondsite.server.identity.authority import ServerAuthority
from secondsite.server.standby.becoming import begin_standby
from secondsite.server.standby.follower import Follower
from secondsite.server.survival.dump import dump
from secondsite.server.survival.incarnation import ensure_incarnation, read_incarnation
from secondsite.transfer.backups import backup_name, copies_prefix

CLOCK = SystemClock()


def config_of(root: Path, name: str, store: str = "store") -> ServerConfig:
    """Of the server `name`; it listens nowhere before it is started."""
    return ServerConfig(
        name=name,
        state_dir=root / name,
        url=f"https://{name}.example",
        listen=Listen(host="127.0.0.1", port=0),
        backup=BackupSettings(every_minutes=0, gateways=False, url=f"file://{root / store}"),
        standby=StandbySettings(store=f"file://{root / store}"),
    )


def new_state(root: Path, name: str = "active") -> Database:
    """The database of a server that was started once."""
    config = config_of(root, name)
    config.state_dir.mkdir(parents=True)
    database = open_database(config.database_url(), CLOCK)
    upgrade(database)
    ServerAuthority.open(database, config.state_dir / "master.key", name=name, clock=CLOCK)
    database.run(lambda connection: ensure_incarnation(connection, CLOCK.utc()))
    return database


def put_copy(root: Path, database: Database, store: str = "store") -> str:
    """A copy of its state into a store, as a gateway does; its name."""
    master = Follower(config_of(root, "active"), CLOCK).master
    file = io.BytesIO()
    made = dump(database, master, file)
    with database.read() as connection:
        server = read_incarnation(connection).server
    name = backup_name(made.id, from_moment(made.made_at))
    LocalStore(root / store).put(copies_prefix(server) + name, file.getvalue())
    return name


def new_standby(root: Path, name: str, store: str = "store") -> ServerConfig:
    """A machine that is a standby and holds nothing yet."""
    config = config_of(root, name, store)
    config.state_dir.mkdir(parents=True, mode=0o700)
    key = config.state_dir / "master.key"
    key.write_bytes((root / "active" / "master.key").read_bytes())
    key.chmod(0o600)
    begin_standby(config)
    return config
