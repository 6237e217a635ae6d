"""Routes of pairs of clouds (container mappings), and of where networks and disks go at the target."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import Field
from sqlalchemy import exc
from sqlalchemy.engine import Connection
from starlette.responses import Response

from secondsite.server.api.access import TheActor, TheServices, requires
from secondsite.server.api.jobs import ACCEPTED, JobView, accepted
from secondsite.server.api.mappingviews import NetworkMappingView, PairView, PreviewView, StorageMappingView
from secondsite.server.api.pages import AskedPage, Page
from secondsite.server.api.schemas import Model
from secondsite.server.api.services import Services
from secondsite.server.api.topology import VaultId, topology_of
from secondsite.server.api.vaults import note
from secondsite.server.jobs.service import Jobs
from secondsite.server.mappings.errors import TargetFixed
from secondsite.server.mappings.records import DEFAULT_POOL, Kind, Pair
from secondsite.server.operations.pairing import CHECK_PAIR, CREATE_PAIR, PairJob
from secondsite.server.operations.remapping import SAVE_MAPPING, SaveMapping
from secondsite.server.people.roles import Actor, Caller, Operation
from secondsite.server.topology.placing import key_of

router = APIRouter(prefix="/api/v1/vaults/{vault}", tags=["mappings"])

Reader = Annotated[Caller, requires(Operation.CLOUD_READ)]
PairWriter = Annotated[Caller, requires(Operation.PAIR_WRITE)]
MappingWriter = Annotated[Caller, requires(Operation.MAPPING_WRITE)]
_NAME = r"^[^\u0000-\u001f\u007f]+$"
_PAIRS = "/replicationProtectionContainerMappings"
_PAIR = _PAIRS + "/{mapping}"
_NETWORKS = _PAIR + "/replicationNetworkMappings"
_STORAGE = _PAIR + "/replicationStorageClassificationMappings"
PairPath = Annotated[
    str,
    Path(
        alias="mapping",
        max_length=100,
        pattern=_NAME,
        description="A pair's id, or the name of either cloud.",
    ),
]
_Cloud = Annotated[str, Field(min_length=1, max_length=100, pattern=_NAME)]
_Thing = Annotated[str, Field(min_length=1, max_length=255, pattern=_NAME)]


class NewPair(Model):
    """Two clouds, by name or id."""

    primary: _Cloud
    target: _Cloud


class PairChange(Model):
    """Refused: a pair's target stays what it is."""

    target: _Cloud


class NetworkChanges(Model):
    """Source network -> target network; null: attached to nothing. What is not named stays."""

    networks: Annotated[dict[_Thing, _Thing | None], Field(max_length=1000)]


class StorageChanges(Model):
    """Source pool -> target pool; null: the default pool. What is not named stays."""

    pools: Annotated[dict[_Thing, _Thing | None], Field(default_factory=dict, max_length=1000)]
    default_pool: _Thing | None = Field(
        default=None, description="For every pool that is not named. null: stays as it is."
    )
    clear_default: bool = Field(default=False, description="No default: as the gateway is configured.")

    def wanted(self) -> dict[str, str | None]:
        """As the service takes them."""
        default: dict[str, str | None] = {}
        if self.default_pool is not None or self.clear_default:
            default = {DEFAULT_POOL: self.default_pool}
        return {**self.pools, **default}


@router.get(_PAIRS)
def list_pairs(
    asked: AskedPage,
    caller: Reader,  # noqa: ARG001 - the check is what it is for
    vault_id: VaultId,
    services: TheServices,
) -> Page[PairView]:
    """A vault's pairs of clouds, by the primary cloud's name."""
    after = asked.after_text() or ""
    found = [pair for pair in topology_of(services).pairs.list(vault_id) if key_of(pair.primary.name) > after]
    shown = found[: asked.limit]
    link = asked.link(key_of(shown[-1].primary.name)) if len(found) > len(shown) else None
    return Page(value=[PairView.of(pair) for pair in shown], next_link=link)


