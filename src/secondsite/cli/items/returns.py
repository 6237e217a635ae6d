"""``secondsite item``, the part that protects a machine in the other direction, or ends its way back."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Literal, TextIO

from cyclopts import Parameter

from secondsite.base.errors import Outcome
from secondsite.base.units import format_bytes
from secondsite.cli.common.gateways import LISTING, Listing
from secondsite.cli.common.output import print_json
from secondsite.cli.common.reach import SERVER_REACH, ServerReach
from secondsite.cli.items.failover import ask_for
from secondsite.cli.items.items import AS_MAPPED, NoWait, Where, run_job
from secondsite.model import reversals

if TYPE_CHECKING:
    from secondsite.client.client import ServerClient
    from secondsite.client.itemreturns import ReprotectPreview
    from secondsite.client.messages import Job


def reprotect(
    vault: str,
    item: str,
    /,
    *,
    to: str | None = None,
    policy: str | None = None,
    where: Where = AS_MAPPED,
    confirm: str = "",
    look: Annotated[bool, Parameter(negative="")] = False,
    no_wait: NoWait = False,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> int:
    """Protect a machine that was taken over and committed, back to the site it came from.

    The old machine there is shut off and guarded off; its disks are the beginning of the replica, so that
    only what differs travels. Where it is gone, or with --to another gateway, all is copied once. Until the
    first recovery point is there, `secondsite job cancel` takes everything back.

    For example:

        secondsite item reprotect North shop --look

        secondsite item reprotect North shop --policy "Gold (failback)" --confirm "..."

        secondsite item reprotect North shop --to gateway-c --default-pool fast --no-wait

    Parameters
    ----------
    vault
        Its vault's name or id.
    item
        Its id, its machine's id, or its name.
    to
        Another gateway than that of the site it came from.
    policy
        Name or id of the policy; the failback policy made with its own, if not given.
    confirm
        The sentence that the command asks for when it is not given.
    look
        Show what it would do and what is in the way, and change nothing. Ends with 0 when nothing is.
    no_wait
        Begin and return.
    """
    from secondsite.client import itemreturns

    if look:
        with reach.open() as server:
            seen = itemreturns.preview(server, vault, item, target=to)
        if listing.json:
            print_json(seen)
        else:
            _tell(seen)
        bad = any(check.required and not check.passed for check in seen.checks)
        return int(Outcome.REFUSED if bad else Outcome.OK)

    def begin(server: ServerClient) -> Job:
        said = confirm
        if not said:
            found = itemreturns.preview(server, vault, item, target=to)
            _tell(found, file=sys.stderr)
            why = (
                "What the old machine wrote last is on its disks alone; they become the replica's beginning."
            )
            said = ask_for(item, found.confirm, why) if found.confirm else ""
        wanted = {"targetProvider": to, "policy": policy, "mapping": where.body(), "confirm": said}
        return itemreturns.reprotect(server, vault, item, wanted)

    return run_job(reach, listing, begin, no_wait=no_wait)


def fail_back(
    vault: str,
    item: str,
    /,
    *,
    old_machine: Literal["remove", "remove-with-disks", "none"],
    network: str = "mapped",
    seconds: float = 300.0,
    power_off: Annotated[bool, Parameter(negative="")] = False,
    commit: Annotated[bool, Parameter(negative="")] = False,
    remove: Literal["nothing", "machine", "machine-and-disks"] = "nothing",
    protect: Annotated[bool, Parameter(name="--reprotect", negative="")] = False,
    confirm: Annotated[list[str] | None, Parameter(negative="")] = None,
    no_wait: NoWait = False,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> int:
    """Move a machine back to its first site in order: shut down where it runs, started where it came from.

    It is down from its shutdown until it runs there. One job over those that do the parts; what fails is
    tried again where it stopped (`secondsite job retry`). Without --confirm the refusal tells every sentence.

    For example:

        secondsite item failback North shop --old-machine remove-with-disks --confirm "..."

        secondsite item failback North shop --old-machine remove --commit --reprotect --confirm "..."

    Parameters
    ----------
    vault
        Its vault's name or id.
    item
        Its id, its machine's id, or its name.
    old_machine
        How its former copy at its first site goes, which it was protected onto: its definition alone, with
        its images, or none: there is none.
    network
        mapped: as the protection maps networks; none: attached to nothing; or a network of that site.
    seconds
        For its guest to shut down; then the job asks.
    power_off
        Switch it off then, and ask nobody.
    commit
        Keep it there, once it runs.
    remove
        What is removed of the machine it leaves, after the commit.
    protect
        Protect it in the first direction again, after the commit: onto the disks it leaves, where they stay.
    confirm
        A sentence; as often as there are some.
    no_wait
        Begin and return.
    """
    from secondsite.client import itemreturns

    wanted: dict[str, object] = {
        "oldMachine": None if old_machine == "none" else old_machine,
        "network": network,
        "seconds": seconds,
        "powerOff": power_off,
        "commit": commit,
        "recoveryMachine": remove,
        "reprotect": protect,
        "confirm": confirm or [],
    }
    return run_job(
        reach,
        listing,
        lambda server: itemreturns.fail_back(server, vault, item, wanted),
        no_wait=no_wait,
    )


def complete_migration(
    vault: str,
    item: str,
    /,
    *,
    confirm: str = "",
    no_wait: NoWait = False,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> int:
    """Keep a machine for good where it was taken over and committed: nothing leads back from then on.

    End its protection afterwards (`secondsite item disable`); at its new site it can be protected as any
    other machine.

    For example:

        secondsite item complete-migration North shop --no-wait --confirm "..."

    Parameters
    ----------
    vault
        Its vault's name or id.
    item
        Its id, its machine's id, or its name.
    confirm
        The sentence that the command asks for when it is not given.
    no_wait
        Begin and return.
    """
    from secondsite.client import itemreturns, items

    def begin(server: ServerClient) -> Job:
        said = confirm
        if not said:
            name = items.item(server, vault, item).name
            why = "Afterwards nothing is protected back onto the old site's disks, and nothing fails back."
            said = ask_for(name, reversals.migrated(name), why)
        return itemreturns.complete_migration(server, vault, item, confirm=said)

    return run_job(reach, listing, begin, no_wait=no_wait)


def _tell(seen: ReprotectPreview, *, file: TextIO | None = None) -> None:
    out = file or sys.stdout
    print(f"{seen.direction}: from {seen.provider} to {seen.target_provider}", file=out)
    if seen.old_disks_bytes is None:
        print("  nothing of the old machine is begun with: all of it is copied once", file=out)
    else:
        print(f"  the old disks are begun with: {format_bytes(seen.old_disks_bytes)}", file=out)
    named = seen.policy_id or "built-in"
    print(f"  policy {named}: RPO {seen.rpo_threshold_seconds:.0f} s, keeps {seen.retention}", file=out)
    if seen.mapping is not None:
        pairs = [f"{a} -> {b}" for a, b in (*seen.mapping.networks.items(), *seen.mapping.pools.items())]
        rest = seen.mapping.default_pool
        print(
            f"  mapping {', '.join(pairs) or 'nothing'}" + (f"; other disks -> {rest}" * bool(rest)), file=out
        )
    for check in seen.checks:
        if not check.passed:
            print(f"  {check.name}: {check.cause}. {check.action}", file=out)
