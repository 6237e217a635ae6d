"""The NBD protocol as data: numbers, structures and the limits both our ends keep.

Everything is big-endian (https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md). The
handshake is *fixed newstyle* only::

    server: NBDMAGIC  IHAVEOPT  u16 flags                    (GREETING)
    client: u32 flags
    client: IHAVEOPT  u32 option  u32 length  data           (OPTION)       repeated
    server: OPTION_REPLY_MAGIC  u32 option  u32 type  u32 length  data      one or more for each
    ... until an option ends it: GO (or EXPORT_NAME) starts the transmission, ABORT closes

and in the transmission::

    client: REQUEST_MAGIC  u16 flags  u16 command  u64 cookie  u64 offset  u32 length  [data]
    server: SIMPLE_MAGIC  u32 error  u64 cookie  [data]                          (SIMPLE_REPLY)
       or:  CHUNK_MAGIC  u16 flags  u16 type  u64 cookie  u32 length  payload    (CHUNK), up to one with DONE
"""

from __future__ import annotations

import errno
import struct

from secondsite.base.units import KIB, MIB

# --- handshake ---
NBD_MAGIC = 0x4E42444D41474943  # "NBDMAGIC"
OPTION_MAGIC = 0x49484156454F5054  # "IHAVEOPT"
OPTION_REPLY_MAGIC = 0x3E889045565A9
GREETING = struct.Struct(">QQH")
CLIENT_FLAGS = struct.Struct(">I")
OPTION = struct.Struct(">QII")  # magic, option, length
OPTION_REPLY = struct.Struct(">QIII")  # magic, option, type, length
EXPORT_NAME_REPLY = struct.Struct(">QH")  # size, transmission flags; then 124 zeroes unless NO_ZEROES

FLAG_FIXED_NEWSTYLE = 1 << 0
FLAG_NO_ZEROES = 1 << 1

OPT_EXPORT_NAME = 1
OPT_ABORT = 2
OPT_LIST = 3
OPT_STARTTLS = 5
OPT_INFO = 6
OPT_GO = 7
OPT_STRUCTURED_REPLY = 8
OPT_LIST_META_CONTEXT = 9
OPT_SET_META_CONTEXT = 10

REP_ACK = 1
REP_SERVER = 2
REP_INFO = 3
REP_META_CONTEXT = 4
REP_ERROR = 1 << 31  # every error reply has this bit
REP_ERR_UNSUP = REP_ERROR | 1
REP_ERR_POLICY = REP_ERROR | 2
REP_ERR_INVALID = REP_ERROR | 3
REP_ERR_TLS_REQD = REP_ERROR | 5
REP_ERR_UNKNOWN = REP_ERROR | 6
REP_ERR_BLOCK_SIZE_REQD = REP_ERROR | 8
REP_ERR_TOO_BIG = REP_ERROR | 9

REP_ERROR_NAMES = {
    REP_ERR_UNSUP: "it does not know the option",
    REP_ERR_POLICY: "its policy forbids it",
    REP_ERR_INVALID: "it calls the option malformed",
    REP_ERR_TLS_REQD: "it demands TLS",
    REP_ERR_UNKNOWN: "it has no such export",
    REP_ERR_BLOCK_SIZE_REQD: "it demands block sizes",
    REP_ERR_TOO_BIG: "it calls the option too big",
}

INFO_EXPORT = 0
INFO_NAME = 1
INFO_DESCRIPTION = 2
INFO_BLOCK_SIZE = 3
INFO_EXPORT_REPLY = struct.Struct(">HQH")  # type, size, transmission flags
INFO_BLOCK_SIZE_REPLY = struct.Struct(">HIII")  # type, minimum, preferred, maximum payload

# --- transmission flags ---
HAS_FLAGS = 1 << 0
READ_ONLY = 1 << 1
SEND_FLUSH = 1 << 2
SEND_FUA = 1 << 3
SEND_TRIM = 1 << 5
SEND_WRITE_ZEROES = 1 << 6
SEND_DF = 1 << 7
CAN_MULTI_CONN = 1 << 8
SEND_FAST_ZERO = 1 << 11

