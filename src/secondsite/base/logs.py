"""Logs as JSON lines, of servers and gateways: an object each. Nothing secret is put in one."""

from __future__ import annotations

import contextvars
import datetime as dt
import logging
import sys
import traceback

import msgspec

# The request a line belongs to, at a server; worker threads inherit it with their context.
REQUEST_ID: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="")


class JsonLines(logging.Formatter):
    """``{"at", "level", "logger", "text", "requestId"?, ..., "traceback"?}``; more fields come by `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line; a text with line ends in it stays one line."""
        at = dt.datetime.fromtimestamp(record.created, dt.UTC)
        line: dict[str, object] = {
            "at": at.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "text": record.getMessage(),
        }
        if request := REQUEST_ID.get():
            line["requestId"] = request
        fields = getattr(record, "fields", None)
        if isinstance(fields, dict):
            line.update(fields)
        if record.exc_info and record.exc_info[1] is not None:
            line["traceback"] = "".join(traceback.format_exception(record.exc_info[1]))
        return msgspec.json.encode(line, enc_hook=str).decode(errors="replace")


def log_json_lines(level: int = logging.INFO) -> None:
    """Everything this process logs goes to standard error as JSON lines, from now on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # its texts hold addresses and paths we log ourselves, once a request
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
