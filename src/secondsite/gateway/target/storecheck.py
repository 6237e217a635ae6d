"""The store a gateway is configured with: opened, and probed once before anything is entrusted to it.

What was found is kept in ``<state>/store.json``. The probe is made again when the store or the wish for locks
changed; a store that was refused is not remembered, so a corrected one is found at the next start.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec

from secondsite.base import files
from secondsite.base.clock import Clock
from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.base.units import MIB
from secondsite.gateway.common.config import GatewayConfig
from secondsite.journal.probe import StoreAbilities, Verdict, probe_store
from secondsite.journal.store import ObjectStore
from secondsite.journal.stores import open_store
from secondsite.model.events import EventSink, Severity

FILE_BYTES_MAX = 1 * MIB


class StoreUnfit(SecondsiteError):
    """The probe said no."""

    code = "store.unfit"
    outcome = Outcome.REFUSED
    happened = "The gateway does not start: the store {store} cannot hold a journal: {why}"
    cause = "Wrong credentials, a missing permission, or a server that does not do what journals rely on."
    action = "Run `secondsite store check {store}`, correct what it names or choose another store."


class Probed(msgspec.Struct, frozen=True, kw_only=True):
    """What is remembered."""

    url: str
    lock_days: int
    abilities: StoreAbilities


def open_checked(config: GatewayConfig, *, clock: Clock, events: EventSink) -> ObjectStore | None:
    """The configured store; None when there is none.

    Raises:
        StoreUnfit: it must not be used.
        StoreUnavailable: it does not answer, and was not probed before.
    """
    if not config.store:
        return None
    store = open_store(
        config.store,
        staging=config.cache_dir / "staging",
        credentials=config.store_credentials,
        lock_days=config.store_lock_days,
        clock=clock,
    )
    abilities = _remembered(config, store)
    if abilities is None:
        abilities = probe_store(store, lock_days=config.store_lock_days, clock=clock)
        if abilities.verdict is Verdict.REFUSED:
            error = StoreUnfit(store=store.url, why="; ".join(abilities.reasons))
            events.emit("store.unfit", Severity.CRITICAL, str(error))
            store.close()
            raise error
        found = Probed(url=store.url, lock_days=config.store_lock_days, abilities=abilities)
        files.replace_file(_file(config), msgspec.json.encode(found))
        done = ", ".join(check.name for check in abilities.checks if check.finding == "yes")
        events.emit("store.probed", Severity.INFORMATION, f"The store {store.url} was probed: {done}.")
    if abilities.verdict is Verdict.DEGRADED:
        why = "; ".join(abilities.reasons)
        events.emit("store.degraded", Severity.WARNING, f"The store {store.url} is used, but {why}.")
    return store


def _file(config: GatewayConfig) -> Path:
    return config.state_dir / "store.json"


def _remembered(config: GatewayConfig, store: ObjectStore) -> StoreAbilities | None:
    """What an earlier start found of this store; a file that does not parse is as good as none."""
    with contextlib.suppress(FileNotFoundError, files.FileTooLarge, msgspec.MsgspecError):
        data = files.read_limited(_file(config), size_bytes_max=FILE_BYTES_MAX)
        probed = msgspec.json.decode(data, type=Probed)
        if (probed.url, probed.lock_days) == (store.url, config.store_lock_days):
            return probed.abilities
    return None
