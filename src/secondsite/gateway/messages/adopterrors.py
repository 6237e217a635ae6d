"""What can be wrong with a copy that is to be adopted."""

from __future__ import annotations

from secondsite.base.errors import Outcome, SecondsiteError


class AdoptionNotPossible(SecondsiteError):
    """The machine has points here already."""

    code = "adopt.not-possible"
    outcome = Outcome.REFUSED
    happened = "No copy of {machine} is adopted: it has recovery points here, the newest is {point}."
    cause = "Its first copy was made before, perhaps by an earlier protection."
    action = (
        "None: protect it again, and its disks are compared with the newest point; only differences travel."
    )


class AdoptionRunning(SecondsiteError):
    """Another one is under way."""

    code = "adopt.running"
    outcome = Outcome.REFUSED
    happened = "A copy of {machine} is being adopted already: it is {state}."
    cause = "It was asked for before."
    action = "See `secondsite adopt status`, or give it up with `secondsite adopt cancel` first."


class AdoptionUnknown(SecondsiteError):
    """There is none."""

    code = "adopt.unknown"
    outcome = Outcome.NOT_FOUND
    happened = "No copy of {machine} is being adopted here."
    cause = "None was begun, it was given up, or the other site's gateway is the one to ask."
    action = "List what there is with `secondsite adopt list`."


class AdoptionTooLate(SecondsiteError):
    """The first point is being committed on it."""

    code = "adopt.too-late"
    outcome = Outcome.REFUSED
    happened = "The adopted copy of {machine} cannot be given up any more: it is {state}."
    cause = "Its first recovery point stands on it."
    action = "None; the machine is protected."


class AdoptionGone(SecondsiteError):
    """What a source stands on is not there."""

    code = "adopt.gone"
    outcome = Outcome.REFUSED
    happened = "The adopted copy of {machine} cannot be used: {why}."
    cause = "It was given up, its image changed, or the machine has a recovery point by now."
    action = "None: the source looks again, and its first copy goes over the network where there is no copy."


class AdoptionRefused(SecondsiteError):
    """The copy is of other disks than the machine has."""

    code = "adopt.refused"
    outcome = Outcome.REFUSED
    happened = "The copy given for {machine} does not fit: {why}."
    cause = "It is of another machine or disk, or the disk was resized after the copy was made."
    action = (
        "Adopt a copy of the same size; until then the first copy goes over the network. "
        "Nothing was taken over."
    )


class ImageRefused(SecondsiteError):
    """A file cannot be adopted."""

    code = "adopt.image-refused"
    outcome = Outcome.REFUSED
    happened = "The image {path} cannot be adopted: {why}."
    cause = "The name or the format is mistyped, or the file is damaged."
    action = "Name a raw or qcow2 image that nobody uses, with its true format; nothing was taken over."


class ImageInUse(SecondsiteError):
    """Somebody may write to it."""

    code = "adopt.image-in-use"
    outcome = Outcome.REFUSED
    happened = "The image {path} is in use: {why}."
    cause = "A machine runs on it; what it writes would make a copy that never was."
    action = "Shut the machine down, or adopt a copy of the image; nothing was taken over."


class ImageChanged(SecondsiteError):
    """It was written to while it was read."""

    code = "adopt.image-changed"
    outcome = Outcome.REFUSED
    happened = "The image {path} changed while it was adopted: {why}."
    cause = "A machine was started from it, or the file was replaced."
    action = "Stop what writes to it and adopt it again; what was taken over was dropped."


class AdoptionNoRoom(SecondsiteError):
    """The copy does not fit."""

    code = "adopt.no-room"
    outcome = Outcome.REFUSED
    happened = "{path} has {free} free, and adopting the copy may take {needed} there."
    cause = "The copy is taken into the store beside the image, which is never changed."
    action = "Make room, and adopt it again; nothing was taken over."


class AdoptionOffered(SecondsiteError):
    """While a first copy was under way, the target was given one."""

    code = "replicate.adoption-offered"
    outcome = Outcome.UNAVAILABLE
    happened = "The first copy of {machine} begins again: its target has a copy to begin with."
    cause = "Somebody adopted one there while it was sent over the network."
    action = "None: only what differs from it is sent."
