"""The rotation of a gateway's vault key, from the first start with the new key file to the last deletion.

A key file of a later generation at the gateway is what begins it. A thread seals every machine of the store
again (`journal.key_rotation`), and comes back for machines that were not there. Then it waits: what only the
old key opens is deleted after the new recovery key was proved from an exported copy (rule 8) and no source
seals with the old one any more. All of it is repeated from the start after a crash, and finds what is done.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path

import msgspec

from secondsite.base.clock import Clock
from secondsite.base.crash import crash_point, mark
from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.base.files import read_limited, replace_file
from secondsite.base.parse import JSON_ERRORS
from secondsite.gateway.common.choose import parse_time
from secondsite.gateway.keys.recoverykey import RecoveryKeyGuard
from secondsite.gateway.messages.keys import FinishRotation, KeyPhase, KeyStatus, RetiredKeyStatus
from secondsite.journal.box import box_key_id
from secondsite.journal.chain import Journal, machines
from secondsite.journal.key_rotation import KeyUse, delete_replaced, is_resealed, reseal, uses
from secondsite.journal.keys import VaultKey
from secondsite.journal.store import ObjectStore, StoreLocked
from secondsite.model.events import EventSink, Severity
from secondsite.model.ids import MachineId

log = logging.getLogger(__name__)

AFTER_FINISH = mark("key.after-finish")

PASS_SECONDS = 60.0
# While somebody is about to finish it: a source that was restarted sends its first point within seconds.
WAITS_SECONDS = 3.0
RECORD_BYTES_MAX = 4096
# A source that sent a point within that time is there, and must have shown that it has the new key.
ACTIVE = timedelta(hours=1)


class RotationNotReady(SecondsiteError):
    """There is something to do first."""

    code = "key.rotation-not-ready"
    outcome = Outcome.UNAVAILABLE
    happened = "The rotation to the key {key} was not finished: {why}."
    cause = "Everything must be sealed with the new key, by every gateway, before the old one is let go of."
    action = (
        "See `secondsite key show` for how far it is, do what it names, and try again; nothing was changed. "
        "See RUNBOOK.md, rotate the recovery key."
    )


class NoRotation(SecondsiteError):
    """The gateway has its first key."""

    code = "key.no-rotation"
    outcome = Outcome.REFUSED
    happened = "No rotation is under way: gateway {name} seals with the key {key}, {why}."
    cause = "A rotation begins when a gateway with a store is started with a renewed key file."
    action = (
        "Make the file with `secondsite key renew`, put it in the gateways' place and restart them. "
        "See RUNBOOK.md, rotate the recovery key."
    )


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    """What survives a restart: that the new key was proved, so the old one's time is over."""

    key: str
    proved_at: str
    done: bool = False


