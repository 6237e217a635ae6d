"""``secondsite policy``: how often machines are copied, what is kept of them, and what that may cost."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from secondsite.base.errors import InvalidInput
from secondsite.base.units import format_bytes
from secondsite.cli.common.gateways import LISTING, Listing, parse_duration
from secondsite.cli.common.output import print_json, print_table, short_time
from secondsite.cli.common.reach import SERVER_REACH, ServerReach

if TYPE_CHECKING:
    from collections.abc import Iterator

    from secondsite.client.policies import Estimate, Policy, Settings, Window

_WINDOW = re.compile(r"(\d\d:\d\d)-(\d\d:\d\d)=(\S+)\Z")
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*(k|M|G)?(bit|B)?\Z")
_RATE_UNITS = {None: 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
_LEVEL = re.compile(r"-?\d{1,2}\Z")


@Parameter(name="*")
@dataclass(frozen=True)
class Wishes:
    """Settings of a policy; what is left out stays, or is the preset's."""

    copy_every: str | None = None
    """How often a machine is copied: 5s, 30s, 5m, 15m; from 1s up."""
    rpo_threshold: str | None = None
    """Alert when the newest point is older than this: 15m. Replication itself never waits for it."""
    retention: str | None = None
    """Which points stay: all:2h,1h:1d,2h:7d, or latest, or latest+4 (four more, one an hour)."""
    app_consistent: str | None = None
    """How often a point is application-consistent: 1h, or never."""
    compression: str | None = None
    """on, off, or zstd's level from -5 to 19."""
    bandwidth: Annotated[list[str] | None, Parameter(negative="")] = None
    """FROM-UNTIL=RATE, as in 08:00-18:00=20Mbit (bit or B, with k, M or G; or unlimited), of the source
    gateway's local time; more than once for several windows. "none" takes all of them away."""
    first_copy: str | None = None
    """now, a time of day like 22:00 (the source gateway's local time), or offline (from media)."""
    delete_replica: bool | None = None
    """Whether the replica and its points are deleted when protection is disabled."""

    def settings(self) -> dict[str, object]:
        """As the API takes them: what was given. Raises InvalidInput."""
        found: dict[str, object] = {
            "copyFrequencySeconds": self._seconds(self.copy_every, "--copy-every"),
            "rpoThresholdSeconds": self._seconds(self.rpo_threshold, "--rpo-threshold"),
            "retention": self.retention,
            "deleteReplicaOnDisable": self.delete_replica,
        }
        found = {name: value for name, value in found.items() if value is not None}
        if self.app_consistent is not None:
            never = self.app_consistent == "never"
            seconds = None if never else self._seconds(self.app_consistent, "--app-consistent")
            found["applicationConsistentFrequencySeconds"] = seconds
        if self.compression is not None:
            found["compressionLevel"] = _level(self.compression)
        if self.bandwidth is not None:
            given = [] if self.bandwidth == ["none"] else self.bandwidth
            found["bandwidth"] = [parse_window(text) for text in given]
        if self.first_copy is not None:
            words = ("now", "offline")
            at = None if self.first_copy in words else self.first_copy
            found["firstCopy"] = {"mode": "scheduled" if at else self.first_copy, "at": at}
        return found

    @staticmethod
    def _seconds(text: str | None, option: str) -> float | None:
        return None if text is None else parse_duration(text.replace("min", "m"), option)


WISHES = Wishes()


def list_policies(
    vault: str | None = None, /, *, reach: ServerReach = SERVER_REACH, listing: Listing = LISTING
) -> None:
    """List replication policies. Failback policies are made with theirs and named after them.

    For example:

        secondsite policy list

        secondsite policy list North

    Parameters
    ----------
    vault
        Only those of this vault.
    """
    from secondsite.client import policies

    with reach.open() as server:
        found = list(policies.policies(server, vault))
    if listing.json:
        print_json(found)
        return
    print_table(
        ["NAME", "EVERY>", "ALERT AT>", "RETENTION", "POINTS>", "APP-CONSISTENT>", "ITEMS>", "REV>"],
        (
            (
                one.friendly_name,
                _words(one.settings.copy_frequency_seconds),
                _words(one.settings.rpo_threshold_seconds),
                one.settings.retention,
                f"{one.recovery_points:,}",
                _words(one.settings.application_consistent_frequency_seconds),
                one.protected_items,
                one.revision,
            )
            for one in found
        ),
        empty="There are no policies. Make one with `secondsite policy create VAULT NAME --preset 30s`.",
    )


