"""Routes of replication policies: how often a machine is copied, what is kept, what it may cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query

from secondsite.model.retention import RetentionPolicy
from secondsite.server.api.access import TheActor, TheServices, requires, requires_login, requires_somewhere
from secondsite.server.api.errors import InputRefused, NotReady
from secondsite.server.api.pages import AskedPage, Page, PageRequest
from secondsite.server.api.policy_bodies import (
    EstimateView,
    NewPolicy,
    PolicyChange,
    PolicyCopy,
    PolicyView,
    PresetView,
    RevisionView,
    SettingsBody,
)
from secondsite.server.api.schemas import VaultPath
from secondsite.server.api.services import Services
from secondsite.server.api.vaults import identity_of, note
from secondsite.server.identity.errors import GatewayUnknown
from secondsite.server.people.roles import Caller, Operation
from secondsite.server.policies.errors import PolicyRefused
from secondsite.server.policies.estimate import estimate, measure
from secondsite.server.policies.presets import DEFAULT_PRESET, PRESETS
from secondsite.server.policies.service import Change, Policies, Policy

router = APIRouter(prefix="/api/v1", tags=["policies"])

_CLEAN = r"^[^\u0000-\u001f\u007f]*$"
PolicyPath = Annotated[
    str,
    Path(alias="policy", min_length=1, max_length=100, pattern=_CLEAN, description="Its id or name."),
]

AnyReader = Annotated[Caller, requires_somewhere(Operation.POLICY_READ)]
Reader = Annotated[Caller, requires(Operation.POLICY_READ)]
Writer = Annotated[Caller, requires(Operation.POLICY_WRITE)]
Anybody = Annotated[Caller, requires_login()]


@dataclass(frozen=True)
class EstimateFor:
    """Which machine, kept by which gateway, and which retention instead of the policy's."""

    provider: str | None
    machine: str | None
    retention: str | None


def _estimate_for(
    provider: Annotated[
        str | None,
        Query(
            pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$",
            max_length=200,
            description="The gateway that keeps the machine's replica.",
        ),
    ] = None,
    machine: Annotated[
        str | None, Query(min_length=1, max_length=255, pattern=_CLEAN, description="Its name or id.")
    ] = None,
    retention: Annotated[
        str | None,
        Query(min_length=1, max_length=400, pattern=_CLEAN, description="Instead of the policy's."),
    ] = None,
) -> EstimateFor:
    if (provider is None) is not (machine is None):
        raise InputRefused(where="the parameter machine", why="a machine and its gateway go together")
    return EstimateFor(provider, machine, retention)


def policies_of(services: Services) -> Policies:
    """The server's policies. Raises NotReady."""
    if services.policies is None:
        raise NotReady(why="it has no policies")
    return services.policies


@router.get("/replicationPolicyPresets")
def list_presets(asked: AskedPage, caller: Anybody) -> Page[PresetView]:  # noqa: ARG001 - whoever it is
    """Sets of settings to make policies of, from the most to the least frequent."""
    shown = [preset for preset in PRESETS if asked.after is None][: asked.limit]
    return Page(value=[PresetView.of(preset) for preset in shown])


@router.get("/replicationPolicies")
def list_all_policies(asked: AskedPage, caller: AnyReader, services: TheServices) -> Page[PolicyView]:
    """The policies of the vaults I may see, by vault and name."""
    allowed = caller.vaults(Operation.POLICY_READ)
    found: dict[tuple[str, ...], Policy] = {
        (vault.name_key, policy.name_key): policy
        for vault in identity_of(services).vaults.all()
        if allowed is None or vault.id in allowed
        for policy in policies_of(services).of_vault(vault.id)
    }
    return _page(asked, found, parts=2)


@router.get("/vaults/{vault}/replicationPolicies")
def list_policies(
    vault: VaultPath,
    asked: AskedPage,
    caller: Reader,  # noqa: ARG001 - the check is what it is for
    services: TheServices,
) -> Page[PolicyView]:
    """A vault's policies, by name; each with its failback policy."""
    return _page(asked, {(one.name_key,): one for one in policies_of(services).of_vault(vault)}, parts=1)


@router.post("/vaults/{vault}/replicationPolicies", status_code=201)
def create_policy(
    vault: VaultPath, body: NewPolicy, caller: Writer, actor: TheActor, services: TheServices
) -> PolicyView:
    """Make a policy, and the failback policy that goes with it."""
    preset = next((one for one in PRESETS if one.name == (body.preset or DEFAULT_PRESET.name)), None)
    if preset is None:
        known = ", ".join(one.name for one in PRESETS)
        raise PolicyRefused(why=f"there is no preset {body.preset!r}, only {known}")
    made = policies_of(services).create(
        vault,
        body.friendly_name,
        body.settings.over(preset.settings),
        by=caller.name,
        description=body.description,
        note=note(services, actor, Operation.POLICY_WRITE, made=True, **_told(body.settings)),
    )
    return PolicyView.of(made)