@router.post(_PAIRS, status_code=202, responses=ACCEPTED)
def create_pair(  # noqa: PLR0917 - called by name, by the framework
    body: NewPair,
    caller: PairWriter,  # noqa: ARG001 - the check is what it is for
    vault_id: VaultId,
    actor: TheActor,
    services: TheServices,
    response: Response,
) -> JobView:
    """Pair two clouds: a job asks every host of the primary cloud whether it reaches the target."""
    pairs = topology_of(services).pairs

    def begin(connection: Connection) -> _Begun:
        made = pairs.insert(connection, vault_id, body.primary, body.target, actor=actor.name)
        return _Begun(CREATE_PAIR, _pair_job(made), made.name)

    try:
        return _start(services, actor, Operation.PAIR_WRITE, begin, response)
    except exc.IntegrityError as error:  # both servers of two read before either wrote: the tables decide
        raise pairs.taken(vault_id, body.primary, body.target, error) from None


@router.get(_PAIR)
def show_pair(
    mapping: PairPath,
    caller: Reader,  # noqa: ARG001 - the check is what it is for
    vault_id: VaultId,
    services: TheServices,
) -> PairView:
    """One pair, with what each host said."""
    return PairView.of(topology_of(services).pairs.get(vault_id, mapping))


@router.patch(_PAIR)
def change_pair(
    mapping: PairPath,
    body: PairChange,  # noqa: ARG001 - refused whatever it says
    caller: PairWriter,  # noqa: ARG001 - the check is what it is for
    vault_id: VaultId,
    services: TheServices,
) -> PairView:
    """Refused: another target means deleting the pair and creating it anew."""
    found = topology_of(services).pairs.get(vault_id, mapping)
    raise TargetFixed(primary=found.primary.name, target=found.target.name)


@router.delete(_PAIR, status_code=204)
def delete_pair(
    mapping: PairPath,
    caller: PairWriter,  # noqa: ARG001 - the check is what it is for
    vault_id: VaultId,
    actor: TheActor,
    services: TheServices,
) -> None:
    """Delete a pair with its mappings; refused while something is protected with it."""
    pairs = topology_of(services).pairs
    written = note(services, actor, Operation.PAIR_WRITE, deleted=True)

    def work(connection: Connection) -> None:
        found = pairs.find(connection, vault_id, mapping)
        pairs.check_deletable(connection, found)
        pairs.delete(connection, found.id)
        written(connection, vault_id, found.name)

    services.database.run(work)


@router.post(_PAIR + "/check", status_code=202, responses=ACCEPTED)
def check_pair(  # noqa: PLR0917 - called by name, by the framework
    mapping: PairPath,
    caller: PairWriter,  # noqa: ARG001 - the check is what it is for
    vault_id: VaultId,
    actor: TheActor,
    services: TheServices,
    response: Response,
) -> JobView:
    """Ask every host of the primary cloud again whether it reaches the target."""
    pairs = topology_of(services).pairs

    def begin(connection: Connection) -> _Begun:
        found = pairs.find(connection, vault_id, mapping)
        return _Begun(CHECK_PAIR, _pair_job(found), found.name)

    return _start(services, actor, Operation.PAIR_WRITE, begin, response)


@router.get(_NETWORKS)
def show_network_mapping(
    mapping: PairPath,
    caller: Reader,  # noqa: ARG001 - the check is what it is for
    vault_id: VaultId,
    services: TheServices,
) -> NetworkMappingView:
    """The networks of both clouds, and which goes where."""
    return NetworkMappingView.of(*topology_of(services).mappings.shown(vault_id, mapping))


@router.post(_NETWORKS + "/preview")
def preview_network_mapping(
    mapping: PairPath,
    body: NetworkChanges,
    caller: Reader,  # noqa: ARG001 - the check is what it is for
    vault_id: VaultId,
    services: TheServices,
) -> PreviewView:
    """What saving these would change; refused as saving would be. Nothing is changed."""
    return _preview(services, vault_id, mapping, Kind.NETWORK, body.networks)


