"""What jobs over several items show of their child jobs: each change while followed, a table at the end."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from secondsite.cli.common.output import print_table

if TYPE_CHECKING:
    from secondsite.client.client import ServerClient
    from secondsite.client.messages import Job

# A line for each tenth that a child job gets on: of a thousand, more would be read by nobody.
PARTS = 10


def has_children(job: Job) -> bool:
    """Whether it is one over others: of several items, or of several parts."""
    from secondsite.client.itemgroups import FAILBACK, GROUP

    return job.kind in (GROUP, FAILBACK)


class ChildLines:
    """Tells on standard error what changed of a job's children since it was looked at last."""

    def __init__(self, server: ServerClient, job: str) -> None:
        self._server = server
        self._job = job
        self._said: dict[str, tuple[str, int]] = {}

    def tell(self) -> None:
        """Look once."""
        for child in reversed(list(self._server.jobs(parent=self._job))):
            now = (child.state_description, int(child.progress * PARTS))
            if self._said.get(child.id) == now:
                continue
            self._said[child.id] = now
            why = child.error.happened if child.error is not None else child.progress_text or child.note or ""
            print(f"  {_line(child)} {why}".rstrip(), file=sys.stderr)


def print_children(server: ServerClient, job: str) -> None:
    """All of them, those begun first first, and why some failed."""
    found = list(server.jobs(parent=job))[::-1]
    print_table(
        ["CHILD", "TITLE", "STATE", "DONE>", "WHY"],
        (
            (
                child.id,
                child.title,
                child.state_description,
                f"{child.progress:.0%}",
                child.error.happened if child.error is not None else child.note or "",
            )
            for child in found
        ),
        empty="None has begun.",
    )


def _line(child: Job) -> str:
    return f"{child.title}: {child.progress:.0%} {child.state_description}"
