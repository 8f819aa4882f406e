"""What can go wrong between a site file and a running site."""

from __future__ import annotations

from dataclasses import dataclass

from dgis.errors import DgisError


class DeployError(DgisError):
    """The root of what deployment raises; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One mistake of a site file: where it stands, and what to write instead. `line` counts from 1, 0 when unknown."""

    file: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}" if self.line else f"{self.file}: {self.text}"


class SiteFileError(DeployError):
    """A site file that cannot be: every mistake that could be found at once, in the order of the file."""

    def __init__(self, findings: tuple[Finding, ...]) -> None:
        super().__init__("\n".join(str(finding) for finding in findings))
        self.findings = findings


class HostError(DeployError):
    """A tool of the host refused or is missing: what was run, and its own words."""


class Unreachable(HostError):
    """The host itself did not answer."""
