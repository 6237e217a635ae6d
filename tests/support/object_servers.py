"""Real object stores on this machine: SeaweedFS (S3) and Azurite (Azure Blob), on 127.0.0.1 and free ports.

Both come from `./run install`: `weed` with the Python packages, Azurite with its lock file from npm. They are
started once for a session that asks for them, with bounded waits, and ended by their own process number.
Neither may call home: their telemetry is switched off.
"""

from __future__ import annotations

import base64
import contextlib
import email.utils
import hashlib
import hmac
import http.client
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import botocore.session
import pytest

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 30.0
STARTS_MAX = 3  # another process may take a port between our look and the server's

ACCESS_KEY, SECRET_KEY = "secondsite-test", "secondsite-secret"
AZURE_ACCOUNT = "secondsitetest"
AZURE_KEY = base64.b64encode(b"a key of Azurite, known to everyone, opens nothing").decode()


Server = TypeVar("Server", bound="ObjectServer")


def weed_path() -> Path | None:
    """SeaweedFS's program: beside the interpreter, where its wheel puts it."""
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if beside.exists() else shutil.which("weed")
    return Path(found) if found else None


def azurite_path() -> Path | None:
    """Azurite's program, run by node."""
    installed = ROOT / ".tools/azurite/node_modules/azurite/dist/src/blob/main.js"
    return installed if installed.exists() and shutil.which("node") else None


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on at this moment."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


class ObjectServer:
    """One server process; `start` after `stop` serves the same objects on the same port."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = 0
        self._bucket = ""
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def bucket(self) -> str:
        """One for all: SeaweedFS takes seconds until a fresh one takes many writers."""
        self._bucket = self._bucket or self.make_bucket()
        return self._bucket

    def make_bucket(self) -> str:
        raise NotImplementedError

    def command(self) -> list[str]:
        raise NotImplementedError

    def choose_ports(self) -> None:
        raise NotImplementedError

    def answers(self) -> bool:
        """Whether it serves already."""
        raise NotImplementedError

    def start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        fixed = self.port != 0
        for _ in range(1 if fixed else STARTS_MAX):
            if not fixed:
                self.choose_ports()
            with (self.directory / "server.log").open("ab") as log:
                self._process = subprocess.Popen(
                    self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.directory
                )
            if self._wait(self.answers, START_SECONDS_MAX):
                return
            self.stop()
        tail = (self.directory / "server.log").read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{type(self).__name__} did not come up:\n{tail}")

    def stop(self, *, kill: bool = False) -> None:
        """End it; `kill`: without a chance to tidy up."""
        process, self._process = self._process, None
        if process is None:
            return
        if kill:
            process.kill()
        else:
            process.terminate()
        try:
            process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_SECONDS_MAX)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _wait(self, condition: Callable[[], bool], seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        never = threading.Event()
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                return False
            if condition():
                return True
            never.wait(0.1)
        return False

    def _get(self, path: str) -> int:
        """The status of a plain GET; 0 when nobody answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return 0
        finally:
            connection.close()


class SeaweedFS(ObjectServer):
    """The S3 server of SeaweedFS with its master, volumes and filer in one process."""

    def choose_ports(self) -> None:
        self._ports = free_ports(8)
        self.port = self._ports[0]

    def command(self) -> list[str]:
        weed = weed_path()
        assert weed is not None
        s3, s3_grpc, master, master_grpc, volume, volume_grpc, filer, filer_grpc = self._ports
        identity = {
            "name": "test",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "List", "Tagging", "Write"],
        }
        reader = {
            "name": "reader",
            "credentials": [{"accessKey": "reader", "secretKey": "reader-secret"}],
            "actions": ["Read", "List"],
        }
        config = self.directory / "s3.json"
        config.write_text(json.dumps({"identities": [identity, reader]}))
        data = self.directory / "data"
        data.mkdir(exist_ok=True)
        return [
            str(weed),
            "-logtostderr",
            "server",
            f"-dir={data}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-master.port={master}",
            f"-master.port.grpc={master_grpc}",
            "-master.telemetry=false",
            "-master.volumeSizeLimitMB=64",
            f"-volume.port={volume}",
            f"-volume.port.grpc={volume_grpc}",
            "-volume.max=200",  # with 20, new buckets got nothing but errors after some hundred megabytes
            "-volume.preStopSeconds=0",
            "-filer",
            f"-filer.port={filer}",
            f"-filer.port.grpc={filer_grpc}",
            f"-filer.localSocket={self.directory / 'filer.sock'}",
            "-s3",
            f"-s3.port={s3}",
            f"-s3.port.grpc={s3_grpc}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-s3.config={config}",
            "-s3.iam=false",
            "-s3.autoCreateBucket=false",
            f"-s3.localSocket={self.directory / 's3.sock'}",
        ]

    def answers(self) -> bool:
        return self._get("/") in {200, 403}

    def client(self) -> Any:
        """An administrator's client, for what secondsite leaves to its users: making buckets."""
        return botocore.session.get_session().create_client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
        )

    def make_bucket(self, *, locks: bool = False, versions: bool = False) -> str:
        """A fresh bucket; `locks`: with object lock, which brings versions."""
        name = f"test-{secrets.token_hex(6)}"
        client = self.client()
        client.create_bucket(Bucket=name, ObjectLockEnabledForBucket=locks)
        if versions and not locks:
            client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
        return name

    def environment(self) -> dict[str, str]:
        """What a user of it sets."""
        return {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
        }


