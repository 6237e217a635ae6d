"""``secondsite key``: the recovery key of a vault, which opens every replica, and its rotation."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from secondsite.base.clock import SystemClock
from secondsite.base.errors import InvalidInput, Outcome, SecondsiteError
from secondsite.cli.common.gateways import LISTING, REACH, Listing, Reach, whoami
from secondsite.cli.common.output import print_json, print_table

if TYPE_CHECKING:
    from secondsite.gateway.control.client import GatewayClient
    from secondsite.gateway.messages.keys import FinishRotation, KeyStatus
    from secondsite.journal.keys import VaultKey

POLL_SECONDS = 0.5


class KeyFileExists(SecondsiteError):
    """Never overwritten."""

    code = "key.file-exists"
    outcome = Outcome.REFUSED
    happened = "The key was not made: {path} exists."
    cause = "A key was made there before; replicas may be sealed with it."
    action = "Choose another file name. Never delete a key while a replica sealed with it is kept."


class KeyOfAnotherVault(SecondsiteError):
    """The file is sound, but not the gateway's key."""

    code = "key.another-vault"
    outcome = Outcome.REFUSED
    happened = "{path} holds key {found}; the gateway seals with key {expected}."
    cause = "The file was exported from another vault, or before or after the key was rotated."
    action = "Find the file that belongs to key {expected}, before anything is protected."


class KeyNotRetired(SecondsiteError):
    """A file has no such retired key."""

    code = "key.not-retired"
    outcome = Outcome.NOT_FOUND
    happened = "{path} holds no retired key {key}; it holds {known}."
    cause = "The id is mistyped, it is the newest key of the file, or one of another vault."
    action = "`secondsite key show {path}` lists the keys of the file."


class RotationNotProved(SecondsiteError):
    """Rule 8: nothing is let go of before the new key is known to exist elsewhere."""

    code = "key.rotation-not-proved"
    outcome = Outcome.REFUSED
    happened = (
        "The rotation is not finished: that the new recovery key {key} is kept elsewhere is not proved."
    )
    cause = "If the gateways' copies were the only ones, their loss would cost every replica."
    action = "Copy the new key file off these machines and give the copy with --recovery-key-file."


def create(file: Path, /, *, listing: Listing = LISTING) -> None:
    """Make the recovery key of a new vault.

    Give the gateways a copy (vault_key in their configuration) and hold another one elsewhere: off these
    machines and outside every store. Without it no replica can be opened; whoever has it can open all.

    For example:

        secondsite key create /etc/secondsite/vault.key

    Parameters
    ----------
    file
        Where to write it (mode 0600). Must not exist.
    """
    from secondsite.journal.keys import VaultKey

    key = VaultKey.create()
    if not key.save(file):
        raise KeyFileExists(path=file)
    if listing.json:
        print_json({"file": str(file), "keyId": key.id})
    else:
        print(f"recovery key {key.id} is in {file}")
        print("copy it to a place off this machine and outside every store, then prove it from there:")
        print("  secondsite key prove COPY")


def renew(file: Path, new: Path, /, *, listing: Listing = LISTING) -> None:
    """Make the key that takes the place of a vault's key: the first step of a rotation.

    The new file holds the new key and, sealed under it, those before it: it opens all that was ever sealed.
    Nothing changes until the gateways get it, the receiving one first: put it in place of their vault_key and
    restart them. `secondsite key rotate` shows how far they are, and finishes it.

    For example:

        secondsite key renew /media/safe/vault.key /media/safe/vault-2.key

    Parameters
    ----------
    file
        The vault's key file as it is.
    new
        Where to write the new one (mode 0600). Must not exist.
    """
    from secondsite.gateway.target.views import load_key

    old = load_key(file)
    key = old.renew(SystemClock().utc().isoformat(timespec="seconds"))
    if not key.save(new):
        raise KeyFileExists(path=new)
    if listing.json:
        print_json({"file": str(new), "keyId": key.id, "generation": key.generation, "retired": old.id})
    else:
        print(
            f"recovery key {key.id}, generation {key.generation}, is in {new}; it opens what {old.id} sealed"
        )
        print("put it in place of the vault_key of every gateway, the receiving one first, and restart them:")
        print("  secondsite key rotate --recovery-key-file COPY")


