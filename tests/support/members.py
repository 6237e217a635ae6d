"""A gateway's enrolment as it lies in its files, without a server that made it."""

from __future__ import annotations

from pathlib import Path

from secondsite.gateway.common.enrolfiles import EnrolmentFiles, Membership


def save_membership(directory: Path, *, server: str, proxy: str | None = None) -> None:
    """Of gateway-a; the directory is there."""
    name = "gateway-a"
    member = Membership(
        server=server, proxy=proxy, name=name, friendly_name=name, gateway_id="1", vault="North", site="a"
    )
    EnrolmentFiles(directory, name).save(member)
