"""Programs in a recovered machine's guest, through its agent: the settings' drive is put to use.

libvirt has no call of its own for this, so the agent is spoken to through it; that marks the machine as
tainted in libvirt's log until its next start. The agent of a guest may be told not to run programs
(``block-rpcs=guest-exec``): then this fails and says so.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

import libvirt
import libvirt_qemu
import msgspec

from secondsite.base.parse import JSON_ERRORS
from secondsite.fabrics.base import GuestRun, Recovered
from secondsite.fabrics.errors import SourceBusy
from secondsite.fabrics.guest.drive import SCRIPT, SCRIPT_LABEL
from secondsite.fabrics.libvirt import life
from secondsite.fabrics.libvirt.errors import words

AGENT_SECONDS_MAX = 5
OUTPUT_MAX = 4000
ADDRESSES_MAX = 256
# By its label where the guest names devices by labels, else every drive is looked at: an ISO 9660 volume's
# label lies at byte 32808. Nothing is written, and the drive is let go of.
_BOOTSTRAP = f"""
device=/dev/disk/by-label/{SCRIPT_LABEL}
if [ ! -e "$device" ]; then
  device=
  for one in /dev/sr* /dev/sd* /dev/vd* /dev/hd*; do
    [ -b "$one" ] || continue
    label=$(dd if="$one" bs=1 skip=32808 count=32 2>/dev/null)
    case $label in {SCRIPT_LABEL}*) device=$one ;; esac
  done
fi
[ -n "$device" ] || {{ echo "problem: no drive {SCRIPT_LABEL} is seen here"; exit 1; }}
mkdir -p /run/secondsite/drive || exit 1
umount /run/secondsite/drive 2>/dev/null
mount -t iso9660 -o ro "$device" /run/secondsite/drive || {{ echo "problem: it cannot be mounted"; exit 1; }}
sh /run/secondsite/drive/{SCRIPT} install
code=$?
umount /run/secondsite/drive
exit $code
"""


class _Began(msgspec.Struct):
    pid: int


class _Run(msgspec.Struct, rename="kebab"):
    exited: bool
    exitcode: int = -1  # ended by a signal it has none
    out_data: bytes = b""  # msgspec takes base64 for bytes
    err_data: bytes = b""


class _Address(msgspec.Struct, rename="kebab"):
    ip_address: Annotated[str, msgspec.Meta(max_length=64)] = ""


class _Interface(msgspec.Struct, rename="kebab"):
    ip_addresses: list[_Address] = []


_T = TypeVar("_T")


# One a type, not one generic: of that msgspec makes what it needs in whichever threads ask first, and each
# may then take what is half made (`base.parse.prepare_structs`).
class _BeganAnswer(msgspec.Struct, rename={"given": "return"}):
    given: _Began


class _RunAnswer(msgspec.Struct, rename={"given": "return"}):
    given: _Run


class _InterfacesAnswer(msgspec.Struct, rename={"given": "return"}):
    given: list[_Interface]


def begin(connection: Any, recovered: Recovered) -> int:
    """See `Fabric.apply_in_guest`."""
    arguments = {"path": "/bin/sh", "arg": ["-c", _BOOTSTRAP], "capture-output": True}
    return _ask(connection, recovered, "guest-exec", arguments, _BeganAnswer).given.pid


def ended(connection: Any, recovered: Recovered, run: int) -> GuestRun | None:
    """See `Fabric.applied`."""
    answer = _ask(connection, recovered, "guest-exec-status", {"pid": run}, _RunAnswer).given
    if not answer.exited:
        return None
    output = (answer.out_data + answer.err_data).decode(errors="replace")
    return GuestRun(answer.exitcode, output[:OUTPUT_MAX])


def addresses(connection: Any, recovered: Recovered) -> Sequence[str]:
    """See `Fabric.addresses_of`."""
    found = _ask(connection, recovered, "guest-network-get-interfaces", {}, _InterfacesAnswer).given
    seen = [one.ip_address for interface in found for one in interface.ip_addresses if one.ip_address]
    return tuple(seen[:ADDRESSES_MAX])


def _ask(
    connection: Any, recovered: Recovered, command: str, arguments: dict[str, object], kind: type[_T]
) -> _T:
    domain = life.lookup(connection, recovered.id)
    if domain is None or not domain.isActive():
        raise SourceBusy(machine=recovered.name, why="it is off")
    request = json.dumps({"execute": command, "arguments": arguments})
    try:
        answer = libvirt_qemu.qemuAgentCommand(domain, request, AGENT_SECONDS_MAX, 0)
        return msgspec.json.decode(answer, type=kind)
    except libvirt.libvirtError as error:
        raise SourceBusy(machine=recovered.name, why=f"its guest agent: {words(error)}") from error
    except JSON_ERRORS as error:
        # whatever runs in the guest answers, and need not be an agent at all
        raise SourceBusy(machine=recovered.name, why="its guest agent answered nonsense") from error
