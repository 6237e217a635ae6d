"""Tables of the server's own survival: who it is, which incarnation, and what was backed up."""

from __future__ import annotations

from sqlalchemy import BigInteger, CheckConstraint, Column, Index, Integer, LargeBinary, Table, Text

from secondsite.server.database.metadata import METADATA

server_state = Table(
    "server_state",
    METADATA,
    Column("id", Integer, CheckConstraint("id = 1", name="one"), primary_key=True, autoincrement=False),
    Column("server", Text, nullable=False),  # 32 hexadecimal digits; stays through every restore
    Column("incarnation", BigInteger, nullable=False),  # a restore makes a higher one
    Column("restored_from", Text),  # the backup's id
    Column("backup_at", Text),  # when that backup was made
    Column("restored_at", Text),
    Column(
        "superseded_by", BigInteger
    ),  # a higher incarnation that a gateway knows: this server may not work
    Column("superseded_url", Text),  # where it is reached, if it said so
    Column("handed_over_at", Text),  # stopped in order, for a standby to go on: no job runs since
)

# Standby servers, and the one this one took over from: where they are reached, how far they follow.
server_standbys = Table(
    "server_standbys",
    METADATA,
    Column("id", Text, primary_key=True),  # 32 hexadecimal digits, of its state directory
    Column("name", Text, nullable=False),
    Column("url", Text, nullable=False),
    Column("seen_at", Text, nullable=False),
    Column("copy", Text, nullable=False),  # the name of what it holds, verified; empty: nothing yet
    Column("current_at", Text),  # when what it holds was all there was
    Column("late_seconds", Integer, nullable=False),  # how far behind it may be before that is told
    Column("late_since", Text),  # since when it is told to be late
)

# Copies of the state for standbys, on their way and the last ones made.
server_copies = Table(
    "server_copies",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("made_at", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("final", Integer, nullable=False),  # 1: made after everything had stopped
    Column("kept_at", Text),
    Column("places", Text, nullable=False),  # JSON, as of backups
    Index(None, "made_at"),
)

server_backups = Table(
    "server_backups",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("job", Text, nullable=False),
    Column("made_at", Text, nullable=False),
    Column("incarnation", BigInteger, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("kept_at", Text),  # when the first place had it
    Column("places", Text, nullable=False),  # JSON: where it is, and why it is not elsewhere
    Index(None, "made_at"),
)

# A backup on its way to the stores: in the database, because any server may be asked for it by a gateway.
server_backup_parts = Table(
    "server_backup_parts",
    METADATA,
    Column("backup", Text, primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("data", LargeBinary, nullable=False),
)

# Where each authority stands; one without a row is in use.
authority_phases = Table(
    "authority_phases",
    METADATA,
    Column("authority", Text, primary_key=True),
    Column("phase", Text, nullable=False),  # survival.rotation.Phase
    Column("since", Text, nullable=False),
)

# What each gateway last showed of its trust: who waits for it can tell when all have followed.
gateway_trust = Table(
    "gateway_trust",
    METADATA,
    Column("gateway_id", Text, primary_key=True),
    Column("trust", Text, nullable=False),  # `transfer.trust.trust_id` of the authorities it trusts
    Column("issuer", Text, nullable=False),  # the authority of the certificate it shows
    Column("revocations", BigInteger, nullable=False),  # number of the list it has
    Column("since", Text, nullable=False),  # since when all three are so
)

# What a backup leaves out: of this moment only, or a backup itself.
EXCLUDED = frozenset({"job_workers", "calls", "server_backup_parts", "server_copies"})
