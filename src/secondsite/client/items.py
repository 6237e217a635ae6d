"""Protected items over the server's API, as functions of a `ServerClient`. What changes one gives its job."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import urlencode

from secondsite.client.client import ServerClient, at
from secondsite.client.messages import Answer, Job, Page


class Copying(Answer, frozen=True, kw_only=True):
    """How far a first copy, or a comparison of everything, has come; total 0: unknown yet."""

    done_bytes: int
    total_bytes: int
    bytes_per_second: float
    seconds_left: float | None
    differed_bytes: int | None


class Item(Answer, frozen=True, kw_only=True):
    """A protected item."""

    id: str
    vault_id: str
    machine: str
    name: str
    provider: str
    target_provider: str
    state: str
    state_since: str
    health: str
    allowed_operations: list[str]
    live_job: str | None
    policy_id: str | None
    policy_revision: int
    paused: bool
    bitmap_mode: bool
    recovery_points: int
    last_point: int | None
    last_point_at: str | None
    last_consistency: str | None
    rpo_seconds: float | None
    copying: Copying | None
    first_protected_at: str | None
    protected_days: int | None
    revision: int
    taken_revision: int


class SiteMapping(Answer, frozen=True, kw_only=True):
    """Where things of the source go at the target; what is not named is attached to nothing."""

    networks: dict[str, str]
    pools: dict[str, str]
    default_pool: str | None


class Problem(Answer, frozen=True, kw_only=True):
    """What is wrong with an item, why, and who can do what about it."""

    code: str
    severity: str
    happened: str
    possible_causes: str
    recommended_action: str
    who_can_fix: str


class StandingTest(Answer, frozen=True, kw_only=True):
    """A test failover that stands: its state, and the name of its machine at the target's site."""

    state: str
    name: str


class ItemFailover(Answer, frozen=True, kw_only=True):
    """The newest failover of a machine at the gateway that took it over."""

    id: str
    kind: str
    state: str
    name: str
    point: int
    point_at: str
    requested_at: str
    requested_by: str
    writer: str
    expected_loss_seconds: float
    loss_seconds: float | None
    epoch: int | None
    claimed_at: str | None
    booted_at: str | None
    console_at: str | None
    userspace_at: str | None
    ended_at: str | None
    flattened_bytes: int
    total_bytes: int
    kept: str
    note: str


class HeldMachine(Answer, frozen=True, kw_only=True):
    """A source that was taken over elsewhere, isolated by its gateway, and what was decided of it."""

    machine: str
    name: str
    provider: str
    state: str
    claimant: str
    epoch: int
    held_at: str
    isolated_at: str | None
    last_point: int | None
    last_point_at: str | None
    decided_at: str | None
    decided_by: str
    final: bool
    note: str


class ItemDetail(Item, frozen=True, kw_only=True):
    """An item with all that is known of it. policy: its settings, as the policy of the vault said them."""

    managed: bool
    policy: dict[str, object]
    disks: list[str] | None
    left_out: list[str]
    mapping: SiteMapping
    health_errors: list[Problem]
    epoch: int | None
    spool_bytes: int | None
    total_changed_bytes: int | None
    total_sent_bytes: int | None
    oldest_point_at: str | None
    retention: str | None
    test_failover: StandingTest | None
    failover: ItemFailover | None
    held: HeldMachine | None
    created_at: str
    changed_at: str
    finalized_at: str | None
    left_behind: str


class Counts(Answer, frozen=True, kw_only=True):
    """What a vault protects now, and since when."""

    protected: int
    items: int
    by_state: dict[str, int]
    by_health: dict[str, int]
    first_protected_at: str | None
    protected_days: int | None


class Challenge(Answer, frozen=True, kw_only=True):
    """A gateway's question that only a holder of its recovery key can answer."""

    key_id: str
    nonce: str


def items(
    server: ServerClient,
    vault: str | None = None,
    *,
    states: Sequence[str] = (),
    health: Sequence[str] = (),
    provider: str | None = None,
    policy: str | None = None,
    name: str = "",
) -> Iterator[Item]:
    """The protected items of a vault, or of all I may see, by name. policy: its id."""
    asked = [*(("state", one) for one in states), *(("health", one) for one in health)]
    given = {"provider": provider, "policy": policy, "name": name or None}
    asked += [(key, value) for key, value in given.items() if value is not None]
    where = at("replicationProtectedItems") if vault is None else at(*_of(vault))
    return server.pages(where + (f"?{urlencode(asked)}" if asked else ""), Page[Item])


def item(server: ServerClient, vault: str, named: str) -> ItemDetail:
    """One item, by its id, its machine's id, or its name."""
    return server.call("GET", at(*_of(vault, named)), ItemDetail)


def counts(server: ServerClient, vault: str) -> Counts:
    """What is protected now."""
    return server.call("GET", at("vaults", vault, "replicationProtectedItemCounts"), Counts)


def protect(server: ServerClient, vault: str, wanted: Mapping[str, object]) -> Job:
    """Begin to protect a machine. wanted: as the API takes it (`NewItemBody`)."""
    return server.call("POST", at(*_of(vault)), Job, wanted)


def change(server: ServerClient, vault: str, named: str, wanted: Mapping[str, object]) -> Job:
    """Give an item another policy, other disks or another mapping (`ItemChangeBody`)."""
    return server.call("PATCH", at(*_of(vault, named)), Job, wanted)


def finalise(server: ServerClient, vault: str, named: str) -> Job:
    """Finalise a protection whose first copy is there."""
    return server.call("POST", at(*_of(vault, named), "finalize"), Job)


def pause(server: ServerClient, vault: str, named: str) -> Job:
    """Stop capturing; changes go on being tracked."""
    return server.call("POST", at(*_of(vault, named), "pause"), Job)


def resume(server: ServerClient, vault: str, named: str) -> Job:
    """Go on capturing."""
    return server.call("POST", at(*_of(vault, named), "resume"), Job)


def resync(server: ServerClient, vault: str, named: str) -> Job:
    """Compare everything with the replica."""
    return server.call("POST", at(*_of(vault, named), "resync"), Job)


def take_point(server: ServerClient, vault: str, named: str) -> Job:
    """Take a recovery point now."""
    return server.call("POST", at(*_of(vault, named), "recoveryPoints"), Job)


def disable(
    server: ServerClient, vault: str, named: str, *, with_replica: bool | None = None, force: bool = False
) -> Job:
    """End a protection; with_replica None: as its policy says."""
    asked = {"force": "true" if force else None}
    if with_replica is not None:
        asked["withReplica"] = str(with_replica).lower()
    query = urlencode({key: text for key, text in asked.items() if text is not None})
    return server.call("DELETE", at(*_of(vault, named)) + (f"?{query}" if query else ""), Job)


def challenge(server: ServerClient, vault: str, provider: str) -> Challenge:
    """Ask a gateway for the question that its recovery key answers."""
    return server.call("POST", at(*_key(vault, provider), "challenge"), Challenge)


def prove(server: ServerClient, vault: str, provider: str, answer: Mapping[str, object]) -> Job:
    """Give a gateway the answer (`ProofBody`)."""
    return server.call("POST", at(*_key(vault, provider), "proof"), Job, answer)


def _of(vault: str, *named: str) -> tuple[str, ...]:
    return ("vaults", vault, "replicationProtectedItems", *named)


def _key(vault: str, provider: str) -> tuple[str, ...]:
    return ("vaults", vault, "recoveryServicesProviders", provider, "recoveryKey")
