"""Proving through the server that a gateway's recovery key exists elsewhere; the key never comes this way."""

from __future__ import annotations

import msgspec

from secondsite.server.jobs.definitions import Definition, Done, Result, RetryAfter, Step
from secondsite.server.jobs.run import StepRun
from secondsite.server.operations.asking import Asked
from secondsite.server.operations.protect import KeyState
from secondsite.server.operations.tools import Tools, ask_fresh

PROVE_KEY = "recovery-key.prove"
PATH_PROOF = "/v1/recovery-key/proof"


class KeyFile(msgspec.Struct, frozen=True, kw_only=True):
    """Which file the proof was made with, so that a gateway's own copy proves nothing."""

    path: str
    device: int
    inode: int
    host: str = ""  # a keyed hash of the id of the machine it is on; "": not said


class ProveKey(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a gateway's question: HMAC of its nonce under the recovery key, both hexadecimal."""

    vault: str
    gateway: str  # its id
    gateway_name: str
    nonce: str
    proof: str
    key_file: KeyFile


def prove_key(tools: Tools) -> Definition[ProveKey]:
    """The job. A nonce counts once and for five minutes: tried again it needs a new proof."""

    def prove(run: StepRun[ProveKey]) -> Result:
        given = run.input
        body = {"nonce": given.nonce, "proof": given.proof, "keyFile": given.key_file}
        text = msgspec.json.encode(body).decode()
        asked = Asked(given.gateway, given.gateway_name, "POST", PATH_PROOF, text, seconds_max=60.0)
        answer = ask_fresh(tools, run, asked, KeyState)
        if isinstance(answer, RetryAfter):
            return answer
        run.log(f"recovery key {answer.key_id} of gateway {given.gateway_name} was proved")
        return Done(answer)

    return Definition(
        kind=PROVE_KEY,
        version=1,
        input=ProveKey,
        steps=(Step("prove", do=prove, tries=1),),
        title=lambda given: f"Prove the recovery key of gateway {given.gateway_name}",
        vault=lambda given: given.vault,
    )
