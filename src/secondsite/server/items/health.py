"""What is wrong with an item, in sentences: what happened, why, what to do, and who can. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from secondsite.model.items import ProtectedState
from secondsite.server.items.records import Item


@dataclass(frozen=True)
class Problem:
    """One of them. who_can_fix: the people of a site, of the server, or nobody: it passes."""

    code: str
    severity: str
    happened: str
    possible_causes: str
    recommended_action: str
    who_can_fix: str


@dataclass(frozen=True)
class _Known:
    causes: str
    action: str
    who: str


SOURCE, TARGET, SERVER, ITSELF = (
    "whoever runs the source's site",
    "whoever runs the target's site",
    "a contributor of the vault",
    "nobody: it passes by itself",
)
_KNOWN: Mapping[str, _Known] = {
    "item.gateway-refused": _Known(
        "What was asked for does not fit the machine, or the gateway is older than the server.",
        "Correct what it names, or update the gateway; then change the item again.",
        SERVER,
    ),
    "item.not-at-gateway": _Known(
        "The gateway was set up anew or restored, or its state was lost.",
        "Compare it with what is there (`secondsite status` at the gateway), then protect the machine again.",
        SOURCE,
    ),
    "item.bitmap-mode": _Known(
        "The link or the target takes less than changes, or the cache volume is full.",
        "See whether the link and the target are there. Nothing is lost, and no full copy follows.",
        ITSELF,
    ),
    "item.mapping-incomplete": _Known(
        "A pool or network that the mapping names is not at the target's site.",
        "Change the mapping, or make what it names; then `secondsite item finalise`.",
        SERVER,
    ),
}
_ELSE = _Known(
    "See the gateway's own events (`secondsite events`) for what led to it.",
    "Do what the text says; it goes away by itself once the cause has.",
    SOURCE,
)


def problems_of(item: Item, *, source_here: bool, target_here: bool) -> list[Problem]:
    """Everything that is wrong now, the worst first. *_here: whether its gateways were heard of lately."""
    found: list[Problem] = []
    if item.state is ProtectedState.UNPROTECTED:
        return found
    for name, here, who in (
        (item.source_name, source_here, SOURCE),
        (item.target_name, target_here or item.target_id is None, TARGET),
    ):
        if not here:
            found.append(
                Problem(
                    "gateway.silent",
                    "Critical",
                    f"Gateway {name} is not connected: what is shown of {item.name} is old.",
                    "It is stopped, or its site has lost its way to the server.",
                    f"See `secondsite gateway show {name}`. Replication goes on without the server.",
                    who,
                )
            )
    # what a silent gateway said of it is known to be old; that it is silent was looked at above
    if item.health != "Normal" and item.health_code != "gateway.silent":
        known = _KNOWN.get(item.health_code, _ELSE)
        text = item.health_note or f"{item.name} is not well."
        found.append(
            Problem(
                item.health_code or "item.unwell", item.health, text, known.causes, known.action, known.who
            )
        )
    if item.replica is not None and item.replica.doubt:
        found.append(
            Problem(
                "item.points-in-doubt",
                "Warning",
                item.replica.doubt,
                "What was written to the machine looks like an attack, or like very much honest work.",
                "Look at its points (`secondsite points list`) and dismiss the doubt if it is none.",
                TARGET,
            )
        )
    return sorted(found, key=lambda one: one.severity != "Critical")
