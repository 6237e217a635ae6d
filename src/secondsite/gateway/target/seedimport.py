"""Offline seeding at the target: media are checked object by object, then taken into the store.

Every hash is checked before anything is put. Then keys and segments are put as if the source had sent them,
under its name and in the epoch it claimed, and the point is committed. Each step may be repeated: an import
that was killed goes on with what is missing, and one that is done says so.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field
from pathlib import Path

from secondsite.base.clock import Clock
from secondsite.base.crash import crash_point, mark
from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.base.units import format_bytes
from secondsite.gateway.common.seedmedia import (
    MANIFEST,
    SeedDamaged,
    SeedManifest,
    SeedNotFound,
    SeedPathRefused,
    SeedRefused,
    find_damage,
    read_manifest,
    seeds_in,
    segment_path,
)
from secondsite.gateway.messages.seeding import SeedImportState, SeedImportStatus
from secondsite.gateway.target.receive import GatewayReceiver
from secondsite.journal.keys import VaultKey, decode_wrapped
from secondsite.model.events import EventSink, Severity
from secondsite.transfer.errors import TransferCancelled
from secondsite.transfer.memory import MemoryLink
from secondsite.transfer.protocols import Peer, TargetHead
from secondsite.transfer.wire import check_proposal

log = logging.getLogger(__name__)

AFTER_SEGMENT = mark("seed-import.after-segment")
BEFORE_COMMIT = mark("seed-import.before-commit")
AFTER_COMMIT = mark("seed-import.after-commit")

NAMES_MAX = 20
_RUNNING = (SeedImportState.CHECKING, SeedImportState.IMPORTING)


class ImportRunning(SecondsiteError):
    """One at a time."""

    code = "seed.import-running"
    outcome = Outcome.REFUSED
    happened = "An import from {path} is under way."
    cause = "It was asked for before."
    action = "Wait for it; its progress is shown."


@dataclass
class _Run:
    """One import; its figures are read by other threads."""

    directory: Path
    state: SeedImportState = SeedImportState.CHECKING
    machine: str = ""
    done_bytes: int = 0
    total_bytes: int = 0
    started: float = 0.0
    points: dict[str, int] = field(default_factory=dict)  # by machine name
    error: SecondsiteError | None = None


class SeedImports:
    """A target's imports. Thread-safe; `close` stops one that runs, to be asked for again."""

    def __init__(
        self, receiver: GatewayReceiver, *, vault: VaultKey, clock: Clock, events: EventSink
    ) -> None:
        self._receiver = receiver
        self._vault = vault
        self._clock = clock
        self._events = events
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._run: _Run | None = None
        self._thread: threading.Thread | None = None

    def start(self, directory: Path) -> SeedImportStatus:
        """Begin. Raises ImportRunning, SeedPathRefused, SeedNotFound."""
        if not directory.is_absolute() or not directory.is_dir():
            raise SeedPathRefused(path=directory, why="it is not the absolute path of a directory")
        seeds = seeds_in(directory)
        if not seeds:
            raise SeedNotFound(path=directory, why="no manifest is there")
        with self._lock:
            # by what is shown of it, not by its thread: who is shown that it failed may ask at once
            if self._run is not None and self._run.state in _RUNNING:
                raise ImportRunning(path=self._run.directory)
            run = self._run = _Run(directory, started=self._clock.monotonic())
            self._thread = threading.Thread(
                target=self._root, args=(run, seeds), name="seed import", daemon=True
            )
            self._thread.start()
        return self.show()

    def show(self) -> SeedImportStatus:
        """The import that runs, or the last one."""
        run = self._run
        if run is None:
            return SeedImportStatus(state=SeedImportState.NONE)
        seconds = self._clock.monotonic() - run.started
        rate = run.done_bytes / seconds if seconds > 0 else 0.0
        left = (run.total_bytes - run.done_bytes) / rate if rate > 0 else None
        return SeedImportStatus(
            state=run.state,
            directory=str(run.directory),
            machine=run.machine,
            done_bytes=run.done_bytes,
            total_bytes=run.total_bytes,
            bytes_per_second=rate,
            seconds_left=left,
            points=dict(run.points),
            error={key: str(value) for key, value in run.error.as_dict().items()} if run.error else None,
        )

    def close(self) -> None:
        """Stop."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _root(self, run: _Run, seeds: list[Path]) -> None:
        """The import's thread."""
        try:
            self._import(run, seeds)
            run.state = SeedImportState.IMPORTED
        except SecondsiteError as error:
            self._events.emit("seed.import-failed", Severity.WARNING, f"{run.directory}: {error}")
            run.error, run.state = error, SeedImportState.FAILED
        except Exception as error:  # the thread's root: told, and it may be asked for again
            log.exception("importing %s failed", run.directory)
            why = f"{type(error).__name__}: {error}"
            self._events.emit("seed.import-failed", Severity.CRITICAL, f"{run.directory}: {why}")
            run.error = SeedRefused(machine=run.machine or "?", why=why)
            run.state = SeedImportState.FAILED

    def _import(self, run: _Run, seeds: list[Path]) -> None:
        found = [(seed, self._checked(seed)) for seed in seeds]
        # every byte is read twice: to be checked, and to be put
        run.total_bytes = 2 * sum(r.stored_bytes for _, m in found for r in m.proposal.segments)
        todo = []
        for seed, manifest in found:
            run.machine = manifest.machine_name
            number = self._is_here(manifest)
            if number is not None:
                run.points[manifest.machine_name] = number
                run.done_bytes += 2 * sum(ref.stored_bytes for ref in manifest.proposal.segments)
                continue
            self._verify(run, seed, manifest)
            todo.append((seed, manifest))
        run.state = SeedImportState.IMPORTING
        for seed, manifest in todo:
            run.machine = manifest.machine_name
            self._put(run, seed, manifest)

    def _checked(self, seed: Path) -> SeedManifest:
        """The manifest, if everything in it has the form it may have and is of our vault."""
        manifest = read_manifest(seed / MANIFEST, self._vault)
        check_proposal(manifest.proposal, manifest.machine, peer=manifest.writer)
        named = {disk.key_id for disk in manifest.proposal.disks}
        named |= {ref.key_id for ref in manifest.proposal.segments if ref.key_id is not None}
        for missing in sorted(named - manifest.keys.keys()):
            raise SeedDamaged(count=1, path=seed, names=f"{MANIFEST} (without the key {missing})")
        for key, data in manifest.keys.items():
            machine, _, unwrapped = decode_wrapped(self._vault, data)
            if machine != manifest.machine or unwrapped.id != key:
                raise SeedDamaged(count=1, path=seed, names=f"{MANIFEST} (key {key} is of something else)")
        return manifest

    def _is_here(self, manifest: SeedManifest) -> int | None:
        """The number of its point, if it was imported before. Raises SeedRefused, PeerNotAllowed."""
        head = self._receiver.head(Peer(name=manifest.writer), manifest.machine)
        if head.point is not None:
            for point in self._receiver.journal(manifest.machine).points():
                if point.nonce == manifest.proposal.nonce:
                    return point.number
        why = _unfit(manifest, head)
        if why:
            raise SeedRefused(machine=manifest.machine_name, why=why)
        return None

    def _verify(self, run: _Run, seed: Path, manifest: SeedManifest) -> None:
        damaged = []
        for ref in manifest.proposal.segments:
            self._go_on()
            why = find_damage(seed, ref)
            if why:
                damaged.append(f"{segment_path(seed, ref).name} ({why})")
            run.done_bytes += ref.stored_bytes
        if damaged:
            more = f" and {len(damaged) - NAMES_MAX} more" if len(damaged) > NAMES_MAX else ""
            names = ", ".join(damaged[:NAMES_MAX]) + more
            raise SeedDamaged(count=len(damaged), path=seed, names=names)

    def _put(self, run: _Run, seed: Path, manifest: SeedManifest) -> None:
        link = MemoryLink(self._receiver, Peer(name=manifest.writer, address=str(seed)))
        for key, data in manifest.keys.items():
            link.put_key(manifest.machine, key, data)
        for ref in manifest.proposal.segments:
            self._go_on()
            link.send_segment(manifest.machine, ref, segment_path(seed, ref), cancel=self._stop)
            run.done_bytes += ref.stored_bytes
            crash_point(AFTER_SEGMENT)
        crash_point(BEFORE_COMMIT)
        point = link.commit(manifest.proposal)
        crash_point(AFTER_COMMIT)
        run.points[manifest.machine_name] = point.number
        size = format_bytes(sum(ref.stored_bytes for ref in manifest.proposal.segments))
        text = f"the first copy of {manifest.machine_name} came on media ({size}): point {point.number}"
        self._events.emit("seed.imported", Severity.INFORMATION, text, machine=manifest.machine)

    def _go_on(self) -> None:
        if self._stop.is_set():
            raise TransferCancelled(what="a seed's import")


def _unfit(manifest: SeedManifest, head: TargetHead) -> str:
    """Why a seed cannot become the machine's first point here; empty when it can."""
    epoch = manifest.proposal.epoch
    if head.epoch == 0:
        return "this gateway knows nothing of the machine: its source never reached it, or reached another"
    if head.claimant not in {None, manifest.writer}:
        return f"the machine's writer is {head.claimant}, the seed is of {manifest.writer}"
    if head.epoch != epoch:
        return f"the seed is of epoch {epoch}, the machine is at {head.epoch}"
    if head.point is not None:
        return f"the machine has point {head.point.number} already"
    return ""
