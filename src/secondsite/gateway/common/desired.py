"""What a gateway is to do: protections, replicas and peers, in one JSON file that is replaced whole.

    {"version": 2,
     "server": "…", "generation": 7,     whose wishes they are, and the last that were taken
     "protections": [Protection, …],     of this gateway's own, and of a server
     "replicas": [WantedReplica, …],     of a server: what becomes of the replicas kept here
     "peers": [Peer, …],                 of a server, beside those of the configuration
     "ended": {"ITEM": REVISION, …}}     protections of a server that were ended, the oldest first

Version 1 had protections alone, without policies; it is read, and version 2 is written. The file is the
gateway's desired state: the loops converge to it after every change and at every start, so that a crash
between writing it and acting on it costs nothing, and all goes on while a server is away.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pydantic

from secondsite.base.errors import InvalidInput, Outcome, SecondsiteError
from secondsite.base.files import read_limited, replace_file
from secondsite.base.parse import JSON_ERRORS
from secondsite.base.units import MIB
from secondsite.model.ids import DiskId, MachineId, machine_id
from secondsite.model.machines import Mapping as SiteMapping
from secondsite.model.policies import ReplicationPolicy
from secondsite.transfer.desired import ITEMS_MAX, Peer, WantedMapping, WantedProtection, WantedReplica
from secondsite.transfer.reports import LEFT_MAX

DESIRED = "desired.json"  # in the gateway's state directory
VERSION = 2
# Ten thousand protections and as many replicas, with their mappings.
FILE_BYTES_MAX = 64 * MIB
# Of protections that were ended, so that an old server does not begin them again; the oldest are forgotten.
ENDED_MAX = ITEMS_MAX


class DesiredDamaged(SecondsiteError):
    """The file does not parse."""

    code = "desired.damaged"
    outcome = Outcome.DAMAGED
    happened = "The desired state {path} cannot be read: {why}."
    cause = "It was edited by hand, or its volume was damaged."
    action = (
        "Correct it or restore it from a copy; else protect the machines again. See RUNBOOK.md, gateway lost."
    )


class Protection(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One machine that is to be protected."""

    machine: MachineId
    name: str
    peer: str
    disks: tuple[DiskId, ...] | None = None  # None: all, also those to come
    left_out: tuple[DiskId, ...] = ()  # of all
    policy: ReplicationPolicy = ReplicationPolicy()
    policy_id: str = ""  # at the server; items of one policy share its bandwidth
    policy_name: str = ""
    mapping: SiteMapping = SiteMapping()
    item: str = ""  # the protected item at the server; "": protected here, without a server
    revision: int = 0  # of the item, the last that was taken
    paused: bool = False  # what the server last said
    paused_by: str = ""  # who had its capture stopped, by the server or here; "": it goes on
    resync: int = 0  # above `resynced`: everything is to be compared
    resynced: int = 0  # the last one that was done
    # False: it is being unprotected; the entry stays until everything of ours is removed
    enabled: bool = True

    def as_wanted(self) -> WantedProtection:
        """What this gateway works towards, as a server says it."""
        mapping = self.mapping
        return WantedProtection(
            item=self.item or self.machine,
            revision=self.revision,
            machine=self.machine,
            name=self.name,
            peer=self.peer,
            disks=self.disks,
            left_out=self.left_out,
            policy=self.policy,
            policy_id=self.policy_id,
            policy_name=self.policy_name,
            mapping=WantedMapping(
                networks=dict(mapping.networks), pools=dict(mapping.pools), default_pool=mapping.default_pool
            ),
            paused=self.paused,
            resync=self.resync,
            enabled=self.enabled,
        )


@dataclass(frozen=True)
class Everything:
    """All that is desired."""

    protections: Mapping[MachineId, Protection]
    replicas: Mapping[MachineId, WantedReplica]
    peers: tuple[Peer, ...] = ()
    server: str = ""  # whose wishes were taken; "": no server's
    generation: int = 0  # of the last that were taken
    ended: Mapping[str, int] = field(default_factory=dict)  # item -> the revision it was ended with


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    version: int
    server: str = ""
    generation: int = 0
    protections: tuple[Protection, ...] = ()
    replicas: tuple[WantedReplica, ...] = ()
    peers: tuple[Peer, ...] = ()
    ended: dict[str, int] = {}


class _Version(msgspec.Struct, frozen=True):
    version: int


