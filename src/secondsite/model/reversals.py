"""What a person says, word for word, to protecting a machine the other way round, and after it. Pure."""

from __future__ import annotations


def reversed_onto(name: str) -> str:
    """To giving a held machine's disks to the other direction: its last writes are only there."""
    return f"what {name} wrote here last is given up for the other site's"


def removed(name: str, *, disks: bool) -> str:
    """To discarding a held machine for good."""
    return f"{name} is removed here {'with its disks' if disks else 'and its disks stay'}"


def retired(name: str) -> str:
    """To deleting what is left of the replica that a machine was taken over from."""
    return f"the former points of {name} here are given up"


def migrated(name: str) -> str:
    """To completing a migration."""
    return f"{name} stays here for good and never fails back"
