"""What one client cannot do to the others, and what an export's trouble does to a client."""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from secondsite.base.units import GIB, KIB, MIB
from secondsite.fabrics.errors import SourceGone
from secondsite.nbd import wire
from secondsite.nbd.client import NbdClient
from secondsite.nbd.errors import NbdConnectionLost, NbdError, NbdRequestRefused, NbdTryAgain
from secondsite.nbd.exports import Export, FileExport, MemoryExport
from secondsite.nbd.handshake import Negotiated
from secondsite.nbd.server import NbdServer, ServerLimits, serve


class Troubled:
    """An export whose reads and status do what the test says."""

    size_bytes = 4 * GIB

    def __init__(self) -> None:
        self.trouble: Callable[[int], None] = lambda offset: None
        self.found: Sequence[tuple[int, int, bool]] = []

    def read_into(self, offset: int, target: memoryview) -> None:
        self.trouble(offset)
        target[:] = bytes([offset // MIB % 256]) * len(target)

    def extents(self, offset: int, length: int) -> Sequence[tuple[int, int, bool]]:
        return self.found


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.005)


@pytest.fixture
def troubled() -> Troubled:
    return Troubled()


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "s")


@pytest.fixture
def server(path: str, troubled: Troubled) -> Iterator[NbdServer]:
    exports: dict[str, Export] = {"disk": MemoryExport(bytearray(MIB)), "troubled": troubled}
    limits = ServerLimits(connections_max=3, handshake_seconds_max=0.2)
    with serve(exports, path, limits=limits) as started:
        yield started


def test_clients_beyond_the_limit_are_turned_away(server: NbdServer, path: str) -> None:
    clients = [NbdClient.connect_unix(path, "disk") for _ in range(3)]
    with pytest.raises(NbdError):
        NbdClient.connect_unix(path, "disk")
    clients.pop().close()
    eventually(lambda: server.connections == 2)
    with NbdClient.connect_unix(path, "disk") as again:
        assert again.read(0, 512) == bytes(512)
    for client in clients:
        client.close()


def test_who_says_nothing_is_hung_up_on(server: NbdServer, path: str) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(path)
        eventually(lambda: server.connections == 1)
        eventually(lambda: server.connections == 0)


def test_a_client_may_be_idle_for_longer_than_a_handshake(server: NbdServer, path: str) -> None:
    with NbdClient.connect_unix(path, "disk") as client:
        time.sleep(0.5)  # what is tested is that nothing happens meanwhile
        assert client.read(0, 512) == bytes(512)


def test_a_client_that_reads_no_answers_delays_nobody(server: NbdServer, path: str) -> None:
    """It asks for 32 GiB and reads none of it; the server holds one buffer's worth and waits."""
    with NbdClient.connect_unix(path, "troubled") as greedy, NbdClient.connect_unix(path, "disk") as other:
        ask = wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, wire.CMD_READ, 1, 0, 32 * MIB)
        greedy._channel.send(ask * 1024)
        for _ in range(100):
            assert other.read(4096, 4096) == bytes(4096)


def test_storage_errors_reach_the_client_and_the_connection_stays(
    server: NbdServer, path: str, troubled: Troubled
) -> None:
    def fail(offset: int) -> None:
        if offset >= MIB:
            raise OSError(errno.ENOSPC if offset >= 2 * MIB else errno.EBADMSG, "storage says no")

    troubled.trouble = fail
    with NbdClient.connect_unix(path, "troubled") as client:
        with pytest.raises(NbdTryAgain):  # an error without a number in the protocol is an I/O error
            client.read(MIB, 4096)
        with pytest.raises(NbdRequestRefused):
            client.read(2 * MIB, 4096)
        with pytest.raises(NbdTryAgain):  # in the middle of an answer of four chunks
            client.read(512 * KIB, MIB)
        assert client.read(0, 4096) == bytes(4096)


def test_our_own_errors_are_io_errors(server: NbdServer, path: str, troubled: Troubled) -> None:
    def fail(offset: int) -> None:
        raise SourceGone(machine="shop", why="test")

    troubled.trouble = fail
    with NbdClient.connect_unix(path, "troubled") as client, pytest.raises(NbdTryAgain):
        client.read(0, 4096)


def test_a_bug_in_an_export_ends_one_connection_only(
    server: NbdServer, path: str, troubled: Troubled
) -> None:
    def bug(offset: int) -> None:
        raise ZeroDivisionError

    troubled.trouble = bug
    with NbdClient.connect_unix(path, "disk") as other:
        with NbdClient.connect_unix(path, "troubled") as client, pytest.raises(NbdConnectionLost):
            client.read(0, 4096)
        assert other.read(0, 512) == bytes(512)


