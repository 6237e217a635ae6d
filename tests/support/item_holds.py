"""The held machines of a made-up source gateway: what is decided takes a look to be carried out."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from secondsite.model import confirmations
from secondsite.transfer.calls import Call
from secondsite.transfer.reports import HeldReport
from support.item_tests import AT, Answered, refusal

_VERBS = {"release": "Released", "discard": "Discarded"}


@dataclass
class FakeHolds:
    """By machine."""

    known: dict[str, dict[str, Any]] = field(default_factory=dict)
    asked: list[dict[str, Any]] = field(default_factory=list)

    def hold(self, machine: str, claimant: str = "gateway-b", epoch: int = 2) -> None:
        """Its gateway has learnt of a claim."""
        self.known[machine] = {
            "machine": machine,
            "name": "shop",
            "state": "Held",
            "why": "-",
            "claimant": claimant,
            "epoch": epoch,
            "claimedAt": AT,
            "heldAt": AT,
            "isolatedAt": AT,
            "lastPoint": 7,
            "lastPointAt": AT,
            "note": "",
        }

    def reports(self) -> list[HeldReport]:
        names = {name: given.alias or name for name, given in HeldReport.model_fields.items()}
        return [
            HeldReport.model_validate({name: one[alias] for name, alias in names.items() if alias in one})
            for one in self.known.values()
        ]

    def answers(self, call: Call) -> bool:
        words = call.path.split("/")[2:]
        return words == ["held"] or (words[0] == "held" and words[-1] in _VERBS)

    def answer(self, call: Call) -> Answered:
        if call.method == "GET":
            shown = [dict(one) for one in self.known.values()]
            for one in self.known.values():
                if one["state"] != "Held":
                    one["isolatedAt"] = None  # carried out by the next look
            return 200, shown
        _, machine, verb = call.path.split("/")[2:]
        body = json.loads(call.body)
        one = self.known.get(machine, {"state": ""})
        before = ("Held", "Released") if verb == "discard" else ("Held",)
        if one["state"] not in (*before, _VERBS[verb]):
            return 404, refusal("machine.not-here", "not_found")
        if one["state"] in before and body["epoch"] != one["epoch"]:
            return 409, refusal("held.another-claim")
        if one["state"] in before:
            said = confirmations.released("shop", one["claimant"])
            if verb == "discard":
                said = confirmations.discarded("shop", body["remove"])
            if body["confirm"] != said:
                return 409, refusal("failover.confirmation-missing")
            self.asked.append(body)
            removed = {"remove": body.get("remove", "nothing")}
            one |= {"state": _VERBS[verb], "decidedAt": AT, "decidedBy": body["by"], **removed}
        return 200, dict(one)