class Azurite(ObjectServer):
    """Microsoft's emulator of Azure Blob Storage."""

    def choose_ports(self) -> None:
        self.port = free_ports(1)[0]

    def command(self) -> list[str]:
        program = azurite_path()
        assert program is not None
        return [
            "env",
            f"AZURITE_ACCOUNTS={AZURE_ACCOUNT}:{AZURE_KEY}",
            "node",
            str(program),
            "--blobHost",
            "127.0.0.1",
            "--blobPort",
            str(self.port),
            "--location",
            str(self.directory / "data"),
            "--silent",
            "--disableTelemetry",
            "--skipApiVersionCheck",
        ]

    def answers(self) -> bool:
        return self._get(f"/{AZURE_ACCOUNT}?comp=list") in {400, 403}

    def make_bucket(self) -> str:
        """A fresh container. obstore makes none, so this is the one request signed by hand."""
        name = f"test-{secrets.token_hex(6)}"
        path = f"/{AZURE_ACCOUNT}/{name}"
        headers = {"x-ms-date": email.utils.formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
        signed = "\n".join(f"{key}:{value}" for key, value in headers.items())
        text = "PUT" + "\n" * 12 + f"{signed}\n/{AZURE_ACCOUNT}{path}\nrestype:container"
        digest = hmac.digest(base64.b64decode(AZURE_KEY), text.encode(), hashlib.sha256)
        headers["Authorization"] = f"SharedKey {AZURE_ACCOUNT}:{base64.b64encode(digest).decode()}"
        headers["Content-Length"] = "0"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        with contextlib.closing(connection):
            connection.request("PUT", f"{path}?restype=container", headers=headers)
            answer = connection.getresponse()
            assert answer.status == 201, answer.read()
        return name

    def environment(self) -> dict[str, str]:
        """What a user of it sets."""
        return {
            "AZURE_STORAGE_ACCOUNT_NAME": AZURE_ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": AZURE_KEY,
            "AZURE_STORAGE_ENDPOINT": f"{self.endpoint}/{AZURE_ACCOUNT}",
            "AZURE_ALLOW_HTTP": "true",
        }


def need(program: Path | None, name: str) -> None:
    """Skip, loudly, only where the tool is really not there."""
    if program is None:
        pytest.skip(f"{name} IS NOT INSTALLED: run `./run install`; this backend is NOT tested")


@contextlib.contextmanager
def running(kind: type[Server], name: str, program: Path | None) -> Iterator[Server]:
    """A server for a whole session; its objects go with it."""
    need(program, name)
    # short: SeaweedFS makes unix sockets in it
    directory = Path(tempfile.mkdtemp(prefix="secondsite-", dir="/tmp"))
    server = kind(directory)
    try:
        server.start()
        yield server
    finally:
        server.stop(kill=True)  # SeaweedFS takes 15 s to stop by itself, and what it holds goes anyway
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """These variables, and no others of object stores, for as long as it lasts."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("AWS_", "AZURE_")):
                patch.delenv(name)
        for name, value in variables.items():
            patch.setenv(name, value)
        yield