def test_status_has_no_gaps_and_no_end_beyond_the_request(
    server: NbdServer, path: str, troubled: Troubled
) -> None:
    troubled.found = [(MIB, 2 * MIB, True), (2 * MIB, 3 * MIB, True), (5 * MIB, 6 * MIB, True)]
    with NbdClient.connect_unix(path, "troubled", (wire.BASE_ALLOCATION,)) as client:
        assert client.extents(wire.BASE_ALLOCATION, 0, 8 * MIB) == [
            (MIB, 0),
            (2 * MIB, 3),
            (2 * MIB, 0),
            (MIB, 3),
            (2 * MIB, 0),
        ]


def test_a_long_status_is_answered_in_parts(server: NbdServer, path: str, troubled: Troubled) -> None:
    """50,000 extents: more than one answer holds; the client asks until it has them all."""
    every = [(n * 8192, n * 8192 + 4096, True) for n in range(50_000)]

    def extents(offset: int, length: int) -> Sequence[tuple[int, int, bool]]:
        return [e for e in every if offset <= e[0] < offset + length]

    troubled.extents = extents  # type: ignore[method-assign]
    with NbdClient.connect_unix(path, "troubled", (wire.BASE_ALLOCATION,)) as client:
        zeroes = client.map(wire.BASE_ALLOCATION, 0, 50_000 * 8192).having(wire.STATE_ZERO)
        assert list(zeroes) == [(start, end) for start, end, _ in every]


def test_closing_ends_blocked_clients(path: str, troubled: Troubled) -> None:
    server = serve({"troubled": troubled}, path)
    client = NbdClient.connect_unix(path, "troubled")
    inside = threading.Event()
    leave = threading.Event()

    def block(offset: int) -> None:
        inside.set()
        leave.wait(20)

    troubled.trouble = block
    failures: list[BaseException] = []

    def read() -> None:
        try:
            client.read(0, 4096)
        except NbdConnectionLost as error:
            failures.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    inside.wait(20)
    closer = threading.Thread(target=server.close)
    closer.start()
    reader.join(20)
    assert failures, "the client is told at once, while the export is still busy"
    leave.set()
    closer.join(20)
    assert server.connections == 0
    assert not Path(path).exists()


def test_a_dead_servers_socket_is_replaced(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    with serve({"disk": MemoryExport(bytearray(512))}, path), NbdClient.connect_unix(path, "disk") as client:
        assert client.read(0, 512) == bytes(512)


def test_writing_must_be_allowed_by_name(path: str) -> None:
    exports = {"a": MemoryExport(bytearray(MIB)), "b": MemoryExport(bytearray(MIB))}
    with serve(exports, path, writable=["b"]):
        with NbdClient.connect_unix(path, "a") as client:
            assert client.flags & wire.READ_ONLY
            # past our own client's check, as another client might
            client._negotiated = _writable(client)
            with pytest.raises(NbdRequestRefused):
                client.write(0, b"\x01" * 4096)
            with pytest.raises(NbdRequestRefused):
                client.zero(0, 4096)
            assert client.read(0, 4096) == bytes(4096)
        with NbdClient.connect_unix(path, "b") as client:
            client.write(4096, b"\x02" * 4096, durable=True)
            client.zero(4096, 512)
            client.flush()
            assert client.read(4096, 1024) == bytes(512) + b"\x02" * 512


def _writable(client: NbdClient) -> Negotiated:
    from dataclasses import replace

    flags = wire.HAS_FLAGS | wire.SEND_FLUSH | wire.SEND_WRITE_ZEROES
    return replace(client._negotiated, flags=flags)


def test_a_file_that_shrank_is_an_error_not_zeroes(tmp_path: Path) -> None:
    image = tmp_path / "disk"
    image.write_bytes(bytes(8192))
    export = FileExport(str(image))
    with image.open("r+b") as file:
        file.truncate(4096)
    with pytest.raises(OSError, match="cut short"):
        export.read_into(0, memoryview(bytearray(8192)))
    export.close()


def test_a_file_is_punched_and_zeroed(tmp_path: Path) -> None:
    image = tmp_path / "disk"
    image.write_bytes(b"\x01" * MIB)
    export = FileExport(str(image), writable=True)
    export.zero(0, 512 * KIB, may_punch=True)
    export.zero(768 * KIB, 4096, may_punch=False)
    export.flush()
    content = image.read_bytes()
    assert content[: 512 * KIB] == bytes(512 * KIB)
    assert content[768 * KIB : 772 * KIB] == bytes(4096)
    assert content.count(b"\x01") == MIB - 512 * KIB - 4096
    assert list(export.extents(0, MIB)) == [(0, 512 * KIB, True), (512 * KIB, MIB, False)]
    export.close()
