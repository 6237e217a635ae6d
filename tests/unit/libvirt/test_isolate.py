"""A machine that has to stand still does, also where the host cannot write its definition."""

from __future__ import annotations

import libvirt
import pytest

from secondsite.fabrics.libvirt import isolate

XML = """<domain><devices><interface type="network"><mac address="52:54:00:00:00:01"/>
</interface></devices></domain>"""


class Domain:
    """One that runs. full: why, of what libvirt is asked to write down."""

    def __init__(self, full: str) -> None:
        self.full, self.runs = full, True

    def isActive(self) -> int:  # noqa: N802 - libvirt's name
        return 1

    def isPersistent(self) -> int:  # noqa: N802
        return 1

    def autostart(self) -> int:
        return 0

    def state(self) -> list[int]:
        return [libvirt.VIR_DOMAIN_RUNNING if self.runs else libvirt.VIR_DOMAIN_PAUSED, 0]

    def suspend(self) -> None:
        self.runs = False

    def XMLDesc(self, _flags: int) -> str:  # noqa: N802
        return XML

    def metadata(self, *_: object) -> str:
        error = libvirt.libvirtError("none")
        error.err = (libvirt.VIR_ERR_NO_DOMAIN_METADATA, 0, "none", 0, "", None, None, 0, 0)
        raise error

    def setMetadata(self, *arguments: object) -> None:  # noqa: N802
        self._write("note", arguments[-1])

    def updateDeviceFlags(self, _xml: str, flag: int) -> None:  # noqa: N802
        self._write("links", flag)

    def _write(self, what: str, flag: object) -> None:
        if what == self.full and flag == libvirt.VIR_DOMAIN_AFFECT_CONFIG:
            raise libvirt.libvirtError("No space left on device")


@pytest.mark.parametrize("full", ["note", "links"])
def test_a_full_disk_does_not_let_it_run(full: str) -> None:
    domain = Domain(full)
    with pytest.raises(libvirt.libvirtError, match="No space left"):
        isolate.isolate(domain, why="gateway-b took it over", autostart=True)
    assert not domain.runs


def test_it_stands_still_where_everything_can_be_written() -> None:
    domain = Domain("")
    assert isolate.isolate(domain, why="gateway-b took it over", autostart=True)
    assert not domain.runs