def show(
    file: Path | None = None,
    /,
    *,
    store: str | None = None,
    store_credentials: Path | None = None,
    reach: Reach = REACH,
    listing: Listing = LISTING,
) -> None:
    """Show which keys a file holds, a gateway uses or a store needs; never a key itself.

    With a file: its keys; a damaged file is told. With --store: the keys its objects name, which needs no key
    at all (what to look for when one is lost), and whether the file opens them. With neither: the gateway's
    key, where its rotation stands, and what still needs an older key.

    For example:

        secondsite key show vault.key

        secondsite key show --store file:///srv/replicas

        secondsite key show vault.key --store file:///srv/replicas

        secondsite key show --gateway /run/secondsite/gateway.sock

    Parameters
    ----------
    file
        A key file.
    store
        URL of a store, e.g. file:///srv/replicas.
    store_credentials
        A file with the credentials of an object store.
    """
    from secondsite.gateway.target.views import load_key

    key = load_key(file) if file is not None else None
    if store is not None:
        _show_store(store, store_credentials, key, listing)
    elif key is not None and file is not None:
        _show_file(file, key, listing)
    else:
        with reach.open() as client:
            _show_status(client.key(), listing)


def _show_file(file: Path, key: VaultKey, listing: Listing) -> None:
    retired = [
        {"keyId": old.id, "generation": old.generation, "retiredAt": old.retired_at} for old in key.retired
    ]
    if listing.json:
        content = {"file": str(file), "keyId": key.id, "generation": key.generation, "retired": retired}
        print_json(content)
        return
    print(f"{file} is sound and holds recovery key {key.id}")
    for old in key.retired:
        print(
            f"  it opens what was sealed with {old.id} (generation {old.generation}, until {old.retired_at})"
        )


def _show_store(url: str, credentials: Path | None, key: VaultKey | None, listing: Listing) -> None:
    from secondsite.journal.chain import machines
    from secondsite.journal.key_rotation import sealers
    from secondsite.journal.stores import open_store

    looked = 0

    def on_object() -> None:
        nonlocal looked
        looked += 1
        if looked % 1000 == 0 and sys.stderr.isatty():
            print(f"\r{looked} objects", end="", file=sys.stderr)

    opened = open_store(url, create=False, credentials=credentials)
    rows = []
    try:
        for machine in machines(opened):
            for identity, use in sealers(opened, machine, on_object).items():
                opens = None if key is None else key.opens(identity)
                rows.append((identity, machine, use.records, use.wrapped, use.state, opens))
    finally:
        opened.close()
    if listing.json:
        names = ("keyId", "machine", "records", "wrappedKeys", "state", "opens")
        print_json([dict(zip(names, row, strict=True)) for row in rows])
        return
    words = {None: "", True: "yes", False: "NO"}
    print_table(
        ["KEY", "MACHINE", "RECORDS>", "DATA KEYS>", "STATE", "" if key is None else "THIS FILE OPENS IT"],
        [(i, m, records, wrapped, "yes" if s else "", words[o]) for i, m, records, wrapped, s, o in rows],
        empty=f"nothing in {url} names a key",
    )


def _show_status(status: KeyStatus, listing: Listing) -> None:
    if listing.json:
        print_json(status)
        return
    for line in _told(status):
        print(line)
    if status.retired:
        print_table(
            ["RETIRED KEY", "GENERATION>", "RETIRED", "POINTS>", "DATA KEYS>", "COPIES>", "MACHINES"],
            [
                (
                    r.key_id,
                    r.generation,
                    r.retired_at,
                    r.points,
                    r.wrapped_keys,
                    r.copies,
                    ", ".join(r.machines),
                )
                for r in status.retired
            ],
            empty="",
        )


