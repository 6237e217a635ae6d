"""Both ends of ours against other people's: qemu-nbd, nbdkit, nbdcopy, nbdinfo, qemu-img, libnbd."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from secondsite.base.units import KIB, MIB
from secondsite.model.extents import Extents
from secondsite.nbd import wire
from secondsite.nbd.client import NbdClient, exports_unix
from secondsite.nbd.errors import (
    NbdConnectionLost,
    NbdError,
    NbdNotOffered,
    NbdPeerBroken,
    NbdRequestRefused,
    NbdTryAgain,
)
from secondsite.nbd.exports import Export, FileExport, MemoryExport
from secondsite.nbd.server import NbdServer, serve
from support.nbd_peers import nbdkit, qemu_nbd, running, uri

pytestmark = pytest.mark.oracle

# not a multiple of any block size but 512: ends inside a request, a chunk and a 4 KiB sub-block
SIZE_BYTES = 24 * MIB + 512
DATA_RANGES = [(0, 64 * KIB), (1 * MIB, 5 * MIB + 4 * KIB), (20 * MIB, SIZE_BYTES)]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A sparse raw image with random data in DATA_RANGES."""
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.truncate(SIZE_BYTES)
        for start, end in DATA_RANGES:
            file.seek(start)
            file.write(random.Random(start).randbytes(end - start))
    return path


@pytest.fixture
def socket_path(tmp_path: Path) -> Path:
    return tmp_path / "s"


