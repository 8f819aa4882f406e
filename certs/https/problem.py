"""Problem details for HTTP APIs (RFC 9457): how a service says no, and how a client reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping

from certs.errors import Answered, CertsError

MEDIA_TYPE = "application/problem+json"
PREFIX = "urn:dgis:problem:"

JsonValue = str | int | float | bool | None | list["JsonValue"] | dict[str, "JsonValue"]


class ProblemError(CertsError):
    """Raise it in a handler to answer with a problem.

    ``slug`` completes the type ``urn:dgis:problem:SLUG``; ``extensions`` become further members (RFC 9457 section 3.2).
    None of it may hold patient data.
    """

    def __init__(
        self,
        http_status: int,
        slug: str,
        detail: str = "",
        *,
        title: str = "",
        extensions: Mapping[str, JsonValue] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail or title or slug)
        self.http_status = http_status
        self.slug = slug
        self.title = title or slug.replace("-", " ").capitalize()
        self.detail = detail
        self.extensions: Mapping[str, JsonValue] = extensions or {}
        self.headers: Mapping[str, str] = headers or {}

    def to_json(self) -> bytes:
        """Encode the problem document."""
        document: dict[str, JsonValue] = {
            **self.extensions,
            "type": PREFIX + self.slug,
            "title": self.title,
            "status": self.http_status,
        }
        if self.detail:
            document["detail"] = self.detail
        return json.dumps(document, ensure_ascii=False).encode()


def answered(service: str, http_status: int, reason: str, body: bytes) -> Answered:
    """Make the client's error from an answer of 300 or above, whether or not it is a problem document."""
    fields = _members(body)
    return Answered(
        service=service,
        http_status=http_status,
        problem_type=_text(fields, "type", "about:blank"),
        title=_text(fields, "title", reason or "no reason given"),
        detail=_text(fields, "detail", ""),
    )


def _members(body: bytes) -> dict[str, object]:
    try:
        parsed = json.loads(body)
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _text(fields: dict[str, object], name: str, default: str) -> str:
    value = fields.get(name)
    return value[:1000] if isinstance(value, str) and value else default