def _told(status: KeyStatus) -> list[str]:
    from secondsite.gateway.messages.keys import KeyPhase as P

    count = f"{status.machines_done} of {status.machines_total} machines"
    now = f" ({status.machine})" if status.machine else ""
    steps = {
        P.NEVER: "it was never rotated",
        P.NO_STORE: "this gateway has no store: the receiving gateway tells how far a rotation is",
        P.SEALING: f"rotation, step 1 of 3: everything is sealed with it, {count}{now}",
        P.PROOF: "rotation, step 2 of 3: prove that you hold it, with --recovery-key-file COPY",
        P.DELETING: f"rotation, step 3 of 3: what only older keys open is deleted, {count}{now}",
        P.FINISHED: "its rotation is finished",
    }
    lines = [f"vault key {status.key_id}, generation {status.generation}: {steps[status.phase]}"]
    lines += [f"  waits: {reason}" for reason in status.waits]
    if status.error:
        lines.append(f"  trouble, tried again: {status.error}")
    return lines


def rotate(
    *,
    recovery_key_file: Path | None = None,
    data: str | None = None,
    disk: Annotated[list[str] | None, Parameter(negative="")] = None,
    wait: Annotated[bool, Parameter(negative="--no-wait")] = True,
    reach: Reach = REACH,
    listing: Listing = LISTING,
) -> None:
    """Carry a rotation of the vault key to its end at the gateway that has the store; or renew data keys.

    It begins when that gateway is started with the file `secondsite key renew` made. 1: every data key and
    everything small is sealed with the new key; no data is rewritten and replication goes on. 2: you prove,
    from a copy, that the new key is kept off the gateways. 3: what only the old key opens is
    deleted. The command may be ended and typed again at any time; the gateway goes on by itself, also after
    a restart.

    With --data MACHINE, at the gateway that protects it: what is captured from now on is sealed with new data
    keys. What is stored keeps its keys until the retention merges or drops it; merges use the newest.

    For example:

        secondsite key rotate --recovery-key-file /media/safe/vault-2.key

        secondsite key rotate --no-wait --json

        secondsite key rotate --data shop

        secondsite key rotate --data shop --disk vda

    Parameters
    ----------
    recovery_key_file
        A copy of the new key file, held outside every store and not the gateway's own.
    data
        Name or id of a protected machine whose data keys are to be renewed.
    disk
        With --data, only this disk; may be given several times.
    wait
        Wait until everything is sealed and, with a copy, until it is finished; or do what can be done now.
    """
    from secondsite.gateway.keys.rotation import NoRotation
    from secondsite.gateway.messages.keys import KeyPhase as P
    from secondsite.gateway.target.views import load_key

    if data is not None:
        _renew_data_keys(data, disk, reach, listing)
        return
    if disk:
        raise InvalidInput(what="--disk", why="it belongs to --data")
    key = load_key(recovery_key_file) if recovery_key_file is not None else None
    with reach.open() as client:
        status = client.key()
        if status.phase in (P.NEVER, P.NO_STORE):
            why = "the first of its vault" if status.phase is P.NEVER else "and has no store"
            raise NoRotation(name=client.status().name, key=status.key_id, why=why)
        if key is not None and key.id != status.key_id:
            raise KeyOfAnotherVault(path=recovery_key_file, found=key.id, expected=status.key_id)
        telling = _Telling(quiet=listing.json)
        telling.say(status)
        while wait and (status.phase is P.SEALING or (status.phase is P.PROOF and status.waits)):
            status = telling.next(client)
        if status.phase in (P.SEALING, P.PROOF) and key is not None and recovery_key_file is not None:
            status = client.finish_rotation(_proof(client, key, recovery_key_file))
        elif status.phase is P.PROOF:
            raise RotationNotProved(key=status.key_id)
        while wait and status.phase is P.DELETING:
            status = telling.next(client)
    _show_status(status, listing)


def _renew_data_keys(machine: str, disks: list[str] | None, reach: Reach, listing: Listing) -> None:
    from secondsite.gateway.messages.keys import RenewDataKeys
    from secondsite.model.ids import disk_id

    wanted = tuple(disk_id(name) for name in disks) if disks else None
    with reach.open() as client:
        made = client.renew_data_keys(machine, RenewDataKeys(disks=wanted))
    if listing.json:
        print_json(made)
        return
    for disk, key in made.keys.items():
        print(f"disk {disk} of {made.name} is sealed with data key {key} from now on")


