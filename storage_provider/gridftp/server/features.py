"""What the server says of itself: FEAT, HELP, SITE HELP."""

from __future__ import annotations

from storage_provider.gridftp.commands import ALGORITHMS
from storage_provider.gridftp.facts import FEATURE

# The presence of this line tells our own client what it may use beyond stock GridFTP (see PROTOCOL.md)
OWN_FEATURE = "DGIS 1"
# ... and this one names the element, so that nobody takes one for another; older clients pass over it
NAME_FEATURE = "DGIS-ELEMENT"
_FEATURES = (
    "AUTH GSSAPI",
    "CKSM " + "".join(f"{name}:{10 + number};" for number, name in enumerate(ALGORITHMS)),
    "DCAU",
    "DCSC P,D",
    "EPRT",
    "EPSV",
    "ERET",
    "ESTO",
    "MDTM",
    "MLSC",
    FEATURE,
    "PARALLEL",
    "PBSZ",
    "PROT",
    "REST STREAM",
    "SIZE",
    "SPAS",
    "SPOR",
    "UTF8",
    OWN_FEATURE,
)


def features(element: str) -> tuple[str, ...]:
    """Return the lines of the reply to FEAT (RFC 2389 section 3.2) of the element of this name."""
    return (*_FEATURES, f"{NAME_FEATURE} {element}")


def help_lines(verbs: list[str]) -> tuple[str, ...]:
    """Return the lines of the 214 reply: stock clients look for the verbs in it."""
    rows = ["".join(f"{verb:<8}" for verb in verbs[at : at + 8]).rstrip() for at in range(0, len(verbs), 8)]
    return ("The following commands are recognized:", *(f"   {row}" for row in rows), "End")
