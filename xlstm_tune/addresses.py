"""Addresses of files, folders and databases, and what is secret in them. Imports nothing of this package."""

from __future__ import annotations

SECRET_OPTIONS = ("client_secret", "sig")
"""Behind the ? of an address: the secret of Azure's registered programs, and the signature of its signed addresses."""


def sqlite_address(path: str) -> str:
    """The URI of an SQLite database at an absolute path."""
    return "sqlite:///" + path.replace("%", "%25").replace("?", "%3F")
