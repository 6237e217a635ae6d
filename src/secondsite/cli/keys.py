"""``secondsite key``: the recovery key of a vault, which opens every replica."""

from __future__ import annotations

import secrets
from pathlib import Path

from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.cli.common import LISTING, REACH, Listing, Reach
from secondsite.cli.output import print_json


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
    cause = "The file was exported from another vault."
    action = "Find the file that belongs to key {expected}, before anything is protected."


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


def show(file: Path, /, *, listing: Listing = LISTING) -> None:
    """Show which key a file holds, never the key itself. A damaged file is told.

    For example:

        secondsite key show vault.key

    Parameters
    ----------
    file
        A key file.
    """
    from secondsite.gateway.views import load_key

    key = load_key(file)
    if listing.json:
        print_json({"file": str(file), "keyId": key.id})
    else:
        print(f"{file} is sound and holds recovery key {key.id}")


def prove(file: Path, /, *, reach: Reach = REACH, listing: Listing = LISTING) -> None:
    """Check that a copy of the recovery key opens what a gateway seals. Nothing secret leaves the command.

    For example:

        secondsite key prove /media/stick/vault.key

    Parameters
    ----------
    file
        The copy to check.
    """
    from secondsite.gateway.views import load_key

    key = load_key(file)
    with reach.open() as client:
        question = client.challenge()
    if question.key_id != key.id:
        raise KeyOfAnotherVault(path=file, found=key.id, expected=question.key_id)
    # the key can answer; that its file was read back whole is what its checksum says
    key.prove(bytes.fromhex(question.nonce) + secrets.token_bytes(1))
    if listing.json:
        print_json({"file": str(file), "keyId": key.id, "proved": True})
    else:
        print(f"{file} holds the gateway's recovery key {key.id}")
