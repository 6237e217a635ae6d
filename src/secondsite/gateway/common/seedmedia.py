"""A first copy on media: what is carried from the source to the target instead of sent.

    DIRECTORY/secondsite-seed/cache.id               random; tells these media from others
    DIRECTORY/secondsite-seed/MACHINE/NUMBER/…       as in the cache volume (`transfer.spool`), synced
    DIRECTORY/secondsite-seed/MACHINE/NUMBER/manifest

The manifest is written last; without it the seed is not whole. Text of four lines:

    secondsite seed, version 1
    <vault key id, 32 hexadecimal digits>
    <BLAKE3 of the first two lines and the last, keyed with the machine's log key, 64 hexadecimal digits>
    <JSON: SeedManifest>

It names every segment with its size and BLAKE3 hash, holds the wrapped keys, and the point that the segments
become once they are at the target. Everything on the media is sealed as it is in a store: who finds them
learns nothing without the vault key.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import blake3
import msgspec

from secondsite.base.errors import InvalidInput, Outcome, SecondsiteError
from secondsite.base.files import read_limited, replace_file
from secondsite.base.parse import JSON_ERRORS
from secondsite.base.units import MIB
from secondsite.journal.format import PROPOSAL_BYTES_MAX
from secondsite.journal.keys import VaultKey, check_current, check_seal
from secondsite.model.ids import KeyId, MachineId, machine_id
from secondsite.model.points import PointProposal, SegmentRef
from secondsite.transfer.errors import CacheFull, CacheLost
from secondsite.transfer.protocols import CommittedPoint
from secondsite.transfer.shipping import Shipment
from secondsite.transfer.spool import Batch, Spool

ROOT = "secondsite-seed"
MANIFEST = "manifest"
HEAD = "secondsite seed, version 1"
MANIFEST_BYTES_MAX = PROPOSAL_BYTES_MAX + MIB
_READ_BYTES = 4 * MIB


class SeedPathRefused(SecondsiteError):
    """The directory cannot take a seed, or does not hold one."""

    code = "seed.path-refused"
    outcome = Outcome.REFUSED
    happened = "The directory {path} is refused for a seed: {why}."
    cause = "It is not where the media are mounted, or the media are not fit for this."
    action = "Mount media with enough room and name the directory they are mounted at; nothing was changed."


class SeedMediaMissing(SecondsiteError):
    """The media a seed was begun on are not there."""

    code = "seed.media-missing"
    outcome = Outcome.UNAVAILABLE
    happened = "The media of the seed of {machine} are not at {path}: {why}."
    cause = "They were unmounted or exchanged while the seed was written, or the directory was emptied."
    action = "Mount them again: the seed goes on where it stopped. Or end it with `secondsite seed cancel`."


class SeedMediaFull(SecondsiteError):
    """No room is left on the media."""

    code = "seed.media-full"
    outcome = Outcome.UNAVAILABLE
    happened = "The media at {path} are full: the seed of {machine} does not fit."
    cause = "Other files lie there, or the machine's disks hold more than was thought."
    action = "Make room there: the seed goes on by itself. Or cancel it and take larger media."


class SeedNotFound(SecondsiteError):
    """No whole seed lies in the directory."""

    code = "seed.not-found"
    outcome = Outcome.NOT_FOUND
    happened = "No whole seed is below {path}: {why}."
    cause = "Another directory holds it, or its export was not finished."
    action = "Name the directory the media are mounted at; look with `secondsite status` at the source."


class SeedDamaged(SecondsiteError):
    """Objects on the media are not what was written."""

    code = "seed.damaged"
    outcome = Outcome.DAMAGED
    happened = "{count} objects of the seed at {path} are damaged or gone: {names}."
    cause = "The media failed, were not unmounted in order, or were changed on the way."
    action = "Nothing was imported. Export the seed again, on other media if they fail."


class SeedRefused(SecondsiteError):
    """The seed does not fit what is here."""

    code = "seed.refused"
    outcome = Outcome.REFUSED
    happened = "The seed of {machine} is refused: {why}."
    cause = "It is of another protection than this gateway knows, or came too late."
    action = "Look at `secondsite status` at both sites; nothing was imported."


class SeedManifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a seed holds."""

    machine: MachineId
    machine_name: str
    writer: str  # the source gateway's name, who claimed the epoch at the target
    created_at: str
    keys: dict[KeyId, bytes]  # wrapped data keys
    proposal: PointProposal  # of the point it becomes; names the segments


