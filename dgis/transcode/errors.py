"""Why an instance could not be converted. No message carries a value of the data set."""

from __future__ import annotations

from dgis.errors import DgisError


class TranscodeError(DgisError):
    """The instance cannot be converted; trying again gives the same answer."""


class TranscodeCancelled(TranscodeError):
    """Nobody wants the result any more."""
