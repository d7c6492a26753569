"""What is secret in the address of a file or a folder. Imports nothing of this package."""

from __future__ import annotations

SECRET_OPTIONS = ("client_secret", "sig")
"""Behind the ? of an address: the secret of Azure's registered programs, and the signature of its signed addresses."""