@router.patch(_NETWORKS, status_code=202, responses=ACCEPTED)
def change_network_mapping(  # noqa: PLR0917 - called by name, by the framework
    mapping: PairPath,
    body: NetworkChanges,
    caller: MappingWriter,  # noqa: ARG001 - the check is what it is for
    vault_id: VaultId,
    actor: TheActor,
    services: TheServices,
    response: Response,
) -> JobView:
    """Map networks, as a job."""
    begin = _saving(services, vault_id, mapping, Kind.NETWORK, body.networks)
    return _start(services, actor, Operation.MAPPING_WRITE, begin, response)


@router.get(_STORAGE)
def show_storage_mapping(
    mapping: PairPath,
    caller: Reader,  # noqa: ARG001 - the check is what it is for
    vault_id: VaultId,
    services: TheServices,
) -> StorageMappingView:
    """The pools of both clouds, which goes where, and whether there is room."""
    return StorageMappingView.of(*topology_of(services).mappings.shown(vault_id, mapping))


@router.post(_STORAGE + "/preview")
def preview_storage_mapping(
    mapping: PairPath,
    body: StorageChanges,
    caller: Reader,  # noqa: ARG001 - the check is what it is for
    vault_id: VaultId,
    services: TheServices,
) -> PreviewView:
    """What saving these would change; refused as saving would be. Nothing is changed."""
    return _preview(services, vault_id, mapping, Kind.POOL, body.wanted())


@router.patch(_STORAGE, status_code=202, responses=ACCEPTED)
def change_storage_mapping(  # noqa: PLR0917 - called by name, by the framework
    mapping: PairPath,
    body: StorageChanges,
    caller: MappingWriter,  # noqa: ARG001 - the check is what it is for
    vault_id: VaultId,
    actor: TheActor,
    services: TheServices,
    response: Response,
) -> JobView:
    """Map pools, as a job."""
    begin = _saving(services, vault_id, mapping, Kind.POOL, body.wanted())
    return _start(services, actor, Operation.MAPPING_WRITE, begin, response)


@dataclass(frozen=True)
class _Begun:
    """A job to start, and what the audit log says it is about."""

    kind: str
    given: PairJob | SaveMapping
    pair: str


_Begin = Callable[[Connection], _Begun]


def _start(
    services: Services, actor: Actor, operation: Operation, begin: _Begin, response: Response
) -> JobView:
    def start(jobs: Jobs, connection: Connection) -> str:
        begun = begin(connection)
        vault_id = begun.given.vault_id
        identity = jobs.start(connection, begun.kind, begun.given, actor.name, vault=vault_id)
        note(services, actor, operation, job=identity, kind=begun.kind)(connection, vault_id, begun.pair)
        return identity

    return accepted(services, response, start)


def _pair_job(pair: Pair) -> PairJob:
    return PairJob(pair=pair.id, vault_id=pair.vault_id, primary=pair.primary.name, target=pair.target.name)


def _preview(
    services: Services, vault_id: str, pair: str, kind: Kind, wanted: Mapping[str, str | None]
) -> PreviewView:
    topology = topology_of(services)
    with services.database.read() as connection:
        found = topology.pairs.find(connection, vault_id, pair)
        return PreviewView.of(topology.mappings.plan(connection, found, kind, wanted))


def _saving(
    services: Services, vault_id: str, pair: str, kind: Kind, wanted: Mapping[str, str | None]
) -> _Begin:
    topology = topology_of(services)

    def begin(connection: Connection) -> _Begun:
        found = topology.pairs.find(connection, vault_id, pair)
        plan = topology.mappings.plan(connection, found, kind, wanted)
        given = SaveMapping(
            pair=found.id,
            vault_id=vault_id,
            primary=found.primary.name,
            target=found.target.name,
            kind=kind.value,
            wanted={change.source: change.after for change in plan.changes},
        )
        return _Begun(SAVE_MAPPING, given, found.name)

    return begin