# --- requests ---
REQUEST_MAGIC = 0x25609513
REQUEST = struct.Struct(">IHHQQI")  # magic, flags, command, cookie, offset, length
CMD_READ = 0
CMD_WRITE = 1
CMD_DISC = 2
CMD_FLUSH = 3
CMD_TRIM = 4
CMD_WRITE_ZEROES = 6
CMD_BLOCK_STATUS = 7
CMD_FLAG_FUA = 1 << 0
CMD_FLAG_NO_HOLE = 1 << 1
CMD_FLAG_DF = 1 << 2
CMD_FLAG_REQ_ONE = 1 << 3
CMD_FLAG_FAST_ZERO = 1 << 4

# --- replies ---
SIMPLE_MAGIC = 0x67446698
SIMPLE_REPLY = struct.Struct(">IIQ")  # magic, error, cookie
CHUNK_MAGIC = 0x668E33EF
CHUNK = struct.Struct(">IHHQI")  # magic, flags, type, cookie, length
CHUNK_FLAG_DONE = 1 << 0
CHUNK_NONE = 0
CHUNK_OFFSET_DATA = 1
CHUNK_OFFSET_HOLE = 2
CHUNK_BLOCK_STATUS = 5
CHUNK_IS_ERROR = 1 << 15
CHUNK_ERROR = CHUNK_IS_ERROR | 1
CHUNK_ERROR_OFFSET = CHUNK_IS_ERROR | 2
DATA_OFFSET = struct.Struct(">Q")
HOLE = struct.Struct(">QI")  # offset, length
ERROR_HEAD = struct.Struct(">IH")  # error, length of the message
CONTEXT_ID = struct.Struct(">I")
DESCRIPTOR = struct.Struct(">II")  # length, flags

# --- metadata contexts ---
BASE_ALLOCATION = "base:allocation"
STATE_HOLE = 1 << 0
STATE_ZERO = 1 << 1
DIRTY_BITMAP_PREFIX = "qemu:dirty-bitmap:"
DIRTY = 1 << 0  # in a qemu:dirty-bitmap context

# The protocol fixes these numbers; most equal Linux's errno.
ERRORS = {
    1: errno.EPERM,
    5: errno.EIO,
    12: errno.ENOMEM,
    22: errno.EINVAL,
    28: errno.ENOSPC,
    75: errno.EOVERFLOW,
    95: errno.ENOTSUP,
    108: errno.ESHUTDOWN,
}
ERROR_OF_ERRNO = {value: number for number, value in ERRORS.items()} | {
    errno.EROFS: 1,
    errno.EACCES: 1,
    errno.EDQUOT: 28,
    errno.EFBIG: 28,
}
# A server that reports these may do better next time; every other error is final for the request.
ERRORS_WORTH_A_RETRY = {errno.EIO, errno.ENOMEM, errno.ESHUTDOWN}

# --- limits, kept by both our ends ---
NAME_BYTES_MAX = 4096  # the protocol's limit for any string
OPTION_BYTES_MAX = 64 * KIB  # a longer option is no honest one: names and queries are 4 KiB each
OPTION_REPLIES_MAX = 4096  # exports or contexts of one server: a list beyond is no honest one
EXPORT_BYTES_MAX = (1 << 63) - 1  # the kernel's and numpy's limit
PAYLOAD_BYTES_MAX = 32 * MIB  # what peers accept without block-size information (protocol, "Block sizes")
# QEMU 7.2's backup export over a unix socket, on two busy cores: 2.7 to 3.4 GB/s with 16 requests of 256 KiB,
# 1.7 to 3.1 with 8, 1.8 to 2.7 with requests of 1 MiB, 1.6 to 2.0 with 32 of 64 KiB
REQUEST_BYTES = 256 * KIB
READ_DEPTH = 16
ZERO_BYTES_MAX = 128 * MIB  # of one trim or zero request: a server without sparse files writes them all
RANGE_BYTES_MAX = MIB  # the largest range of a pipelined read; bounds its buffers
# nbdkit sends at most 2^20 descriptors in a chunk, QEMU 2^17; either is 8 bytes
DESCRIPTORS_MAX = 1 << 20
BLOCK_STATUS_BYTES_MAX = CONTEXT_ID.size + DESCRIPTORS_MAX * DESCRIPTOR.size
# One request's length has 32 bits; a multiple of 64 KiB keeps every server's alignment
BLOCK_STATUS_SPAN_BYTES = (1 << 32) - 64 * KIB
