"""Episodes: points in doubt, kept in the store beside the log; what a detector of mass encryption found.

``machines/<machine>/episodes/<first>`` is created once when an alert is raised, and
``machines/<machine>/episodes/<first>-dismissed`` once when a person has looked and found nothing wrong; both
are records of their own kinds, framed and sealed as points are, with `first` as their number. They outlive
the points they speak of: when those are thinned out, what was measured then cannot be judged again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from secondsite.base.parse import JSON_ERRORS
from secondsite.journal.chain import Journal
from secondsite.journal.errors import damaged
from secondsite.journal.format import RECORD_DISMISSAL, RECORD_EPISODE
from secondsite.journal.manifest import frame, open_frame
from secondsite.journal.names import machine_prefix
from secondsite.journal.store import ObjectExists, ObjectMissing
from secondsite.model.ids import MachineId
from secondsite.model.signals import Episode

EPISODE_BYTES_MAX = 64 * 1024
NOTE_CHARACTERS_MAX = 8192
_DISMISSED = "-dismissed"


class EpisodeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """An alert."""

    machine: MachineId
    first: int  # the first point in doubt
    number: int  # the point at which it was certain
    clean: int | None  # the newest point before `first` at that time; None: there was none
    clean_at: str | None  # the instant it holds
    found_at: str
    reason: str  # the numbers, as a sentence part
    critical: bool
    scrambled_bytes: int


class Dismissal(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody looked and found the points sound."""

    machine: MachineId
    first: int
    until: int  # the newest point then
    note: str
    by: str
    at: str


class KeptEpisode(msgspec.Struct, frozen=True, kw_only=True):
    """An alert with what became of it."""

    found: EpisodeRecord
    dismissed: Dismissal | None = None

    def verdict(self) -> Episode:
        """For `model.signals.last_clean`."""
        return Episode(self.found.first, self.dismissed.until if self.dismissed else None)


_R = TypeVar("_R", EpisodeRecord, Dismissal)
_encoder = msgspec.json.Encoder(order="deterministic")
_episode = msgspec.json.Decoder(EpisodeRecord)
_dismissal = msgspec.json.Decoder(Dismissal)


def episodes_prefix(machine: MachineId) -> str:
    """Episodes and their dismissals."""
    return f"{machine_prefix(machine)}episodes/"


def episode_name(machine: MachineId, first: int, *, dismissed: bool = False) -> str:
    """One of them."""
    return f"{episodes_prefix(machine)}{first:016d}{_DISMISSED if dismissed else ''}"


def keep_episode(journal: Journal, record: EpisodeRecord) -> bool:
    """Create it; False when there is one that begins with the same point."""
    body = _encoder.encode(record)
    try:
        journal.store.put(
            episode_name(journal.machine, record.first),
            frame(RECORD_EPISODE, record.first, body, journal.log_key),
        )
    except ObjectExists:
        return False
    return True


def keep_dismissal(journal: Journal, record: Dismissal) -> None:
    """Create it; the first one counts."""
    body = _encoder.encode(record)
    with contextlib.suppress(ObjectExists):
        journal.store.put(
            episode_name(journal.machine, record.first, dismissed=True),
            frame(RECORD_DISMISSAL, record.first, body, journal.log_key),
        )


def read_episodes(journal: Journal) -> list[KeptEpisode]:
    """All of a machine, by their first point.

    Raises:
        ObjectDamaged, FormatUnknown, WrongKey.
    """
    names = set(journal.store.list(episodes_prefix(journal.machine)))
    found = []
    for name in sorted(names):
        if name.endswith(_DISMISSED):
            continue
        with contextlib.suppress(ObjectMissing):
            episode = _read(journal, name, RECORD_EPISODE, _episode)
            dismissed = None
            if f"{name}{_DISMISSED}" in names:
                dismissed = _read(journal, f"{name}{_DISMISSED}", RECORD_DISMISSAL, _dismissal)
            found.append(KeptEpisode(found=episode, dismissed=dismissed))
    return found


def verdicts(kept: Sequence[KeptEpisode]) -> list[Episode]:
    """As `model.signals` takes them."""
    return [episode.verdict() for episode in kept]


def _read(journal: Journal, name: str, kind: int, decoder: msgspec.json.Decoder[_R]) -> _R:
    data = journal.store.get(name, size_bytes_max=EPISODE_BYTES_MAX)
    found, number, body = open_frame(name, data, journal.log_key)
    if found != kind:
        raise damaged(name, f"it is of kind {found}")
    try:
        record = decoder.decode(body)
    except JSON_ERRORS as error:
        raise damaged(name, f"its body does not parse: {error}") from None
    if (record.machine, record.first) != (journal.machine, number) or name != episode_name(
        journal.machine, number, dismissed=kind == RECORD_DISMISSAL
    ):
        raise damaged(name, "it belongs to another machine or point")
    return record