def encode_manifest(manifest: SeedManifest, vault: VaultKey) -> bytes:
    """The file's content."""
    body = msgspec.json.encode(manifest)
    lines = [HEAD.encode(), vault.id.encode()]
    seal = vault.log_key(manifest.machine).seal(*lines, body)
    return b"\n".join([*lines, seal.hex().encode(), body, b""])


def read_manifest(path: Path, vault: VaultKey) -> SeedManifest:
    """Read and check a manifest.

    Raises:
        SeedNotFound: there is none. WrongKey: another vault key sealed it. ObjectDamaged: it was changed.
    """
    try:
        lines = read_limited(path, size_bytes_max=MANIFEST_BYTES_MAX).split(b"\n")
    except FileNotFoundError:
        raise SeedNotFound(path=path.parent, why="it has no manifest") from None
    try:
        head, vault_id, seal, body, _ = lines
        if head != HEAD.encode():
            raise SeedNotFound(path=path, why=f"its first line is not {HEAD!r}")
        manifest = msgspec.json.decode(body, type=SeedManifest)
        machine = machine_id(manifest.machine)
        given, digest = bytes.fromhex(vault_id.decode()), bytes.fromhex(seal.decode())
    except (ValueError, InvalidInput, *JSON_ERRORS) as error:
        raise SeedDamaged(count=1, path=path.parent, names=f"{MANIFEST} ({error})") from None
    key = vault.log_key(machine)
    check_seal(str(path), key, given, digest, head, vault_id, body)
    if key.strictness.finished:
        check_current(str(path), key, given, "since the rotation was finished; export the seed again")
    if manifest.proposal.machine != machine:
        raise SeedDamaged(count=1, path=path.parent, names=f"{MANIFEST} (of two machines)")
    return manifest


def seeds_in(directory: Path) -> list[Path]:
    """The directories of whole seeds below the media's directory (or its `secondsite-seed`)."""
    root = directory if directory.name == ROOT else directory / ROOT
    found = [path.parent for path in sorted(root.glob(f"*/*/{MANIFEST}"))]
    return [path for path in found if not path.name.startswith(".")]


def segment_path(seed: Path, ref: SegmentRef) -> Path:
    """Where a seed has a segment."""
    return seed / f"{ref.id}.seg"


def find_damage(seed: Path, ref: SegmentRef) -> str:
    """Why a segment is not what the manifest says; empty when it is. Reads all of it."""
    hasher, size = blake3.blake3(), 0
    try:
        with segment_path(seed, ref).open("rb", buffering=0) as file:
            while block := file.read(_READ_BYTES):
                hasher.update(block)
                size += len(block)
    except OSError as error:
        return os.strerror(error.errno or 0)
    if size != ref.stored_bytes:
        return f"{size} bytes instead of {ref.stored_bytes}"
    return "" if hasher.hexdigest() == ref.hash else "another hash"


