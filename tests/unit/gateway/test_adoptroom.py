"""What a target must have before it adopts a copy, and what an image must be."""

from __future__ import annotations

import subprocess
from pathlib import Path

import msgspec
import pytest

from secondsite.base.errors import SecondsiteError
from secondsite.base.units import GIB, MIB
from secondsite.gateway.adopt.image import look_at, open_image, require_unchanged
from secondsite.gateway.adopt.record import RefsLog
from secondsite.gateway.adopt.room import TargetSite, require_room_in_a_record
from secondsite.gateway.messages.adopterrors import AdoptionNoRoom, ImageChanged, ImageInUse, ImageRefused
from secondsite.journal.errors import RecordTooLarge
from secondsite.model.ids import DiskId, KeyId, MachineId, SegmentId
from secondsite.model.machines import Disk, Machine, PowerState
from secondsite.model.points import DiskState, SegmentRef
from secondsite.transfer import wire
from secondsite.transfer.protocols import AdoptionTerms


def image_at(path: Path, size_bytes: int = 2 * MIB) -> Path:
    with path.open("wb") as file:
        file.truncate(size_bytes)
        file.seek(MIB)
        file.write(b"x" * 4096)
    return path


def machine_on(path: Path, power: PowerState) -> Machine:
    disk = Disk(id=DiskId("vda"), size_bytes=2 * MIB, format="raw", location=str(path))
    machine = MachineId("6f9619ff-8b86-d011-b42d-00cf4fc964ff")
    return Machine(id=machine, name="shop", host="here", power=power, disks=(disk,))


def test_an_image_a_machine_runs_on_is_refused_by_any_name(tmp_path: Path) -> None:
    path = image_at(tmp_path / "shop.raw")
    link = tmp_path / "link.raw"
    link.symlink_to(path)
    for power in (PowerState.RUNNING, PowerState.PAUSED, PowerState.UNKNOWN):
        site = TargetSite(lambda power=power: [machine_on(link, power)], [tmp_path])  # type: ignore[misc]
        with pytest.raises(ImageInUse, match="shop runs on it"):
            site.require_unused(look_at(path, "raw"))
    TargetSite(lambda: [machine_on(link, PowerState.OFF)], [tmp_path]).require_unused(look_at(path, "raw"))


def test_a_machine_on_an_image_beneath_is_noticed(tmp_path: Path) -> None:
    lower = tmp_path / "lower.qcow2"
    upper = tmp_path / "upper.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(lower), "2M"], check=True)
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(lower), "-F", "qcow2", str(upper)]
    subprocess.run(command, check=True)
    site = TargetSite(lambda: [machine_on(lower, PowerState.RUNNING)], [tmp_path])
    with pytest.raises(ImageInUse):
        site.require_unused(look_at(upper, "qcow2"))


def test_room_is_counted_a_volume(tmp_path: Path) -> None:
    site = TargetSite(list, [tmp_path, tmp_path / "not" / "made" / "yet"])
    site.require_room(MIB)
    with pytest.raises(AdoptionNoRoom):
        site.require_room(1 << 60)
    with pytest.raises(RecordTooLarge):
        require_room_in_a_record("shop", 1 << 50)
    require_room_in_a_record("shop", 1024 * GIB)


@pytest.mark.parametrize("what", ["relative", "missing", "directory", "format", "beneath"])
def test_what_cannot_be_adopted_is_refused(tmp_path: Path, what: str) -> None:
    path = image_at(tmp_path / "shop.raw")
    if what == "beneath":
        path = tmp_path / "upper.qcow2"
        command = ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", "/no/such.raw", "-F", "raw"]
        subprocess.run([*command, str(path), "2M"], check=True)
    names = {"relative": Path("shop.raw"), "missing": tmp_path / "no", "directory": tmp_path}
    with pytest.raises(ImageRefused):
        look_at(names.get(what, path), "qcow2" if what in {"format", "beneath"} else "raw")


def test_a_raw_image_that_begins_as_qcow2_stays_raw(tmp_path: Path) -> None:
    """A guest writes what its disk begins with: a header that names a file of the host."""
    crafted = tmp_path / "crafted.raw"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(crafted), "1G"], check=True)
    content = crafted.read_bytes()
    image = look_at(crafted, "raw")
    assert len(content) <= image.size_bytes < MIB, "the file's own size, in whole sectors"
    with open_image(image) as reader:
        buffer = bytearray(512)
        reader.read_into(0, memoryview(buffer))
    assert bytes(buffer) == content[:512]


def test_every_kind_of_change_is_noticed(tmp_path: Path) -> None:
    path = image_at(tmp_path / "shop.raw")
    image = look_at(path, "raw")
    require_unchanged(image)
    other = image_at(tmp_path / "other.raw")
    other.replace(path)
    with pytest.raises(ImageChanged, match="the file itself"):
        require_unchanged(image)
    image = look_at(path, "raw")
    with path.open("r+b") as file:
        file.truncate(3 * MIB)
    with pytest.raises(ImageChanged, match="its size"):
        require_unchanged(image)
    path.unlink()
    with pytest.raises(ImageChanged):
        require_unchanged(image)


def test_a_log_cut_short_names_what_was_put(tmp_path: Path) -> None:
    refs = [
        SegmentRef(
            disk=DiskId("vda"),
            id=SegmentId(f"{number:032x}"),
            epoch=1,
            stored_bytes=1,
            data_bytes=1,
            hash="0" * 64,
        )
        for number in range(3)
    ]
    path = tmp_path / "refs.log"
    log = RefsLog(path)
    for ref in refs:
        log.add(ref)
    whole = log.size_bytes
    log.close()
    with path.open("r+b") as file:
        file.truncate(whole - 10)
    log = RefsLog(path)
    assert log.after(0) == refs[:2]
    log.cut(0)
    assert log.after(0) == []
    log.close()


def test_errors_are_told_in_sentences(tmp_path: Path) -> None:
    with pytest.raises(SecondsiteError) as caught:
        look_at(tmp_path / "no.raw", "raw")
    assert (
        caught.value.sentences()[0]
        == f"The image {tmp_path}/no.raw cannot be adopted: there is no such file."
    )


@pytest.mark.parametrize("wrong", ["machine", "id", "twice", "none", "size", "key", "disk"])
def test_terms_are_parsed_strictly(wrong: str) -> None:
    machine, key = MachineId("6f9619ff-8b86-d011-b42d-00cf4fc964ff"), KeyId("0" * 32)
    disk = DiskState(id=DiskId("vda"), size_bytes=MIB, key_id=key)
    terms = AdoptionTerms(machine=machine, id="1" * 32, disks=(disk,))
    wire.check_terms(terms, machine, peer="a")
    changes: dict[str, dict[str, object]] = {
        "machine": {"machine": MachineId("7d3c2a52-6a50-4e6b-9d0f-0f6f7b1d2c11")},
        "id": {"id": "../x"},
        "twice": {"disks": (disk, disk)},
        "none": {"disks": ()},
        "size": {"disks": (msgspec.structs.replace(disk, size_bytes=-1),)},
        "key": {"disks": (msgspec.structs.replace(disk, key_id=KeyId("zz")),)},
        "disk": {"disks": (msgspec.structs.replace(disk, id=DiskId("../x")),)},
    }
    with pytest.raises(SecondsiteError):
        wire.check_terms(msgspec.structs.replace(terms, **changes[wrong]), machine, peer="a")