class _ProtectionOfVersion1(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    machine: MachineId
    name: str
    peer: str
    disks: tuple[DiskId, ...] | None = None
    copy_frequency_seconds: float = 5.0
    application_consistent_frequency_seconds: float | None = None
    compression_level: int = 1
    mapping: SiteMapping = SiteMapping()
    enabled: bool = True


class _FileOfVersion1(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    version: int
    protections: tuple[_ProtectionOfVersion1, ...] = ()


def local_policy(
    *,
    copy_frequency_seconds: float,
    application_consistent_frequency_seconds: float | None,
    level: int | None,
) -> ReplicationPolicy:
    """The policy of what is protected at the gateway itself.

    Application-consistent points asked for more often than points come as often as points do.
    """
    often = application_consistent_frequency_seconds
    return ReplicationPolicy(
        copy_frequency_seconds=copy_frequency_seconds,
        application_consistent_frequency_seconds=(
            None if often is None else max(often, copy_frequency_seconds)
        ),
        compression_level=level,
    )


class DesiredState:
    """The file. Thread-safe; one process at a time. Every change is durable when its method returns."""

    def __init__(self, path: Path) -> None:
        """Read it. Raises DesiredDamaged."""
        self._path = path
        self._lock = threading.Lock()
        self._left: dict[str, str] = {}
        self._now = self._read()

    def everything(self) -> Everything:
        """All of it, as one moment has it."""
        with self._lock:
            return self._now

    def all(self) -> list[Protection]:
        """Every protection, by name."""
        return sorted(self.everything().protections.values(), key=lambda p: (p.name, p.machine))

    def get(self, machine: MachineId) -> Protection | None:
        """One of them."""
        return self.everything().protections.get(machine)

    def replica(self, machine: MachineId) -> WantedReplica | None:
        """What a server wants of a replica kept here; None: nothing was said."""
        return self.everything().replicas.get(machine)

    def put(self, protection: Protection) -> None:
        """Add or replace one."""
        self.change(lambda now: _with(now, protection))

    def update(self, machine: MachineId, change: Callable[[Protection], Protection]) -> Protection | None:
        """Change one as it is now; returns what it became, None when it is not there."""
        made: list[Protection] = []

        def apply(now: Everything) -> Everything:
            found = now.protections.get(machine)
            if found is None:
                return now
            made.append(change(found))
            return _with(now, made[0])

        self.change(apply)
        return made[0] if made else None

    def turn(
        self, machine: MachineId, change: Callable[[Protection | None], Protection]
    ) -> tuple[Protection | None, Protection]:
        """Add one or change it as it is now; (what it was, what it became)."""
        made: list[tuple[Protection | None, Protection]] = []

        def apply(now: Everything) -> Everything:
            found = now.protections.get(machine)
            made.append((found, change(found)))
            return _with(now, made[0][1])

        self.change(apply)
        return made[0]

    def left_behind(self) -> Mapping[str, str]:
        """What could not be removed of protections of a server that ended since this gateway's start.

        By item; its event, which is durable, says the same.
        """
        with self._lock:
            return dict(self._left)

    def remove(self, machine: MachineId, *, left: str = "") -> None:
        """Take one out; absent is fine. Of a server's, the revision is remembered.

        left: what of it could not be removed, a sentence.
        """
        found = self.get(machine)
        if found is not None and found.item and left:
            with self._lock:
                self._left[found.item] = left
                while len(self._left) > LEFT_MAX:
                    self._left.pop(next(iter(self._left)))

        def apply(now: Everything) -> Everything:
            found = now.protections.get(machine)
            if found is None:
                return now
            left = {m: p for m, p in now.protections.items() if m != machine}
            ended = dict(now.ended)
            if found.item:
                ended.pop(found.item, None)  # the newest are last
                ended[found.item] = found.revision
                while len(ended) > ENDED_MAX:
                    ended.pop(next(iter(ended)))
            return dataclasses.replace(now, protections=left, ended=ended)

        self.change(apply)

    def change(self, change: Callable[[Everything], Everything]) -> Everything:
        """Any change, in one write; returns what it is then. What the function gives back as it was is not
        written."""
        with self._lock:
            changed = change(self._now)
            if changed != self._now:
                self._write(changed)
                self._now = changed
            return self._now

    def _read(self) -> Everything:
        try:
            found = _parse(read_limited(self._path, size_bytes_max=FILE_BYTES_MAX))
            for protection in found.protections:
                machine_id(protection.machine)
        except FileNotFoundError:
            found = _File(version=VERSION)
        except (*JSON_ERRORS, pydantic.ValidationError, InvalidInput) as error:
            raise DesiredDamaged(path=self._path, why=str(error)) from None
        return Everything(
            protections={p.machine: p for p in found.protections},
            replicas={machine_id(r.machine): r for r in found.replicas},
            peers=found.peers,
            server=found.server,
            generation=found.generation,
            ended=found.ended,
        )

    def _write(self, now: Everything) -> None:
        file = _File(
            version=VERSION,
            server=now.server,
            generation=now.generation,
            protections=tuple(now.protections.values()),
            replicas=tuple(now.replicas.values()),
            peers=now.peers,
            ended=dict(now.ended),
        )
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        replace_file(self._path, msgspec.json.format(msgspec.json.encode(file, enc_hook=encode_hook)))


def _with(now: Everything, protection: Protection) -> Everything:
    return dataclasses.replace(now, protections={**now.protections, protection.machine: protection})


def _parse(data: bytes) -> _File:
    """Raises what is in JSON_ERRORS, and ValidationError."""
    version = msgspec.json.decode(data, type=_Version).version
    if version == 1:
        old = msgspec.json.decode(data, type=_FileOfVersion1)
        return _File(version=VERSION, protections=tuple(_of_version_1(p) for p in old.protections))
    if version != VERSION:
        raise msgspec.ValidationError(f"its version is {version}, not {VERSION}")
    return msgspec.json.decode(data, type=_File, dec_hook=decode_hook)


def _of_version_1(old: _ProtectionOfVersion1) -> Protection:
    return Protection(
        machine=old.machine,
        name=old.name,
        peer=old.peer,
        disks=old.disks,
        policy=local_policy(
            copy_frequency_seconds=old.copy_frequency_seconds,
            application_consistent_frequency_seconds=old.application_consistent_frequency_seconds,
            level=old.compression_level,
        ),
        mapping=old.mapping,
        enabled=old.enabled,
    )


def encode_hook(value: object) -> object:
    """Of what carries a `Protection` as JSON."""
    assert isinstance(value, pydantic.BaseModel)
    return value.model_dump(mode="json", by_alias=True)


def decode_hook(kind: type, value: object) -> object:
    """The other way."""
    assert issubclass(kind, pydantic.BaseModel)
    return kind.model_validate(value)
