"""``secondsite item``, the part that changes or ends a protection; and the proof of a recovery key."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from secondsite.base.errors import InvalidInput
from secondsite.cli.common.gateways import LISTING, Listing
from secondsite.cli.common.reach import SERVER_REACH, ServerReach
from secondsite.cli.items.items import AS_MAPPED, NoWait, Where, run_job

if TYPE_CHECKING:
    from secondsite.client.client import ServerClient
    from secondsite.client.messages import Job


def disks(
    vault: str,
    item: str,
    /,
    *,
    only: Annotated[list[str] | None, Parameter(name="--only", negative="")] = None,
    all_: Annotated[bool, Parameter(name="--all", negative="")] = False,
    leave_out: Annotated[list[str] | None, Parameter(negative="")] = None,
    take_in: Annotated[list[str] | None, Parameter(negative="")] = None,
    no_wait: NoWait = False,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> int:
    """Add, remove or leave out disks of a protected machine; what stays protected is not copied again.

    For example:

        secondsite item disks North shop --leave-out vdb --no-wait

        secondsite item disks North shop --take-in vdb --no-wait

        secondsite item disks North shop --all --no-wait

    Parameters
    ----------
    vault
        Its vault's name or id.
    item
        Its id, its machine's id, or its name.
    only
        Protect this disk and no others than those given; may be given several times.
    all_
        Protect all disks, also those to come.
    leave_out
        Leave this disk out from now on; may be given several times.
    take_in
        Take this disk in again; may be given several times.
    no_wait
        Begin and return.
    """
    from secondsite.client import items

    if only and all_:
        raise InvalidInput(what="the disks", why="--only and --all contradict each other")

    def begin(server: ServerClient) -> Job:
        wanted: dict[str, object] = {}
        if all_:
            wanted["allDisks"] = True
        if only:
            wanted["disks"] = only
        if leave_out or take_in or all_:
            found = items.item(server, vault, item)
            left = set() if all_ else set(found.left_out)
            wanted["leftOut"] = sorted((left | set(leave_out or ())) - set(take_in or ()))
            if take_in and not all_ and not only and found.disks is not None:
                wanted["disks"] = [*found.disks, *(one for one in take_in if one not in found.disks)]
        return items.change(server, vault, item, wanted)

    return run_job(reach, listing, begin, no_wait=no_wait)


def policy(
    vault: str,
    item: str,
    policy: str,
    /,
    *,
    no_wait: NoWait = False,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> int:
    """Give a protected item another policy.

    For example:

        secondsite item policy North shop Gold --no-wait

    Parameters
    ----------
    vault
        Its vault's name or id.
    item
        Its id, its machine's id, or its name.
    policy
        The policy's name or id (`secondsite policy list`).
    no_wait
        Begin and return.
    """
    from secondsite.client import items

    return run_job(
        reach,
        listing,
        lambda server: items.change(server, vault, item, {"policy": policy}),
        no_wait=no_wait,
    )


def mapping(
    vault: str,
    item: str,
    /,
    *,
    where: Where = AS_MAPPED,
    as_pair: Annotated[bool, Parameter(negative="")] = False,
    no_wait: NoWait = False,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> int:
    """Say where a machine's networks and disks go at the target, instead of what its sites' mapping says.

    For example:

        secondsite item mapping North shop --network lan=lan --default-pool default --no-wait

        secondsite item mapping North shop --as-pair --no-wait

    Parameters
    ----------
    vault
        Its vault's name or id.
    item
        Its id, its machine's id, or its name.
    as_pair
        Follow the mapping of its sites again.
    no_wait
        Begin and return.
    """
    from secondsite.client import items

    body = where.body()
    if (body is None) is not as_pair:
        raise InvalidInput(what="the mapping", why="give --network, --pool or --default-pool, or --as-pair")
    wanted: dict[str, object] = {"pairMapping": True} if body is None else {"mapping": body}
    return run_job(reach, listing, lambda server: items.change(server, vault, item, wanted), no_wait=no_wait)


def disable(
    vault: str,
    item: str,
    /,
    *,
    delete_replica: bool | None = None,
    force: Annotated[bool, Parameter(negative="")] = False,
    no_wait: NoWait = False,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> int:
    """End a protection: everything of secondsite goes at the source; the replica stays, or goes with it.

    A gateway that is away is waited for, and after a minute a person is asked (`secondsite job resume`).

    For example:

        secondsite item disable North shop --no-delete-replica --no-wait

        secondsite item disable North shop --delete-replica --force --no-wait

    Parameters
    ----------
    vault
        Its vault's name or id.
    item
        Its id, its machine's id, or its name.
    delete_replica
        Delete the replica with its recovery points, or keep it; as the policy says, if not given.
    force
        Leave behind what a gateway that is away cannot remove now; it does when it is back.
    no_wait
        Begin and return.
    """
    from secondsite.client import items

    return run_job(
        reach,
        listing,
        lambda server: items.disable(server, vault, item, with_replica=delete_replica, force=force),
        no_wait=no_wait,
    )


def prove_key(
    name: str,
    /,
    *,
    recovery_key: Path,
    no_wait: NoWait = False,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> int:
    """Prove to a gateway that its recovery key exists elsewhere: once, before it protects anything.

    The proof is computed here from a copy of the key; the key itself goes nowhere.

    For example:

        secondsite gateway prove-key gateway-a --recovery-key /media/stick/vault.key

    Parameters
    ----------
    name
        The gateway's name.
    recovery_key
        A copy of the vault key that the gateway has, off that machine and outside every store.
    no_wait
        Begin and return.
    """
    from secondsite.cli.server.enrol import GatewayNotListed
    from secondsite.client import items, vaults
    from secondsite.gateway.common.proofs import host_id
    from secondsite.gateway.target.views import load_key

    key = load_key(recovery_key)
    status = recovery_key.stat()

    def begin(server: ServerClient) -> Job:
        found = vaults.provider(server, name)
        if found is None:
            raise GatewayNotListed(name=name)
        question = items.challenge(server, found.vault_id, found.name)
        file = {
            "path": str(recovery_key.resolve()),
            "device": status.st_dev,
            "inode": status.st_ino,
            "host": host_id(),
        }
        proof = key.prove(bytes.fromhex(question.nonce)).hex()
        answer = {"nonce": question.nonce, "proof": proof, "keyFile": file}
        return items.prove(server, found.vault_id, found.name, answer)

    return run_job(reach, listing, begin, no_wait=no_wait)