def run(*command: str | Path) -> str:
    done = subprocess.run([str(c) for c in command], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def digest(client: NbdClient, length: int) -> str:
    whole = hashlib.sha256()
    for offset, data in client.read_many(Extents.whole(client.size_bytes).pieces(length)):
        assert offset % length == 0
        whole.update(data)
    return whole.hexdigest()


# --- our client, their servers ---


class TestClientAgainstQemuNbd:
    @pytest.mark.parametrize("length", [512, 4 * KIB, 100 * KIB - 512, MIB])
    def test_reads_the_image_byte_for_byte(self, image: Path, socket_path: Path, length: int) -> None:
        with (
            qemu_nbd(image, socket_path, name="disk"),
            NbdClient.connect_unix(str(socket_path), "disk") as client,
        ):
            assert client.size_bytes == SIZE_BYTES
            assert digest(client, length) == hashlib.sha256(image.read_bytes()).hexdigest()

    def test_reads_at_random_places(self, image: Path, socket_path: Path) -> None:
        content = image.read_bytes()
        chance = random.Random(5)
        ranges = []
        for _ in range(300):
            length = chance.choice([1, 511, 4096, 70_000, MIB])
            ranges.append((chance.randrange(SIZE_BYTES - length), length))
        with qemu_nbd(image, socket_path), NbdClient.connect_unix(str(socket_path)) as client:
            count = 0
            for (offset, length), (at, data) in zip(ranges, client.read_many(ranges), strict=True):
                assert at == offset
                assert data == content[offset : offset + length]
                count += 1
            assert count == len(ranges)

    def test_allocation_is_the_files(self, image: Path, socket_path: Path) -> None:
        contexts = (wire.BASE_ALLOCATION,)
        with qemu_nbd(image, socket_path), NbdClient.connect_unix(str(socket_path), "", contexts) as client:
            data = client.map(wire.BASE_ALLOCATION).lacking(wire.STATE_ZERO)
            assert data == Extents.of(DATA_RANGES)
            extents = client.extents(wire.BASE_ALLOCATION, 512 * KIB, 2 * MIB)
            assert extents == [(512 * KIB, 3), (1536 * KIB, 0)]

    def test_dirty_bitmap_and_allocation_together(self, tmp_path: Path, socket_path: Path) -> None:
        image = tmp_path / "disk.qcow2"
        run("qemu-img", "create", "-q", "-f", "qcow2", image, "8M")
        run("qemu-io", "-c", "write -P 7 0 1M", image)
        run("qemu-img", "bitmap", "--add", image, "since")
        run("qemu-io", "-c", "write -P 8 128k 64k", "-c", "write -P 9 4M 4k", image)
        dirty = f"{wire.DIRTY_BITMAP_PREFIX}since"
        with (
            qemu_nbd(image, socket_path, image_format="qcow2", bitmap="since"),
            NbdClient.connect_unix(str(socket_path), "", (dirty, wire.BASE_ALLOCATION)) as client,
        ):
            changed = client.map(dirty).having(wire.DIRTY)
            assert changed == Extents.of([(128 * KIB, 192 * KIB), (4 * MIB, 4 * MIB + 64 * KIB)])
            assert client.map(wire.BASE_ALLOCATION).lacking(wire.STATE_ZERO).total_bytes == MIB + 4 * KIB
            assert bytes(client.read(4 * MIB, 4096)) == b"\x09" * 4096

    def test_what_it_does_not_have_is_named(self, image: Path, socket_path: Path) -> None:
        with qemu_nbd(image, socket_path, name="disk"):
            with pytest.raises(NbdNotOffered, match="the export 'other'"):
                NbdClient.connect_unix(str(socket_path), "other")
            with pytest.raises(NbdNotOffered, match="qemu:dirty-bitmap:none"):
                NbdClient.connect_unix(str(socket_path), "disk", ("qemu:dirty-bitmap:none",))
            assert exports_unix(str(socket_path)) == ["disk"]

    def test_writes_zeroes_and_flushes(self, tmp_path: Path, socket_path: Path) -> None:
        image = tmp_path / "new.raw"
        image.write_bytes(b"\xff" * 3 * MIB)
        data = os.urandom(MIB + 512)
        with (
            qemu_nbd(image, socket_path, writable=True),
            NbdClient.connect_unix(str(socket_path)) as client,
        ):
            client.write(512, data)
            client.write(2 * MIB, data[:4096], durable=True)
            client.zero(2 * MIB + 64 * KIB, 64 * KIB)
            client.trim(2 * MIB + 512 * KIB, 64 * KIB)
            client.flush()
            assert client.read(512, len(data)) == data
        content = image.read_bytes()
        assert content[512 : 512 + len(data)] == data
        assert content[2 * MIB : 2 * MIB + 4096] == data[:4096]
        assert content[2 * MIB + 64 * KIB : 2 * MIB + 128 * KIB] == bytes(64 * KIB)

    def test_requests_it_would_refuse_never_leave(self, image: Path, socket_path: Path) -> None:
        with qemu_nbd(image, socket_path), NbdClient.connect_unix(str(socket_path)) as client:
            with pytest.raises(NbdRequestRefused, match="the disk ends at"):
                client.read(SIZE_BYTES - 512, 1024)
            with pytest.raises(NbdRequestRefused, match=r"does not offer|read-only"):
                client.write(0, b"x" * 512)
            assert client.read(0, 512) == image.read_bytes()[:512]


class TestClientAgainstNbdkit:
    def test_data_plugin(self, tmp_path: Path) -> None:
        socket_path = tmp_path / "s"
        with (
            nbdkit(socket_path, "data", "( 0x55*4096 )*1000 @8388608 0xAA", "size=9M"),
            NbdClient.connect_unix(str(socket_path), "", (wire.BASE_ALLOCATION,)) as client,
        ):
            assert client.read(4096 * 999, 8192) == b"\x55" * 4096 + bytes(4096)
            assert client.read(8 * MIB, 2) == b"\xaa\x00"
            assert client.map(wire.BASE_ALLOCATION).lacking(wire.STATE_ZERO).total_bytes < 5 * MIB

    def test_holes_in_reads(self, image: Path, socket_path: Path) -> None:
        """nbdkit answers a read over a hole with a hole chunk when the plugin says so."""
        with (
            nbdkit(socket_path, "--filter=cow", "file", str(image)),
            NbdClient.connect_unix(str(socket_path)) as client,
        ):
            assert digest(client, MIB) == hashlib.sha256(image.read_bytes()).hexdigest()

    def test_without_structured_replies(self, image: Path, socket_path: Path) -> None:
        with nbdkit(socket_path, "--no-sr", "file", str(image)):
            with NbdClient.connect_unix(str(socket_path)) as client:
                assert digest(client, 100 * KIB) == hashlib.sha256(image.read_bytes()).hexdigest()
            with pytest.raises(NbdNotOffered, match="no structured replies"):
                NbdClient.connect_unix(str(socket_path), "", (wire.BASE_ALLOCATION,))

    def test_block_sizes_are_kept(self, image: Path, socket_path: Path) -> None:
        """The policy filter refuses what breaks its sizes; a read in our pieces never does."""
        policy = ["blocksize-error-policy=error", "blocksize-minimum=512", "blocksize-maximum=65536"]
        with (
            nbdkit(socket_path, "--filter=blocksize-policy", "file", str(image), *policy),
            NbdClient.connect_unix(str(socket_path)) as client,
        ):
            assert (client.block_sizes.minimum, client.block_sizes.maximum) == (512, 65536)
            assert digest(client, MIB) == hashlib.sha256(image.read_bytes()).hexdigest()
            with pytest.raises(NbdRequestRefused, match="multiples of 512"):
                client.read(100, 512)

    def test_errors_leave_the_connection_usable(self, image: Path, socket_path: Path, tmp_path: Path) -> None:
        """The error filter fails every read while a file exists; some reads are in flight then."""
        trigger = tmp_path / "fail"
        error = ["error-pread=EIO", "error-pread-rate=100%", f"error-file={trigger}"]
        with (
            nbdkit(socket_path, "--filter=error", "file", str(image), *error),
            NbdClient.connect_unix(str(socket_path)) as client,
        ):
            good = digest(client, 64 * KIB)
            trigger.touch()
            # which of the reads in flight fails first is nbdkit's choice: its threads take them in any order
            first = "|".join(str(n * 64 * KIB) for n in range(wire.READ_DEPTH))
            with pytest.raises(NbdTryAgain, match=rf"failed to read 65536 bytes at ({first})\b"):
                digest(client, 64 * KIB)
            trigger.unlink()
            assert not client.closed
            assert digest(client, 64 * KIB) == good == hashlib.sha256(image.read_bytes()).hexdigest()

    def test_enospc_is_final(self, socket_path: Path) -> None:
        error = ["error-pwrite=ENOSPC", "error-pwrite-rate=100%"]
        with (
            nbdkit(socket_path, "--filter=error", "memory", "1M", *error),
            NbdClient.connect_unix(str(socket_path)) as client,
        ):
            with pytest.raises(NbdRequestRefused, match="write 512 bytes at 0"):
                client.write(0, bytes(512))
            assert client.read(0, 512) == bytes(512)

    def test_server_killed_between_reads(self, image: Path, socket_path: Path) -> None:
        with (
            nbdkit(socket_path, "--filter=delay", "file", str(image), "rdelay=50ms") as process,
            NbdClient.connect_unix(str(socket_path)) as client,
        ):
            reading = client.read_many(Extents.whole(SIZE_BYTES).pieces(64 * KIB))
            for _ in range(3):
                next(reading)
            process.kill()
            process.wait()
            with pytest.raises(NbdConnectionLost) as caught:
                list(reading)
            assert caught.value.retryable
            assert client.closed
            with pytest.raises(NbdConnectionLost):
                client.read(0, 512)

    def test_a_silent_server_is_given_up(self, image: Path, socket_path: Path) -> None:
        with (
            nbdkit(socket_path, "--filter=delay", "file", str(image), "rdelay=60"),
            NbdClient.connect_unix(str(socket_path), timeout_seconds=0.2) as client,
            pytest.raises(NbdConnectionLost, match=r"silent for 0\.2 s"),
        ):
            client.read(0, 512)

    def test_tls_only_is_refused_with_the_reason(self, socket_path: Path, tmp_path: Path) -> None:
        (tmp_path / "psk").write_text("user:0123456789abcdef0123456789abcdef\n")
        with (
            nbdkit(socket_path, "--tls=require", f"--tls-psk={tmp_path / 'psk'}", "memory", "1M"),
            pytest.raises(NbdNotOffered, match="TLS"),
        ):
            NbdClient.connect_unix(str(socket_path))

    def test_an_oldstyle_server_is_refused(self, socket_path: Path) -> None:
        with (
            nbdkit(socket_path, "--oldstyle", "memory", "1M"),
            pytest.raises(NbdPeerBroken, match="greeting"),
        ):
            NbdClient.connect_unix(str(socket_path))


# --- our server, their clients ---


@pytest.fixture
def server(image: Path, socket_path: Path) -> Iterator[NbdServer]:
    exports: dict[str, Export] = {
        "disk": FileExport(str(image)),
        "scratch": MemoryExport(bytearray(4 * MIB)),
        "empty": MemoryExport(bytearray()),
    }
    with serve(exports, str(socket_path), writable=["scratch"]) as started:
        yield started


@pytest.mark.usefixtures("server")
class TestServerAgainstTools:
    def test_qemu_img_finds_it_equal_and_converts_it(
        self, image: Path, socket_path: Path, tmp_path: Path
    ) -> None:
        run("qemu-img", "compare", "-f", "raw", "-F", "raw", uri(socket_path, "disk"), image)
        copy = tmp_path / "copy.qcow2"
        run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", uri(socket_path, "disk"), copy)
        run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", image, copy)

    def test_qemu_img_sees_the_same_map(self, image: Path, socket_path: Path) -> None:
        def zeroes(target: str | Path) -> list[tuple[int, int]]:
            found = json.loads(run("qemu-img", "map", "--output=json", "-f", "raw", target))
            return list(Extents.of((e["start"], e["start"] + e["length"]) for e in found if e["zero"]))

        assert zeroes(uri(socket_path, "disk")) == zeroes(image)

    def test_nbdcopy_copies_it(self, image: Path, socket_path: Path, tmp_path: Path) -> None:
        copy = tmp_path / "copy.raw"
        run("nbdcopy", uri(socket_path, "disk"), copy)
        assert copy.read_bytes() == image.read_bytes()

    def test_nbdcopy_writes_to_it(self, socket_path: Path, tmp_path: Path) -> None:
        source = tmp_path / "source.raw"
        source.write_bytes(os.urandom(2 * MIB) + bytes(2 * MIB))
        run("nbdcopy", "--flush", source, uri(socket_path, "scratch"))
        run("qemu-img", "compare", "-f", "raw", "-F", "raw", uri(socket_path, "scratch"), source)

    def test_nbdinfo_lists_it(self, socket_path: Path) -> None:
        listed = json.loads(run("nbdinfo", "--json", "--list", uri(socket_path)))
        exports = {e["export-name"]: e for e in listed["exports"]}
        assert set(exports) == {"disk", "scratch", "empty"}
        assert exports["disk"]["export-size"] == SIZE_BYTES
        assert exports["disk"]["is_read_only"]
        assert exports["disk"]["can_multi_conn"]
        assert exports["disk"]["contexts"] == [wire.BASE_ALLOCATION]
        assert not exports["scratch"]["is_read_only"]
        assert exports["scratch"]["can_fua"]
        assert exports["empty"]["export-size"] == 0

    def test_qemu_io_writes_reads_zeroes_and_discards(self, socket_path: Path) -> None:
        commands = [
            "write -P 5 4096 65536",
            "read -P 5 4096 65536",
            "write -f -P 6 1M 2M",
            "read -P 6 1M 2M",
            "write -z 8192 4096",
            "read -P 0 8192 4096",
            "write -z -u 2M 64k",
            "read -P 0 2M 64k",
            "discard 0 4096",
            "flush",
        ]
        arguments = [part for command in commands for part in ("-c", command)]
        output = run("qemu-io", "-f", "raw", *arguments, uri(socket_path, "scratch"))
        assert "failed" not in output
        assert "error" not in output

    def test_a_read_only_export_cannot_be_written(self, image: Path, socket_path: Path) -> None:
        before = image.read_bytes()
        done = subprocess.run(
            ["qemu-io", "-f", "raw", "-c", "write -P 1 0 4096", uri(socket_path, "disk")],
            check=False,
            capture_output=True,
            timeout=60,
        )
        assert done.returncode != 0
        assert image.read_bytes() == before

    def test_an_overlay_over_it_works(self, image: Path, socket_path: Path, tmp_path: Path) -> None:
        """What a recovered machine does: a qcow2 overlay whose backing file is the export."""
        overlay = tmp_path / "overlay.qcow2"
        run("qemu-img", "create", "-q", "-f", "qcow2", "-b", uri(socket_path, "disk"), "-F", "raw", overlay)
        run("qemu-io", "-c", "write -P 3 2M 64k", overlay)
        expected = tmp_path / "expected.raw"
        content = bytearray(image.read_bytes())
        content[2 * MIB : 2 * MIB + 64 * KIB] = b"\x03" * 64 * KIB
        expected.write_bytes(content)
        run("qemu-img", "compare", "-F", "raw", overlay, expected)

    def test_libnbd_in_every_way_it_can_ask(self, image: Path, socket_path: Path) -> None:
        """With and without structured replies, block sizes and a look before opening."""
        script = Path(__file__).with_name("libnbd_reader.py")
        output = json.loads(run("/usr/bin/python3", script, socket_path, "disk", image))
        assert output["modes"] == 8
        assert output["mismatches"] == 0
        assert output["past_the_end"] == "EINVAL"
        assert output["df_too_long"] == "EOVERFLOW"
        assert output["unknown_export"] == "refused"


class TestBothEndsOfOurs:
    def test_over_tcp(self, image: Path) -> None:
        with NbdServer({"disk": FileExport(str(image))}) as server:
            port = server.listen_tcp()
            with NbdClient.connect_tcp("127.0.0.1", port, "disk", (wire.BASE_ALLOCATION,)) as client:
                assert digest(client, MIB) == hashlib.sha256(image.read_bytes()).hexdigest()
                assert client.map(wire.BASE_ALLOCATION).lacking(wire.STATE_ZERO) == Extents.of(DATA_RANGES)

    def test_the_socket_has_the_mode_it_was_given(self, socket_path: Path) -> None:
        with serve({}, str(socket_path), mode=0o660):
            assert socket_path.stat().st_mode & 0o777 == 0o660
        assert not socket_path.exists()


def test_map_joins_and_clips() -> None:
    """Neighbours with equal flags become one extent, also across requests."""
    from secondsite.nbd.client import _joined

    lengths = [np.array([10, 5]), np.array([5, 20])]
    flags = [np.array([0, 3], np.uint32), np.array([3, 0], np.uint32)]
    joined = _joined(100, lengths, flags)
    assert joined.starts.tolist() == [100, 110, 120]
    assert joined.ends.tolist() == [110, 120, 140]


def test_peers_that_end_early_are_reported(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="ended"), running(["false"], tmp_path / "none"):
        pass


def test_every_error_says_what_may_be_done_next() -> None:
    again = {cls for cls in (NbdConnectionLost, NbdTryAgain) if cls(address="", why="", request="").retryable}
    never = (NbdNotOffered, NbdPeerBroken, NbdRequestRefused)
    assert len(again) == 2
    assert not any(cls(address="", why="", request="", what="").retryable for cls in never)
    assert issubclass(NbdConnectionLost, NbdError)