def show(
    vault: str,
    policy: str,
    /,
    *,
    revisions: Annotated[bool, Parameter(negative="")] = False,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> None:
    """Show a policy: its settings, what they keep, and what to know of them.

    For example:

        secondsite policy show North Gold

        secondsite policy show North Gold --revisions

    Parameters
    ----------
    vault
        The vault's name or id.
    policy
        The policy's name or id.
    revisions
        Show what it said before, too: the last hundred revisions.
    """
    from secondsite.client import policies

    with reach.open() as server:
        found = policies.policy(server, vault, policy)
        said = list(policies.revisions(server, vault, policy)) if revisions else []
    if listing.json:
        print_json({"policy": found, "revisions": said} if revisions else found)
        return
    print("\n".join(_lines(found)))
    for one in said:
        print(f"revision {one.revision}, {short_time(one.at)} by {one.by}:")
        for line in _settings_lines(one.settings):
            print(f"  {line}")


def create(
    vault: str,
    name: str,
    /,
    *,
    preset: str | None = None,
    description: str = "",
    wishes: Wishes = WISHES,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> None:
    """Make a policy: of a preset, with settings of its own over it. Its failback policy is made with it.

    For example:

        secondsite policy create North Gold --preset 5s --app-consistent 1h

        secondsite policy create North Branch --preset 5min --bandwidth 08:00-18:00=20Mbit --first-copy 22:00

    Parameters
    ----------
    vault
        The vault's name or id.
    name
        Its name, in any script, at most 80 characters.
    preset
        5s, 30s, 5min or 15min, see `secondsite policy presets`; 5s when not given.
    description
        What it is for.
    """
    from secondsite.client import policies

    with reach.open() as server:
        made = policies.create_policy(
            server, vault, name, preset=preset, description=description, settings=wishes.settings()
        )
    _print(made, listing)


def change(
    vault: str,
    policy: str,
    /,
    *,
    rename: str | None = None,
    description: str | None = None,
    revision: int | None = None,
    wishes: Wishes = WISHES,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> None:
    """Change a policy. Its items replicate by it as soon as their gateways know, without a new first copy.

    For example:

        secondsite policy change North Gold --copy-every 30s --retention all:4h,1h:2d

        secondsite policy change North Gold --bandwidth none --rename Silver

    Parameters
    ----------
    vault
        The vault's name or id.
    policy
        The policy's name or id.
    rename
        Another name.
    description
        What it is for.
    revision
        Change it only while it is at this revision, so that nobody's change is overwritten.
    """
    from secondsite.client import policies

    with reach.open() as server:
        changed = policies.change_policy(
            server,
            vault,
            policy,
            to=rename,
            description=description,
            settings=wishes.settings(),
            revision=revision,
        )
    _print(changed, listing)
    if not listing.json and changed.protected_items:
        print(f"told to {changed.protected_items} protected items")


def copy(
    vault: str, policy: str, name: str, /, *, reach: ServerReach = SERVER_REACH, listing: Listing = LISTING
) -> None:
    """Make a policy with the settings of another one. A copy of a failback policy may be changed.

    For example:

        secondsite policy copy North Gold Silver

    Parameters
    ----------
    vault
        The vault's name or id.
    policy
        The policy's name or id.
    name
        The copy's name.
    """
    from secondsite.client import policies

    with reach.open() as server:
        made = policies.copy_policy(server, vault, policy, name)
    _print(made, listing)


def delete(vault: str, policy: str, /, *, reach: ServerReach = SERVER_REACH) -> None:
    """Delete a policy that no item uses, with its failback policy.

    For example:

        secondsite policy delete North Silver

    Parameters
    ----------
    vault
        The vault's name or id.
    policy
        The policy's name or id.
    """
    from secondsite.client import policies

    with reach.open() as server:
        policies.delete_policy(server, vault, policy)
    print(f"policy {policy} is deleted")


def presets(*, reach: ServerReach = SERVER_REACH, listing: Listing = LISTING) -> None:
    """Show the sets of settings that policies are made of.

    For example:

        secondsite policy presets
    """
    from secondsite.client import policies

    with reach.open() as server:
        found = list(policies.presets(server))
    if listing.json:
        print_json(found)
        return
    print_table(
        ["PRESET", "EVERY>", "ALERT AT>", "KEPT", "POINTS>", "FOR"],
        (
            (
                one.name,
                _words(one.settings.copy_frequency_seconds),
                _words(one.settings.rpo_threshold_seconds),
                one.retention_text,
                f"{one.recovery_points:,}",
                one.description,
            )
            for one in found
        ),
        empty="There are none.",
    )


def estimate(
    vault: str,
    policy: str,
    /,
    *,
    gateway: str | None = None,
    machine: str | None = None,
    retention: str | None = None,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> None:
    """Tell how many points a policy keeps, and what they store where a gateway has measured a machine.

    For example:

        secondsite policy estimate North Gold

        secondsite policy estimate North Gold --retention latest+24 --gateway gateway-b --machine shop

    Parameters
    ----------
    vault
        The vault's name or id.
    policy
        The policy's name or id.
    gateway
        The gateway that keeps the machine's replica; goes with --machine.
    machine
        The machine's name or id.
    retention
        Another retention than the policy's own.
    """
    from secondsite.client import policies

    with reach.open() as server:
        found = policies.estimate(
            server, vault, policy, provider=gateway, machine=machine, retention=retention
        )
    if listing.json:
        print_json(found)
    else:
        print("\n".join(estimate_lines(found)))


def parse_window(text: str) -> dict[str, object]:
    """``08:00-18:00=20Mbit`` as the API takes it. Raises InvalidInput."""
    window = _WINDOW.match(text)
    rate = _RATE.match(window[3]) if window else None
    if window is None or (rate is None and window[3] != "unlimited"):
        why = "it is not FROM-UNTIL=RATE, as in 08:00-18:00=20Mbit or 22:00-06:00=unlimited"
        raise InvalidInput(what=f"--bandwidth {text!r}", why=why)
    bytes_ = None
    if rate is not None:
        bytes_ = float(rate[1]) * _RATE_UNITS[rate[2]] / (8 if rate[3] == "bit" else 1)
    return {"from": window[1], "until": window[2], "bytesPerSecond": bytes_}


def estimate_lines(found: Estimate) -> list[str]:
    """An estimate for people."""
    lines = [
        f"kept      {found.retention_text} ({found.retention})",
        f"points    {found.recovery_points:,} at most, once every window is full",
    ]
    for one in found.windows:
        every = "every point" if not one.every_seconds else f"one every {_words(one.every_seconds)}"
        cost = "" if one.point_bytes is None else f", about {format_bytes(one.point_bytes)} each"
        lines.append(f"          {every}, back to {_words(one.reach_seconds)}: {one.recovery_points:,}{cost}")
    measured = found.measured
    if measured is None:
        return [
            *lines,
            "stored    not measured: name a machine that is replicated, and the gateway that keeps it",
        ]
    if measured.stored_bytes_per_day is None or measured.stored_bytes_at_most is None:
        return [*lines, f"stored    {measured.machine_name} has too few points to tell"]
    a_day, over = format_bytes(measured.stored_bytes_per_day), _words(round(measured.seconds))
    most, now = format_bytes(measured.stored_bytes_at_most), format_bytes(measured.stored_bytes)
    return [
        *lines,
        f"stored    {most} at most for {measured.machine_name}, if it goes on writing as it did; {now} now",
        f"measured  {a_day} a day arrived at {measured.provider}, over {over}",
    ]


def _level(text: str) -> int | None:
    if text in ("on", "off"):
        return 1 if text == "on" else None
    if _LEVEL.match(text) is None:
        raise InvalidInput(what=f"--compression {text!r}", why="it is not on, off, or a level from -5 to 19")
    return int(text)


def _words(seconds: float | None) -> str:
    from secondsite.model.retention import in_words

    return "never" if seconds is None else in_words(seconds)


def _print(policy: Policy, listing: Listing) -> None:
    if listing.json:
        print_json(policy)
    else:
        print("\n".join(_lines(policy)))


def _lines(policy: Policy) -> Iterator[str]:
    made = f"revision {policy.revision}, changed {short_time(policy.changed_at)} by {policy.changed_by}"
    yield f"{policy.friendly_name}: {made}, id {policy.id}"
    if policy.description:
        yield policy.description
    yield from _settings_lines(policy.settings)
    yield f"keeps           {policy.retention_text}: at most {policy.recovery_points:,} points"
    yield "encryption      always"
    yield f"used by         {policy.protected_items} items"
    if policy.failback_of is not None:
        yield "failback        it is the failback policy of another one, which it is named after and follows"
    else:
        yield f"failback        by the policy {policy.friendly_name} (failback), made with it"
    for text in policy.warnings:
        yield f"! {text}"


def _settings_lines(settings: Settings) -> Iterator[str]:
    yield f"copied every    {_words(settings.copy_frequency_seconds)}"
    yield f"alert at        {_words(settings.rpo_threshold_seconds)} without a point"
    yield f"retention       {settings.retention}"
    yield f"app-consistent  {_words(settings.application_consistent_frequency_seconds)}"
    level = settings.compression_level
    yield f"compression     {'off' if level is None else f'zstd, level {level}'}"
    limits = ", ".join(_window(window) for window in settings.bandwidth)
    yield f"bandwidth       {limits or 'as the gateway allows'}"
    at = settings.first_copy.at
    yield f"first copy      {f'at {at}' if at else settings.first_copy.mode}"
    gone = "deleted" if settings.delete_replica_on_disable else "kept"
    yield f"when disabled   the replica is {gone}"


def _window(window: Window) -> str:
    rate = window.bytes_per_second
    limit = "unlimited" if rate is None else f"{format_bytes(rate)}/s"
    return f"{window.from_}-{window.until} {limit}"
