"""``./run demo``: the main job of secondsite, start to end, on this one machine, with the proof.

Two sites, a guest under load, protection, points every few seconds, one application-consistent point, a test
failover at the other site to a point some cycles back, the guest's own check of what it finds there, and a
clean-up that leaves nothing. Everything goes through the gateways' control API, as a user's commands do.
"""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path

from rich.console import Console

from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.base.units import format_bytes, format_seconds
from secondsite.gateway.messages import PointSummary, PointTaken
from secondsite.lab import proof, watch
from secondsite.lab.errors import LabTimeout
from secondsite.lab.gateways import Gateways
from secondsite.lab.guest import build_boot_files
from secondsite.lab.machine import Guest, GuestSpec, create_guest
from secondsite.lab.report import Figures, print_table
from secondsite.lab.roots import fresh_root
from secondsite.lab.signals import interruptible, uninterrupted
from secondsite.lab.sites import Sites, remove_stale_labs
from secondsite.lab.witness import Witness

COPY_FREQUENCY_SECONDS = 5.0
POINTS_BEFORE = 4  # watched before the application-consistent point, and again after it
CYCLES_BACK = 3  # how far back the test failover goes
DEMO_GUEST = GuestSpec()


class Story:
    """The demo's cast and the figures it measures; the methods are its chapters, in order."""

    def __init__(self, sites: Sites, console: Console, guest_spec: GuestSpec = DEMO_GUEST) -> None:
        self.sites = sites
        self.console = console
        self.spec = guest_spec
        self.witness = Witness()
        self.gateways = Gateways(sites)
        self.figures = Figures()
        self.guest: Guest | None = None

    def _say(self, text: str, started: float | None = None) -> None:
        took = "" if started is None else f"  [dim]{format_seconds(time.monotonic() - started)}[/]"
        self.console.print(f"[green]✓[/] {text}{took}", highlight=False, soft_wrap=True)

    def raise_sites(self) -> None:
        """Both sites, the guest under load, both gateways."""
        a, b = self.sites.sites
        started = time.monotonic()
        with self.console.status("two sites, each with its own libvirt"):
            boot = build_boot_files()
            self.sites.up(attached=True)
        self._say("two sites are up, joined by a line", started)
        started = time.monotonic()
        with self.console.status("a guest with a system disk and a data disk"):
            self.guest = create_guest(a, boot, self.spec)
            booting = time.monotonic()
            self.guest.start()
            self.guest.wait_ready()
            self.figures.plain_boot_seconds = time.monotonic() - booting
            self.witness.attach(self.guest.channel_path())
        size = format_bytes(self.spec.system_bytes + self.spec.data_bytes)
        self._say(f"guest {self.guest.name} ({size}) writes checked records to both disks at A", started)
        started = time.monotonic()
        with self.console.status("a gateway at each site"):
            self.gateways.prepare()
            self.gateways.start(b)
            self.gateways.start(a)
        self._say("a gateway runs at each site; they trust each other's certificates", started)

    def protect(self) -> None:
        """The first copy, until the first recovery point is durable at B."""
        started = time.monotonic()
        status = self.gateways.protect(self.spec.name, copy_frequency_seconds=COPY_FREQUENCY_SECONDS)
        with self.gateways.client(self.sites.a) as client:
            copy = watch.first_copy(client, status, self.console)
        self.figures.first_copy_bytes = copy.data_bytes
        self.figures.first_copy_seconds = time.monotonic() - started
        self.figures.before = copy.status
        self._say(f"protected: the first {format_bytes(copy.data_bytes)} are at B, sealed", started)

    def watch_points(self, count: int) -> None:
        """The live line, until `count` more points are committed."""
        with self.gateways.client(self.sites.a) as client:
            watch.points(client, self.spec.name, count, self.console, self.figures)

    def consistent_point(self) -> PointTaken:
        """One application-consistent point through the guest agent."""
        started = time.monotonic()
        with self.gateways.client(self.sites.a) as client:
            taken = client.take_point(self.spec.name)
        frozen = f", guest frozen {format_seconds(taken.frozen_seconds)}" if taken.frozen_seconds else ""
        note = f" ({taken.note})" if taken.note else ""
        self._say(f"point {taken.number} is {taken.consistency.value}{frozen}{note}", started)
        return taken

    def choose_point(self) -> PointSummary:
        """A point some cycles back, as a user picks one from the list."""
        with self.gateways.client(self.sites.b) as client:
            points = client.points(self.spec.name)
        return points[max(0, len(points) - 1 - CYCLES_BACK)]

    def test_failover(self, point: PointSummary) -> None:
        """Boot the guest at B from `point`, let it check itself, hold that against what the witness saw."""
        with self.gateways.client(self.sites.b) as client:
            tested = proof.test_failover(client, self.sites.b, self.witness, self.spec.name, point)
        self.figures.first_line_seconds = tested.first_line_seconds
        back = (tested.requested_at - datetime.fromisoformat(point.at)).total_seconds()
        self._say(
            f"test failover at B to point {point.number}, {back:.0f} s back, on an isolated network: "
            f"first userspace line after {format_seconds(tested.first_line_seconds)}"
        )
        check, expected = tested.check, tested.expected
        self._say(
            f"proved by the guest at B: records {check.first} to {check.last} are whole and in order on "
            f"both disks; {expected.last_at_least} had been acknowledged before the instant, none is younger"
        )

    def end(self) -> None:
        """Remove the test and the protection as a user does, and look that nothing is left in libvirt."""
        started = time.monotonic()
        with self.gateways.client(self.sites.b) as client:
            proof.clean_up(client, self.spec.name, "demo: booted and proved", self.sites.root)
        with self.gateways.client(self.sites.a) as client:
            client.unprotect(self.spec.name)
        proof.require_nothing_left(self.sites, self.spec.name)
        self._say("test removed, protection ended; nothing of it is left at either hypervisor", started)

    def close(self) -> None:
        """End everything; safe at any time."""
        self.witness.close()
        self.sites.down()


def tell(story: Story) -> None:
    """All chapters."""
    story.raise_sites()
    story.protect()
    story.watch_points(POINTS_BEFORE)
    story.consistent_point()
    story.watch_points(POINTS_BEFORE)
    story.test_failover(story.choose_point())
    story.watch_points(1)  # replication went on meanwhile
    story.end()


def main(root: Path | None = None) -> int:
    """Run the demo; the exit code of the command."""
    console = Console()
    started = time.monotonic()
    remove_stale_labs()
    with interruptible():
        story = Story(Sites(root or fresh_root()), console)
        try:
            tell(story)
        except (SecondsiteError, LabTimeout):
            _print_logs(story)
            raise
        finally:
            with uninterrupted(), console.status("removing the sites"):
                story.close()
    print_table(console, story.figures, time.monotonic() - started)
    return int(Outcome.OK)


def _print_logs(story: Story) -> None:
    """The ends of the gateways' logs: they go with the sites."""
    for site in story.sites.sites:
        log = site.directory / "log" / f"{story.gateways.name(site)}.log"
        if log.exists():
            story.console.rule(f"end of {log.name}")
            story.console.print("\n".join(log.read_text(errors="replace").splitlines()[-15:]), markup=False)