class KeyRotation:
    """Thread-safe. `start` once, `close` at the end; does nothing for a vault's first key."""

    def __init__(
        self,
        vault: VaultKey,
        store: ObjectStore | None,
        *,
        guard: RecoveryKeyGuard,
        name: str,
        state_dir: Path,
        clock: Clock,
        events: EventSink,
    ) -> None:
        self._vault = vault
        self._store = store
        self._guard = guard
        self._name = name
        self._path = state_dir / "key-rotation.json"
        self._clock = clock
        self._events = events
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._root, name="key-rotation", daemon=True)
        self._record = self._read_record()
        self._phase = self._first_phase()
        self._progress = (0, 0)
        self._machine: str | None = None
        self._error: str | None = None
        self._waits: tuple[str, ...] = ()
        self._uses: dict[str, dict[str, KeyUse]] = {}  # key id -> machine's name -> what needs it
        vault.strictness.finished = self._record is not None

    def start(self) -> None:
        """Begin, or go on, where there is something to do."""
        if self._phase in (KeyPhase.NEVER, KeyPhase.NO_STORE):
            return
        if self._record is None:
            old = self._vault.retired[0].id
            text = (
                f"the vault key {self._vault.id} takes the place of {old}: everything is sealed with it now"
            )
            self._events.emit("key.rotation-began", Severity.INFORMATION, text)
        self._thread.start()

    def close(self) -> None:
        """Stop; it goes on at the next start."""
        self._stop.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()

    def status(self) -> KeyStatus:
        """Where it stands, as of the last pass."""
        with self._lock:
            done, total = self._progress
            return KeyStatus(
                key_id=self._vault.id,
                generation=self._vault.generation,
                phase=self._phase,
                retired=tuple(
                    _shown(
                        RetiredKeyStatus(key_id=k.id, generation=k.generation, retired_at=k.retired_at),
                        self._uses,
                    )
                    for k in self._vault.retired
                ),
                machines_done=done,
                machines_total=total,
                machine=self._machine,
                waits=self._waits,
                error=self._error,
                proved_at=self._record.proved_at if self._record else None,
            )

    def finish(self, request: FinishRotation) -> KeyStatus:
        """The recovery key was proved: let go of the old one.

        Raises:
            NoRotation: there is nothing to finish. RotationNotReady: not yet.
            RecoveryKeyNotProved, RecoveryKeyNotExported, RecoveryKeyInStore: the proof is none.
        """
        if self._phase in (KeyPhase.NEVER, KeyPhase.NO_STORE):
            why = "the first of its vault" if self._phase is KeyPhase.NEVER else "and has no store"
            raise NoRotation(name=self._name, key=self._vault.id, why=why)
        self._guard.check(request.nonce, request.proof, request.key_file)
        with self._lock:
            if self._record is None:
                if self._phase is not KeyPhase.PROOF:
                    raise RotationNotReady(
                        key=self._vault.id, why=self._error or "not everything is sealed yet"
                    )
                if self._waits:
                    raise RotationNotReady(key=self._vault.id, why="; ".join(self._waits))
                self._keep(_Record(key=self._vault.id, proved_at=self._clock.utc().isoformat()))
                crash_point(AFTER_FINISH)
                self._vault.strictness.finished = True
                self._phase = KeyPhase.DELETING
        self._wake.set()
        return self.status()

    # -- the thread -----------------------------------------------------------------------------

    def _root(self) -> None:
        while not self._stop.is_set():
            self._wake.clear()
            try:
                self._pass()
            except SecondsiteError as error:
                self._failed(str(error))
            except Exception as error:  # a thread's root: told, and tried again
                log.exception("the rotation of the vault key failed")
                self._failed(f"{type(error).__name__}: {error}")
            if self._phase is KeyPhase.FINISHED:
                return
            self._clock.wait(self._wake, WAITS_SECONDS if self._waits else PASS_SECONDS)

    def _pass(self) -> None:
        """Once over all machines; then, where the key was proved, once more to delete."""
        assert self._store is not None
        found = machines(self._store)
        sealed = self._over(found, self._seal)
        waits = self._look(found)
        if not sealed or self._stop.is_set():
            return
        if self._record is None:
            self._move(KeyPhase.PROOF, waits)
            return
        self._move(KeyPhase.DELETING, ())
        if self._record.done or self._over(found, self._delete):
            self._look(found)
            if not self._record.done and not self._stop.is_set():
                self._keep(msgspec.structs.replace(self._record, done=True))
                text = (
                    f"the rotation to the vault key {self._vault.id} is finished: it alone counts from now on"
                )
                self._events.emit("key.rotation-finished", Severity.INFORMATION, text)
            if not self._stop.is_set():
                self._move(KeyPhase.FINISHED, ())

    def _over(self, found: list[MachineId], work: Callable[[Journal], bool]) -> bool:
        """One step for each machine; whether all went well. One that fails does not stop the others."""
        well, wrong = True, None
        for count, machine in enumerate(found):
            if self._stop.is_set():
                return False
            with self._lock:
                self._progress, self._machine = (count, len(found)), machine
            try:
                well &= work(Journal(self._store_here(), machine, self._vault))
            except SecondsiteError as error:
                well, wrong = False, f"machine {machine}: {error}"
                self._failed(wrong)
        with self._lock:
            self._progress, self._machine = (len(found) if well else 0, len(found)), None
            self._error = wrong
        return well

    def _store_here(self) -> ObjectStore:
        assert self._store is not None
        return self._store

    def _seal(self, journal: Journal) -> bool:
        reseal(journal, self._vault, claimant=self._name, clock=self._clock)
        return is_resealed(journal, self._vault)

    def _delete(self, journal: Journal) -> bool:
        locked: list[StoreLocked] = []
        delete_replaced(journal, self._vault, on_locked=locked.append)
        if locked:
            self._failed(str(locked[0]))
        return not locked

    def _look(self, found: list[MachineId]) -> tuple[str, ...]:
        """What needs which key, for people; returns what has to be waited for."""
        waits: list[str] = []
        known: dict[str, dict[str, KeyUse]] = {}
        for machine in found:
            if self._stop.is_set():
                return tuple(waits)
            journal = Journal(self._store_here(), machine, self._vault)
            try:
                points = journal.points()
                name = points[-1].machine_name if points else str(machine)
                for key, use in uses(journal, self._vault).items():
                    known.setdefault(key, {})[name] = use
            except SecondsiteError:
                continue  # told where it was to be sealed
            if points and self._lags(points[-1].definition, points[-1].committed_at):
                waits.append(f"the source of {name} still seals with an old key (point {points[-1].number})")
        with self._lock:
            self._uses = known
        return tuple(waits)

    def _lags(self, definition: bytes, committed_at: str) -> bool:
        sealer = box_key_id(definition)
        if sealer in ("", self._vault.id):
            return False
        return self._clock.utc() - parse_time(committed_at) < ACTIVE

    def _move(self, phase: KeyPhase, waits: tuple[str, ...]) -> None:
        with self._lock:
            began = phase is KeyPhase.PROOF and self._phase is not phase
            self._phase, self._waits = phase, waits
        if began:
            text = (
                f"everything is sealed with the vault key {self._vault.id}; prove that you hold it: "
                "secondsite key rotate --recovery-key-file COPY"
            )
            self._events.emit("key.rotation-waits", Severity.WARNING, text)

    def _failed(self, text: str) -> None:
        with self._lock:
            told, self._error = self._error == text, text
        if not told:
            text = f"the rotation of the vault key does not come to an end: {text}"
            self._events.emit("key.rotation-failed", Severity.WARNING, text)

    # -- what survives a restart ----------------------------------------------------------------

    def _first_phase(self) -> KeyPhase:
        if self._store is None:
            return KeyPhase.NO_STORE
        if not self._vault.retired:
            return KeyPhase.NEVER
        if self._record is None:
            return KeyPhase.SEALING
        return KeyPhase.DELETING

    def _read_record(self) -> _Record | None:
        """Of this key; None when it was not proved yet."""
        try:
            data = read_limited(self._path, size_bytes_max=RECORD_BYTES_MAX)
            record = msgspec.json.decode(data, type=_Record)
        except FileNotFoundError:
            return None
        except JSON_ERRORS:
            return None  # it only says that a proof was given: it can be given again
        return record if record.key == self._vault.id else None

    def _keep(self, record: _Record) -> None:
        replace_file(self._path, msgspec.json.encode(record))
        self._record = record


def _shown(status: RetiredKeyStatus, known: Mapping[str, Mapping[str, KeyUse]]) -> RetiredKeyStatus:
    found = known.get(status.key_id, {})
    return msgspec.structs.replace(
        status,
        points=sum(use.points for use in found.values()),
        wrapped_keys=sum(use.wrapped for use in found.values()),
        copies=sum(use.copies for use in found.values()),
        machines=tuple(sorted(name for name, use in found.items() if use.needed)),
    )
