"""Run by the system's Python with libnbd's binding: reads an export in every mode, compares with a file.

Arguments: socket, export name, file. Prints one JSON object.
"""

from __future__ import annotations

import errno
import itertools
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

import nbd


def connect(socket_path: str, name: str, structured: bool, full_info: bool, go: bool) -> nbd.NBD:
    handle = nbd.NBD()
    handle.set_export_name(name)
    handle.set_request_structured_replies(structured)
    handle.set_full_info(full_info)
    if structured:
        handle.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    handle.set_opt_mode(True)
    handle.connect_unix(socket_path)
    if not go:
        handle.opt_info()
        handle.opt_list(lambda *_: 0)
    handle.opt_go()
    return handle


def failure(call: Callable[[], object]) -> str:
    try:
        call()
    except nbd.Error as error:
        return errno.errorcode.get(error.errnum, "refused") if error.errnum else "refused"
    return "no error"


def check(handle: nbd.NBD, content: bytes) -> int:
    mismatches = int(handle.get_size() != len(content))
    chance = random.Random(1)
    for _ in range(40):
        length = chance.choice([1, 512, 4096, 300_000, 2_000_000])
        offset = chance.randrange(len(content) - length)
        mismatches += bytes(handle.pread(length, offset)) != content[offset : offset + length]
    # many at once, answered into their own buffers
    pending = []
    for _ in range(64):
        offset = chance.randrange(len(content) - 4096)
        buffer = nbd.Buffer(4096)
        pending.append((offset, buffer, handle.aio_pread(buffer, offset)))
    while pending:
        left = []
        for offset, buffer, cookie in pending:
            if handle.aio_command_completed(cookie):
                mismatches += bytes(buffer.to_bytearray()) != content[offset : offset + 4096]
            else:
                left.append((offset, buffer, cookie))
        pending = left
        if pending:
            handle.poll(-1)
    return mismatches


def main() -> None:
    socket_path, name, path = sys.argv[1:]
    content = Path(path).read_bytes()
    mismatches = modes = 0
    for structured, full_info, go in itertools.product((False, True), repeat=3):
        handle = connect(socket_path, name, structured, full_info, go)
        mismatches += check(handle, content)
        handle.shutdown()
        modes += 1
    handle = connect(socket_path, name, True, True, True)
    handle.set_strict_mode(0)  # send what the library itself would refuse
    past = failure(lambda: handle.pread(4096, len(content) - 512))
    too_long = failure(lambda: handle.pread_structured(1 << 20, 0, lambda *_: 0, nbd.CMD_FLAG_DF))
    unknown = failure(lambda: connect(socket_path, "no such export", True, True, True))
    mismatches += check(handle, content)  # the refusals cost nothing
    print(
        json.dumps(
            {
                "modes": modes,
                "mismatches": mismatches,
                "past_the_end": past,
                "df_too_long": too_long,
                "unknown_export": "refused" if unknown != "no error" else unknown,
            }
        )
    )


main()
