"""From a URI to a fabric: the one place that knows which kinds there are."""

from __future__ import annotations

from pathlib import Path

from secondsite.base.clock import Clock
from secondsite.fabrics.base import Fabric
from secondsite.gateway.common.config import FabricSettings
from secondsite.model.events import EventSink


def open_fabric(uri: str, *, scratch_dir: Path, socket_dir: Path, clock: Clock, events: EventSink) -> Fabric:
    """A fabric to recover machines on; it guards no source, so it needs no guard process."""
    from secondsite.fabrics.libvirt.fabric import LibvirtFabric  # noqa: PLC0415 - loads libvirt's library

    return LibvirtFabric(
        uri, scratch_dir=scratch_dir, socket_dir=socket_dir, guard=None, clock=clock, events=events
    )


def open_libvirt(settings: FabricSettings, state_dir: Path, clock: Clock, events: EventSink) -> Fabric:
    """The libvirt host with its guard running beside us."""
    from secondsite.fabrics.libvirt.fabric import LibvirtFabric  # noqa: PLC0415 - loads libvirt's library
    from secondsite.fabrics.libvirt.guard_client import GuardClient, GuardSettings  # noqa: PLC0415

    guard = GuardClient(
        GuardSettings(
            uri=settings.uri,
            socket=settings.guard_socket or settings.socket_dir / "guard.sock",
            scratch_dir=settings.scratch_dir,
            socket_dir=settings.socket_dir,
            event_log=state_dir / "guard-events.jsonl",
        ),
        clock,
    )
    guard.ensure()
    return LibvirtFabric(
        settings.uri,
        scratch_dir=settings.scratch_dir,
        socket_dir=settings.socket_dir,
        guard=guard,
        clock=clock,
        events=events,
    )
