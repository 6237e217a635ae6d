"""What may be wrong with a backup of the server, and with taking one back."""

from __future__ import annotations

from secondsite.base.errors import Outcome, SecondsiteError


class BackupDamaged(SecondsiteError):
    """Not what was written."""

    code = "server-backup.damaged"
    outcome = Outcome.DAMAGED
    happened = "The backup {what} is not whole: {why}."
    cause = "It was cut off while it was copied, or its bytes were changed."
    action = "Take another one: `secondsite server backups --store URL` lists those of a store."


class BackupForeign(SecondsiteError):
    """Another master key."""

    code = "server-backup.wrong-key"
    outcome = Outcome.REFUSED
    happened = "The backup {what} was sealed with master key {sealed}; the one given is {given}."
    cause = "It is of another server, or the file is of another time."
    action = "Give the master key of the server that made it (`master.key` of its state directory)."


class BackupTooNew(SecondsiteError):
    """Made by a newer program."""

    code = "server-backup.too-new"
    outcome = Outcome.REFUSED
    happened = "The backup {what} is of version {found}, this program reads up to {known}."
    cause = "It was made by a newer server."
    action = "Install the version of secondsite that made it, or a newer one, and restore with that."


class DatabaseNotEmpty(SecondsiteError):
    """A restore never writes over anything."""

    code = "server-backup.database-not-empty"
    outcome = Outcome.REFUSED
    happened = "The database {where} is not empty: it has the table {table}."
    cause = "A server has run with this database already, or a restore into it ended."
    action = (
        "Restore into a new one: move the file away, or `CREATE DATABASE` another and name it in the "
        "configuration. Nothing was changed."
    )
