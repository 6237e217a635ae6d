"""Parsing what comes from outside."""

import msgspec

# What decoding hostile JSON raises: msgspec's own errors, and two it lets through, for text that is nested
# without end and for strings that are not UTF-8 (found by fuzzing, msgspec 0.22).
JSON_ERRORS = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)