@router.get("/vaults/{vault}/replicationPolicies/{policy}")
def show_policy(
    vault: VaultPath,
    policy: PolicyPath,
    caller: Reader,  # noqa: ARG001 - the check is what it is for
    services: TheServices,
) -> PolicyView:
    """One policy, by id or name."""
    return PolicyView.of(policies_of(services).find(vault, policy))


@router.patch("/vaults/{vault}/replicationPolicies/{policy}")
def change_policy(  # noqa: PLR0917 - called by name, by the framework
    vault: VaultPath,
    policy: PolicyPath,
    body: PolicyChange,
    caller: Writer,
    actor: TheActor,
    services: TheServices,
) -> PolicyView:
    """Change a policy: a new revision, which its items replicate by as soon as their gateways have it."""
    settings: Change | None = body.settings.over if body.settings.model_fields_set else None
    changed = policies_of(services).change(
        vault,
        policy,
        by=caller.name,
        name=body.friendly_name,
        description=body.description,
        settings=settings,
        expected=body.revision,
        note=note(services, actor, Operation.POLICY_WRITE, name=body.friendly_name, **_told(body.settings)),
    )
    return PolicyView.of(changed)


@router.post("/vaults/{vault}/replicationPolicies/{policy}/copy", status_code=201)
def copy_policy(  # noqa: PLR0917 - called by name, by the framework
    vault: VaultPath,
    policy: PolicyPath,
    body: PolicyCopy,
    caller: Writer,
    actor: TheActor,
    services: TheServices,
) -> PolicyView:
    """Make a policy with the settings of another one, also of a failback policy."""
    written = note(services, actor, Operation.POLICY_WRITE, made=True, copyOf=policy)
    made = policies_of(services).copy(vault, policy, body.friendly_name, by=caller.name, note=written)
    return PolicyView.of(made)


@router.delete("/vaults/{vault}/replicationPolicies/{policy}", status_code=204)
def delete_policy(
    vault: VaultPath,
    policy: PolicyPath,
    caller: Writer,  # noqa: ARG001 - the check is what it is for
    actor: TheActor,
    services: TheServices,
) -> None:
    """Delete a policy that no item uses, with its failback policy."""
    written = note(services, actor, Operation.POLICY_WRITE, deleted=True)
    policies_of(services).delete(vault, policy, note=written)


@router.get("/vaults/{vault}/replicationPolicies/{policy}/revisions")
def list_policy_revisions(
    vault: VaultPath,
    policy: PolicyPath,
    asked: AskedPage,
    caller: Reader,  # noqa: ARG001 - the check is what it is for
    services: TheServices,
) -> Page[RevisionView]:
    """What a policy said, the newest first; the last hundred."""
    before = asked.after_number()
    found = [
        one
        for one in policies_of(services).revisions(vault, policy)
        if before is None or one.revision < before
    ]
    shown = found[: asked.limit]
    link = asked.link(shown[-1].revision) if len(found) > len(shown) else None
    return Page(value=[RevisionView.of(one) for one in shown], next_link=link)


@router.get("/vaults/{vault}/replicationPolicies/{policy}/estimate")
def estimate_policy(
    vault: VaultPath,
    policy: PolicyPath,
    caller: Reader,  # noqa: ARG001 - the check is what it is for
    services: TheServices,
    asked: Annotated[EstimateFor, Depends(_estimate_for)],
) -> EstimateView:
    """What a policy keeps, in points; and what that stores, where a gateway has measured a machine."""
    found = policies_of(services).find(vault, policy)
    kept = found.settings.retention if asked.retention is None else asked.retention
    RetentionPolicy.parse(kept)  # before a gateway is asked
    report = None
    if asked.machine is not None and asked.provider is not None:
        gateway = identity_of(services).gateways.get(asked.provider)
        if gateway.vault_id != found.vault_id:
            raise GatewayUnknown(name=asked.provider)
        if services.calls is None:
            raise NotReady(why="it asks no gateways")
        report = measure(services.calls, (gateway.id, gateway.name), asked.machine, kept)
    return EstimateView.of(estimate(found.settings, kept, report), kept, asked.provider or "")


def _page(asked: PageRequest, found: dict[tuple[str, ...], Policy], *, parts: int) -> Page[PolicyView]:
    """found: by sort key, in its order; parts: of the key."""
    keys = list(found)
    if asked.after is not None:
        after = tuple(part for part in asked.after if isinstance(part, str))
        if len(after) != parts or len(asked.after) != parts:
            raise InputRefused(where="after", why="it is not a cursor of this listing")
        keys = [key for key in keys if key > after]
    shown = keys[: asked.limit]
    link = asked.link(*shown[-1]) if len(keys) > len(shown) else None
    return Page(value=[PolicyView.of(found[key]) for key in shown], next_link=link)


def _told(settings: SettingsBody) -> dict[str, str | int | bool | None]:
    """What the audit log says of settings: what was given, as it was given."""
    given = settings.model_dump(by_alias=True, exclude_unset=True)
    return {
        name: value if isinstance(value, str | int | bool | None) else str(value)
        for name, value in given.items()
    }