class _Telling:
    """Says what is done, each thing once, on standard error, while the gateway works."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._said: list[str] = []
        self._clock, self._never = SystemClock(), threading.Event()

    def next(self, client: GatewayClient) -> KeyStatus:
        """The status a moment later."""
        self._clock.wait(self._never, POLL_SECONDS)
        status = client.key()
        self.say(status)
        return status

    def say(self, status: KeyStatus) -> None:
        """What is new of it."""
        lines = _told(status)
        if lines != self._said and not self._quiet:
            print("\n".join(lines), file=sys.stderr)
        self._said = lines


def _proof(client: GatewayClient, key: VaultKey, file: Path) -> FinishRotation:
    from secondsite.gateway.common.proofs import host_id
    from secondsite.gateway.messages.gateway import FileIdentity
    from secondsite.gateway.messages.keys import FinishRotation

    status = file.stat()
    question = client.challenge()
    return FinishRotation(
        nonce=question.nonce,
        proof=key.prove(bytes.fromhex(question.nonce)).hex(),
        key_file=FileIdentity(
            path=str(file.resolve()), device=status.st_dev, inode=status.st_ino, host=host_id()
        ),
    )


def retired(file: Path, key_id: str, out: Path, /, *, listing: Listing = LISTING) -> None:
    """Write the key file of before a rotation again, from a newer one.

    For a copy of a store from before the rotation that a newer key refuses, because somebody who had stolen
    the old key could have made it. Only do that with a copy you know.

    For example:

        secondsite key retired vault-2.key 8bb03524f8ff8c52d4fc5bb80f2f0a29 old.key

    Parameters
    ----------
    file
        A key file of a later generation.
    key_id
        The retired key, as `secondsite key show` lists it.
    out
        Where to write it (mode 0600). Must not exist.
    """
    from secondsite.gateway.target.views import load_key

    key = load_key(file)
    old = key.as_of(key_id)
    if old is None:
        known = ", ".join(k.id for k in key.retired) or "none"
        raise KeyNotRetired(path=file, key=key_id, known=known)
    if not old.save(out):
        raise KeyFileExists(path=out)
    if listing.json:
        print_json({"file": str(out), "keyId": old.id, "generation": old.generation})
    else:
        print(f"the retired key {old.id} is in {out}; delete the file when it has served")


def prove(file: Path, /, *, reach: Reach = REACH, listing: Listing = LISTING) -> None:
    """Prove that a copy of a gateway's recovery key is kept elsewhere. Nothing secret leaves the command.

    The gateway keeps that it was proved: a server's protections are taken by a gateway only then. A key that
    took another's place has to be proved anew.

    For example:

        secondsite key prove /media/stick/vault.key

    Parameters
    ----------
    file
        An exported copy, held outside every store: not the gateway's own file.
    """
    from secondsite.gateway.common.proofs import host_id
    from secondsite.gateway.messages.gateway import FileIdentity
    from secondsite.gateway.messages.items import KeyProofRequest
    from secondsite.gateway.target.views import load_key

    key, status = load_key(file), file.stat()
    with reach.open() as client:
        question = client.challenge()
        if question.key_id != key.id:
            raise KeyOfAnotherVault(path=file, found=key.id, expected=question.key_id)
        identity = FileIdentity(
            path=str(file.resolve()), device=status.st_dev, inode=status.st_ino, host=host_id()
        )
        proof = key.prove(bytes.fromhex(question.nonce)).hex()
        request = KeyProofRequest(nonce=question.nonce, proof=proof, key_file=identity, by=whoami())
        state = client.prove_recovery_key(request)
    if listing.json:
        print_json({"file": str(file), "keyId": key.id, "proved": state.proved, "provedAt": state.proved_at})
    else:
        print(f"{file} holds the gateway's recovery key {key.id}; the gateway keeps that it was proved")