class MediaShipment:
    """A `shipping.Shipment` that goes to media and is never committed from here. Thread-safe."""

    def __init__(self, batch: Batch, path: Path) -> None:
        """path: the directory the media are at."""
        self.batch = batch
        self._path = path
        self._lock = threading.Lock()
        self._refs = batch.entries()
        self._next = max(self._refs, default=-1) + 1

    @property
    def machine(self) -> MachineId:
        """See `shipping.Shipment`."""
        return self.batch.machine

    @property
    def epoch(self) -> int:
        """See `shipping.Shipment`."""
        return self.batch.epoch

    @property
    def number(self) -> int:
        """See `shipping.Shipment`."""
        return self.batch.number

    @property
    def proposal(self) -> PointProposal | None:
        """See `shipping.Shipment`."""
        return self.batch.proposal

    @property
    def refs(self) -> tuple[SegmentRef, ...]:
        """See `shipping.Shipment`."""
        with self._lock:
            return tuple(self._refs[order] for order in sorted(self._refs))

    @property
    def note(self) -> bytes:
        """See `shipping.Shipment`."""
        return self.batch.note

    def set_note(self, note: bytes, *, wait: bool = False, cancel: threading.Event | None = None) -> None:  # noqa: ARG002
        """See `shipping.Shipment`."""
        self._write(lambda: self.batch.set_note(note))

    def add(
        self,
        ref: SegmentRef,
        data: bytes | bytearray | memoryview,
        *,
        wait: bool = False,  # noqa: ARG002
        cancel: threading.Event | None = None,  # noqa: ARG002
    ) -> None:
        """See `shipping.Shipment`: on the media, durable, when this returns."""
        with self._lock:
            order, self._next = self._next, self._next + 1
            self._refs[order] = ref

        def keep() -> None:
            self.batch.keep(order, ref, data)
            _sync(self.batch.payload(ref))

        try:
            self._write(keep)
        except BaseException:
            with self._lock:
                del self._refs[order]
            raise

    def seal(
        self,
        proposal: PointProposal,
        *,
        wait: bool = False,  # noqa: ARG002
        cancel: threading.Event | None = None,  # noqa: ARG002
    ) -> None:
        """See `shipping.Shipment`."""
        self._write(lambda: self.batch.seal(proposal))

    def write_manifest(self, data: bytes) -> None:
        """The last thing written."""
        try:
            replace_file(self.batch.directory / MANIFEST, data)
        except OSError as error:
            raise self._failed(error) from error

    def commit(self, cancel: threading.Event | None = None) -> CommittedPoint:  # noqa: ARG002
        """A seed is committed where it is imported."""
        raise AssertionError("a seed is not committed at the source")

    def discard(self) -> None:
        """See `shipping.Shipment`."""
        self.batch.remove()

    def _write(self, action: Callable[[], None]) -> None:
        try:
            action()
        except CacheFull as error:
            raise SeedMediaFull(machine=self.machine, path=self._path) from error
        except (CacheLost, OSError) as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> SeedMediaMissing:
        return SeedMediaMissing(machine=self.machine, path=self._path, why=str(error))


class MediaShipper:
    """A `shipping.Shipper` onto media."""

    def __init__(self, spool: Spool, path: Path) -> None:
        self._spool = spool
        self._path = path

    def begin(self, machine: MachineId, epoch: int) -> MediaShipment:
        """See `shipping.Shipper`."""
        try:
            return MediaShipment(self._spool.begin(machine, epoch), self._path)
        except CacheFull as error:
            raise SeedMediaFull(machine=machine, path=self._path) from error
        except CacheLost as error:
            raise SeedMediaMissing(machine=machine, path=self._path, why=str(error)) from error

    def shipments(self, machine: MachineId) -> list[Shipment]:
        """See `shipping.Shipper`."""
        return [*self.seeds(machine)]

    def seeds(self, machine: MachineId) -> list[MediaShipment]:
        """The same, as what they are."""
        return [MediaShipment(batch, self._path) for batch in self._spool.batches(machine)]

    def reopen(self, shipment: Shipment) -> MediaShipment:
        """See `shipping.Shipper`."""
        assert isinstance(shipment, MediaShipment)
        shipment.batch.rewind()
        return MediaShipment(shipment.batch, self._path)

    def has_room(self, size_bytes: int) -> bool:  # noqa: ARG002
        """A full file system says so itself: there is no link to wait for."""
        return True

    @property
    def queued_bytes(self) -> int:
        """Nothing waits."""
        return 0

    @property
    def sent_bytes(self) -> int:
        """Nothing was sent."""
        return 0

    def close(self) -> None:
        """See `shipping.Shipper`."""


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
