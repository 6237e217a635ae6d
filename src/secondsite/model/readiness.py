"""What a gateway finds of its own place: what it needs, whether that is there, and whom to ask. Pure."""

from __future__ import annotations

import msgspec


class Check(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One thing that is needed. why, fix and ask are empty when it is there."""

    code: str  # stable, "libvirt.define"
    title: str  # what is needed, for people
    ok: bool
    why: str = ""  # what is missing
    fix: str = ""  # what to do
    ask: str = ""  # which right to ask for, and of whom


class Readiness(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """All checks of one gateway, made at one moment."""

    gateway: str
    at: str
    checks: tuple[Check, ...]
