"""From what a person typed to one machine: an id or a name, or an error that names the candidates."""

from __future__ import annotations

import uuid
from collections.abc import Iterable

from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.model.ids import MachineId

CANDIDATES_SHOWN_MAX = 8


class MachineNotHere(SecondsiteError):
    """No machine of this list has the name or id."""

    code = "machine.not-here"
    outcome = Outcome.NOT_FOUND
    happened = "There is no {kind} {text!r} at {where}; there {known}."
    cause = "The name is mistyped, or the command went to the gateway of the other site."
    action = "Use a name or id from the list, or give the other gateway's socket with --gateway."


class MachineAmbiguous(SecondsiteError):
    """Several machines have the name."""

    code = "machine.ambiguous"
    outcome = Outcome.USAGE
    happened = "{count} machines at {where} are named {text!r}: {ids}."
    cause = "Hypervisors tell machines apart by their ids; names may repeat across hosts and sites."
    action = "Use the id of the machine you mean; nothing was changed."


def resolve(text: str, candidates: Iterable[tuple[MachineId, str]], *, kind: str, where: str) -> MachineId:
    """The machine `text` means among `(id, name)` pairs.

    Args:
        text: an id in any case, or an exact name.
        candidates: what there is.
        kind: what the candidates are, e.g. "protected machine", for the error.
        where: whose they are, e.g. "gateway b", for the error.

    Raises:
        MachineNotHere: none of them; names some there are.
        MachineAmbiguous: several have the name; names their ids.
    """
    pairs = sorted(set(candidates), key=lambda pair: (pair[1], pair[0]))
    try:
        wanted = str(uuid.UUID(text))
    except ValueError:
        wanted = ""
    if any(machine == wanted for machine, _ in pairs):
        return MachineId(wanted)
    named = [machine for machine, name in pairs if name == text]
    if len(named) == 1:
        return named[0]
    if named:
        raise MachineAmbiguous(text=text, where=where, count=len(named), ids=", ".join(named))
    names = [name for _, name in pairs]
    shown = ", ".join(names[:CANDIDATES_SHOWN_MAX])
    more = len(names) - CANDIDATES_SHOWN_MAX
    known = f"are {shown}{f' and {more} more' if more > 0 else ''}" if names else "is none at all"
    raise MachineNotHere(text=text[:80], kind=kind, where=where, known=known)
