"""``secondsite item run``: the same operation on several protected items, as one job."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from secondsite.base.errors import InvalidInput
from secondsite.cli.common.gateways import LISTING, Listing, parse_pairs
from secondsite.cli.common.reach import SERVER_REACH, ServerReach
from secondsite.cli.items.items import EVERYTHING, NoWait, Only, run_job

if TYPE_CHECKING:
    from collections.abc import Mapping

    from secondsite.client.itemgroups import Which

Verb = Literal[
    "pause",
    "resume",
    "resync",
    "point",
    "test-failover",
    "clean-up",
    "disable",
    "failover",
    "planned-failover",
    "commit",
    "roll-back",
    "reprotect",
    "failback",
]
# The API's words for those of the commands on one item.
WORDS: Mapping[str, str] = {
    "point": "takePoint",
    "test-failover": "testFailover",
    "clean-up": "testFailoverCleanup",
    "failover": "unplannedFailover",
    "planned-failover": "plannedFailover",
    "commit": "failoverCommit",
    "roll-back": "failoverCancel",
}


def run(
    verb: Verb,
    vault: str,
    /,
    *items: str,
    all_items: Annotated[bool, Parameter(name="--all", negative="")] = False,
    only: Only = EVERYTHING,
    each: Annotated[list[str] | None, Parameter(name="--set", negative="")] = None,
    single: Annotated[list[str] | None, Parameter(name="--set-for", negative="")] = None,
    confirm: Annotated[list[str] | None, Parameter(negative="")] = None,
    parallel: int = 4,
    no_wait: NoWait = False,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> int:
    """Ask the same of several protected items: one job, with a child job for each.

    Items that are named must all be able to do it, or nothing begins; of those that are searched for (--all,
    --state, --health, --of, --name) the others are left out. What fails is told with its reason, and tried
    again alone with `secondsite job retry`; `secondsite job cancel` calls off what has not ended.

    For example:

        secondsite item run pause North shop büro --no-wait

        secondsite item run point North --all --no-wait

        secondsite item run test-failover North shop büro --set network=none --set-for shop:recoveryPoint=7

        secondsite item run disable North --of gateway-b --set withReplica=false --parallel 8

        secondsite item run failover North shop --set network=none --confirm "shop may still run at gateway-a"

        secondsite item run failback North --of gateway-b --set oldMachine=remove --confirm "..."

    Parameters
    ----------
    verb
        What is asked, as the command for one item is called.
    vault
        Their vault's name or id.
    items
        Ids, machines' ids or names.
    all_items
        All of the vault that can do it.
    each
        KEY=VALUE: a parameter for all, by the API's name (recoveryPoint, network, notes, withReplica,
        force, oldMachine, commit, reprotect); true, false and null are as in JSON.
    single
        ITEM:KEY=VALUE: the same for one of them, instead of that for all.
    confirm
        What is said for a machine, where the operation is dangerous; may be given several times. What is
        missing is told word for word.
    parallel
        So many at a time of each gateway that does the work.
    no_wait
        Begin and return.
    """
    from secondsite.client.itemgroups import How, operate

    which = _which(items, only, everything=all_items)
    own: dict[str, dict[str, object]] = {}
    for text in single or ():
        item, separator, rest = text.partition(":")
        if not separator:
            raise InvalidInput(what=f"--set-for {text!r}", why="it is not of the form ITEM:KEY=VALUE")
        own.setdefault(item, {}).update(_parameters([rest], "--set-for"))
    how = How(_parameters(each, "--set"), own, confirm or (), parallel)
    return run_job(
        reach,
        listing,
        lambda server: operate(server, vault, WORDS.get(verb, verb), which, how),
        no_wait=no_wait,
    )


def _which(items: tuple[str, ...], only: Only, *, everything: bool) -> Which:
    from secondsite.client.itemgroups import Which

    searched = {"state": only.state, "health": only.health, "provider": only.gateway, "name": only.name}
    given = {key: value for key, value in searched.items() if value}
    if bool(items) + (everything or bool(given)) != 1:
        raise InvalidInput(
            what="the group", why="it takes either names of items, or --all, --state, --health, --of, --name"
        )
    return Which(items) if items else Which(only=given)


def _parameters(texts: list[str] | None, option: str) -> dict[str, object]:
    """Words as the API types them: true and false are flags, null is nothing, all else is text."""
    typed: dict[str, bool | None] = {"true": True, "false": False, "null": None}
    return {key: typed.get(text, text) for key, text in parse_pairs(texts, option).items()}
