"""Whether a machine that was taken over is what was asked for: it runs, with its size, on its networks.

What was asked for is what was set for it and shown before (`Outlook`); what it is, its hypervisor says.
Checks are named as those before a failover: `running`, `processors`, `memory`, `adapters`, `networks`.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import structs

from secondsite.base.units import MIB
from secondsite.fabrics.base import Fabric, LiveNic, RecoverySpec, Shape
from secondsite.gateway.messages.failover import Check
from secondsite.gateway.recovery.recoveredspec import MAPPED, NONE
from secondsite.model.differences import RUNNING
from secondsite.model.machines import PowerState
from secondsite.model.outlook import NicOutlook, Outlook
from secondsite.model.recovered import NEW, NO_NETWORK, RecoveredSettings

# Hypervisors give memory in whole MiB: libvirt rounds up what a definition says (qemuDomainAlignMemorySizes).
ROUNDED_BYTES = MIB
_RIGHT = "Put it right at the hypervisor, or change its settings and its point; then look again."


def asked_of(fabric: Fabric, spec: RecoverySpec, network: str) -> Outlook:
    """What was shown, with what a person set put over it: our own making of it is not believed.

    network: as the failover was asked for.
    """
    seen, settings = fabric.outlook(spec), spec.settings
    return structs.replace(
        seen,
        cpus=settings.cpus or seen.cpus,
        memory_bytes=settings.memory_bytes or seen.memory_bytes,
        nics=tuple(_nic_asked(nic, settings, network) for nic in seen.nics),
        findings=(),
    )


def _nic_asked(nic: NicOutlook, settings: RecoveredSettings, network: str) -> NicOutlook:
    if network != MAPPED:
        return structs.replace(nic, network="" if network == NONE else network)
    for wanted in settings.nics:
        if wanted.network is not None and wanted.nic in (str(nic.place), nic.mac):
            return structs.replace(nic, network="" if wanted.network == NO_NETWORK else wanted.network)
    return nic


def verify(asked: Outlook | None, shape: Shape | None, power: PowerState) -> tuple[Check, ...]:
    """All that was looked at. asked None: it was started by a version that did not keep it."""
    if shape is None or power is not PowerState.RUNNING:
        action = "Start it and look at its console, or turn it to another point."
        # one that ended between the two looks is off
        how = PowerState.OFF if power is PowerState.RUNNING else power
        return (_failed(RUNNING, f"it does not run ({how.value})", action),)
    running = Check(name=RUNNING, passed=True)
    if asked is None:
        return (running,)
    return (running, _processors(asked, shape), _memory(asked, shape), *_adapters(asked, shape))


def _processors(asked: Outlook, shape: Shape) -> Check:
    if shape.cpus == asked.cpus:
        return Check(name="processors", passed=True)
    cause = f"it has {shape.cpus} processors, and {asked.cpus} were asked for"
    return _failed("processors", cause, _RIGHT)


def _memory(asked: Outlook, shape: Shape) -> Check:
    if 0 <= shape.memory_bytes - asked.memory_bytes < ROUNDED_BYTES:
        return Check(name="memory", passed=True)
    has, wanted = (size // MIB for size in (shape.memory_bytes, asked.memory_bytes))
    return _failed("memory", f"it has {has} MiB of memory, and {wanted} MiB were asked for", _RIGHT)


def _adapters(asked: Outlook, shape: Shape) -> Iterator[Check]:
    if len(shape.nics) != len(asked.nics):
        cause = f"it has {len(shape.nics)} adapters, and {len(asked.nics)} were asked for"
        yield _failed("adapters", cause, _RIGHT)
    pairs = list(zip(asked.nics, shape.nics, strict=False))
    wrong = [
        f"adapter {nic.place} has the address {live.mac} instead of {nic.mac}"
        for nic, live in pairs
        if nic.mac not in (NEW, live.mac)
    ]
    if wrong:
        yield _failed("adapters", "; ".join(wrong), _RIGHT)
    elif len(shape.nics) == len(asked.nics):
        yield Check(name="adapters", passed=True)
    off = [trouble for nic, live in pairs if (trouble := _network(nic, live))]
    if off:
        action = "Attach it as it should be and set its link up, or roll back."
        yield _failed("networks", "; ".join(off), action)
    else:
        yield Check(name="networks", passed=True)


def _network(nic: NicOutlook, live: LiveNic) -> str:
    if live.network != nic.network:
        there, wanted = live.network or "no network", nic.network or "none"
        return f"adapter {nic.place} is attached to {there}, and {wanted} was asked for"
    if nic.network and not live.up:
        return f"adapter {nic.place} is attached to {nic.network}, and its link is down"
    return ""


def _failed(name: str, cause: str, action: str) -> Check:
    return Check(name=name, passed=False, required=False, cause=cause, action=action)
