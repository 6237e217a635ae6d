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

from secondsite.base.crash import crash_point, mark
from secondsite.base.parse import JSON_ERRORS
from secondsite.journal.chain import Journal
from secondsite.journal.errors import WrongKey, damaged
from secondsite.journal.format import RECORD_DISMISSAL, RECORD_EPISODE
from secondsite.journal.keys import LogKey, check_current
from secondsite.journal.manifest import frame, open_frame, record_key_id
from secondsite.journal.names import machine_prefix
from secondsite.journal.store import ObjectExists, ObjectMissing
from secondsite.model.ids import MachineId
from secondsite.model.signals import Episode

AFTER_EPISODE = mark("key.after-episode")

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
_EPISODES = RECORD_EPISODE, msgspec.json.Decoder(EpisodeRecord)
_DISMISSALS = RECORD_DISMISSAL, msgspec.json.Decoder(Dismissal)


def episodes_prefix(machine: MachineId) -> str:
    """Episodes and their dismissals."""
    return f"{machine_prefix(machine)}episodes/"


def episode_name(machine: MachineId, first: int, *, dismissed: bool = False) -> str:
    """One of them, sealed with the vault's first key; of a later key its id follows after a dot."""
    return f"{episodes_prefix(machine)}{first:016d}{_DISMISSED if dismissed else ''}"


def _under(key: LogKey | None) -> str:
    """What a key's generation adds to a name."""
    return f".{key.vault_id}" if key is not None and key.generation > 1 else ""


def keep_episode(journal: Journal, record: EpisodeRecord) -> bool:
    """Create it; False when there is one that begins with the same point."""
    body = _encoder.encode(record)
    try:
        journal.store.put(
            episode_name(journal.machine, record.first) + _under(journal.log_key),
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
            episode_name(journal.machine, record.first, dismissed=True) + _under(journal.log_key),
            frame(RECORD_DISMISSAL, record.first, body, journal.log_key),
        )


def read_episodes(journal: Journal) -> list[KeptEpisode]:
    """All of a machine, by their first point.

    Raises:
        ObjectDamaged, FormatUnknown, WrongKey.
    """
    names = _sealed(journal)
    found = []
    for base, (name, key) in sorted(names.items()):
        if base.endswith(_DISMISSED):
            continue
        with contextlib.suppress(ObjectMissing):
            episode = _read(journal, name, key, _EPISODES)[1]
            dismissed = None
            if base + _DISMISSED in names:
                dismissed = _read(journal, *names[base + _DISMISSED], _DISMISSALS)[1]
            found.append(KeptEpisode(found=episode, dismissed=dismissed))
    return found


def reseal_episodes(journal: Journal) -> int:
    """Seal what a retired key sealed again, beside it, with the present one. Returns how many."""
    count = 0
    for base, (name, key) in sorted(_sealed(journal).items()):
        if key is journal.log_key:
            continue
        kind = RECORD_DISMISSAL if base.endswith(_DISMISSED) else RECORD_EPISODE
        with contextlib.suppress(ObjectMissing):
            if kind == RECORD_EPISODE:
                body, first = _body(_read(journal, name, key, _EPISODES))
            else:
                body, first = _body(_read(journal, name, key, _DISMISSALS))
            with contextlib.suppress(ObjectExists):
                journal.store.put(base + _under(journal.log_key), frame(kind, first, body, journal.log_key))
            crash_point(AFTER_EPISODE)
            count += 1
    return count


def _body(read: tuple[bytes, EpisodeRecord | Dismissal]) -> tuple[bytes, int]:
    return read[0], read[1].first


def replaced_episodes(journal: Journal) -> list[str]:
    """Objects that are there once more, sealed with the present key."""
    present = {base + _under(journal.log_key) for base in _bases(journal)}
    there = list(journal.store.list(episodes_prefix(journal.machine)))
    kept = present & set(there)
    return [name for name in there if name not in kept and _base(name) + _under(journal.log_key) in kept]


def _base(name: str) -> str:
    return name.partition(".")[0]


def _bases(journal: Journal) -> set[str]:
    return {_base(name) for name in journal.store.list(episodes_prefix(journal.machine))}


def _sealed(journal: Journal) -> dict[str, tuple[str, LogKey | None]]:
    """Of each episode and dismissal the object that counts, with the key it must be sealed with.

    Once a machine's log is the present key's, nothing an older one sealed counts. Raises WrongKey.
    """
    there = set(journal.store.list(episodes_prefix(journal.machine)))
    found: dict[str, tuple[str, LogKey | None]] = {}
    ours = journal.log_key
    keyed = journal.state().keyed if there else None
    oldest = keyed.generation if keyed is not None else 0
    for base in {_base(name) for name in there}:
        keys = [key for key in (ours, *(ours.retired if ours else ())) if base + _under(key) in there]
        if not keys and ours is not None:
            other = min(name for name in there if _base(name) == base)
            raise WrongKey(what=other, needed=other.partition(".")[2], given=ours.vault_id)
        if keys and (keys[0] is None or keys[0].generation >= oldest):
            found[base] = base + _under(keys[0]), keys[0]
    return found


def found_in(journal: Journal) -> list[Episode]:
    """What a choice of a point asks about a machine's points in doubt. Raises as `read_episodes` does."""
    return verdicts(read_episodes(journal))


def verdicts(kept: Sequence[KeptEpisode]) -> list[Episode]:
    """As `model.signals` takes them."""
    return [episode.verdict() for episode in kept]


def _read(
    journal: Journal, name: str, key: LogKey | None, of: tuple[int, msgspec.json.Decoder[_R]]
) -> tuple[bytes, _R]:
    """(the body, what it says). key: whose seal its name promises."""
    kind, decoder = of
    data = journal.store.get(name, size_bytes_max=EPISODE_BYTES_MAX)
    found, number, body = open_frame(name, data, journal.log_key)
    if found != kind:
        raise damaged(name, f"it is of kind {found}")
    check_current(name, key, record_key_id(data), "under this name")
    try:
        record = decoder.decode(body)
    except JSON_ERRORS as error:
        raise damaged(name, f"its body does not parse: {error}") from None
    if (record.machine, record.first) != (journal.machine, number) or _base(name) != episode_name(
        journal.machine, number, dismissed=kind == RECORD_DISMISSAL
    ):
        raise damaged(name, "it belongs to another machine or point")
    return bytes(body), record
