"""A replica whose points carry fingerprints and whose keys are in the store, and ways to damage it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import msgspec

from secondsite.base.errors import SecondsiteError
from secondsite.journal.base_sums import HEADER as SUMS_HEADER
from secondsite.journal.chain import Head, Journal
from secondsite.journal.digests import combine, digest_sub_blocks, fingerprint_text
from secondsite.journal.keys import KeyRing, encode_wrapped
from secondsite.journal.names import log_name, state_name, wrapped_key_name
from secondsite.journal.scrub import ScrubReport, Trusted, scrub
from secondsite.journal.state import encode_state
from secondsite.journal.store_memory import MemoryStore
from secondsite.journal.view import open_view
from secondsite.model.ids import DiskId
from secondsite.model.points import Point, PointProposal
from support.journal_model import MACHINE, Replica

assert SUMS_HEADER.size == 56


class Scrubbed(Replica):
    """The model's replica, complete enough to be verified."""

    def __init__(self, seed: int = 0, *, fingerprints: bool = True) -> None:
        super().__init__(seed)
        self.fingerprints = fingerprints
        for disk, key in self.keys.items():
            wrapped = encode_wrapped(self.vault, MACHINE, disk, key)
            self.store.put(wrapped_key_name(MACHINE, key.id), wrapped)

    def commit(self, proposal: PointProposal) -> Point:
        def fingerprints(_: PointProposal, __: Head) -> Mapping[DiskId, str | None]:
            if not self.fingerprints:
                return {}
            return {disk: self.fingerprint(disk, bytes(content)) for disk, content in self.now.items()}

        point = self.journal.commit(proposal, clock=self.clock, fingerprints=fingerprints)
        self.remember(point.number, proposal.checkpoint)
        return point

    def fingerprint(self, disk: DiskId, content: bytes) -> str:
        return fingerprint_text(
            combine(digest_sub_blocks(memoryview(content), 0, self.keys[disk].digest_seed()))
        )

    def scrub(self, *, points: Sequence[int] | None = None, trusted: Trusted | None = None) -> ScrubReport:
        return scrub(
            Journal(self.store, MACHINE, self.vault),
            KeyRing(self.store, MACHINE, self.vault),
            self.base_of_store,
            clock=self.clock,
            points=points,
            trusted=trusted,
        )

    def base_of_store(self, disk: DiskId):  # type: ignore[no-untyped-def]
        return self.bases.get(disk)

    # -- what can be read -----------------------------------------------------------------------

    def listed(self) -> list[int]:
        floor = self.journal.state().floor
        return sorted(number for number in self.points if number >= floor)

    def readable(self, store: MemoryStore, number: int) -> bool:
        """Whether the point reads what the source held, by someone who has nothing but the store."""
        journal, keys = Journal(store, MACHINE, self.vault), KeyRing(store, MACHINE, self.vault)
        try:
            with open_view(journal, number, keys, bases=self.base_of_store, cache_bytes=0) as view:
                read = {disk: found.read(0, found.size_bytes) for disk, found in view.disks.items()}
        except (SecondsiteError, EOFError):
            return False
        return read == self.points[number]

    def cut_log(self, number: int) -> MemoryStore:
        """The store with the log ending before a record."""
        store = self.store.restarted()
        for name in [name for name in store._keys if name >= log_name(MACHINE, number) and "/log/" in name]:
            store._remove(name)
        state = self.journal.state()
        spans = tuple(span for span in state.spans if span.last < number)
        state = msgspec.structs.replace(state, generation=state.generation + 100, spans=spans)
        store.put(state_name(MACHINE, state.generation), encode_state(state, self.vault.log_key(MACHINE)))
        return store

    # -- damage ---------------------------------------------------------------------------------

    def objects(self, part: str) -> list[str]:
        return [name for name in self.store._keys if f"/{part}/" in name]

    def flip(self, name: str, position: int, mask: int = 0x10) -> None:
        data = bytearray(self.store._objects[name])
        data[position % len(data)] ^= mask
        self.store._objects[name] = bytes(data)

    def truncate(self, name: str, length: int) -> None:
        self.store._objects[name] = self.store._objects[name][:length]

    def lengthen(self, name: str, extra: bytes) -> None:
        self.store._objects[name] += extra

    def swap(self, one: str, other: str) -> None:
        objects = self.store._objects
        objects[one], objects[other] = objects[other], objects[one]

    def replace(self, name: str, by: str) -> None:
        self.store._objects[name] = self.store._objects[by]

    def remove(self, name: str) -> None:
        self.store._remove(name)

    def harm(self, chance: random.Random, name: str) -> str:
        """One kind of damage; what it was."""
        same = [other for other in self.objects(name.split("/")[2]) if other != name]
        kind = chance.choice(["flip", "flip", "flip", "truncate", "lengthen", "remove", "swap", "replace"])
        size = len(self.store._objects[name])
        if kind in {"swap", "replace"} and not same:
            kind = "flip"
        if kind == "flip":
            position, bit = chance.randrange(size), 1 << chance.randrange(8)
            self.flip(name, position, bit)
            return f"bit {bit:#x} of byte {position} of {size} of {name}"
        if kind == "truncate":
            self.truncate(name, chance.randrange(size))
        elif kind == "lengthen":
            self.lengthen(name, chance.randbytes(chance.randint(1, 9000)))
        elif kind == "remove":
            self.remove(name)
        elif kind == "swap":
            self.swap(name, chance.choice(same))
        else:
            self.replace(name, chance.choice(same))
        return f"{kind} {name}"
