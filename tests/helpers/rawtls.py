"""A TLS client of our own, with none of the product's care: to see what the server does to it."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from typing import Any
from urllib.parse import urlsplit

from certs.config import IdentityConfig


def client_context(identity: IdentityConfig | None, ca: IdentityConfig) -> ssl.SSLContext:
    """Trust the CA bundle beside ``ca``, present ``identity`` (or nothing), check no CRL."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(ca.trust / "ca.pem")
    if identity is not None:
        context.load_cert_chain(identity.cert, identity.key)
    return context


def connect(url: str, context: ssl.SSLContext, *, session: ssl.SSLSession | None = None) -> ssl.SSLSocket:
    parts = urlsplit(url)
    plain = socket.create_connection((parts.hostname, parts.port), timeout=10)
    return context.wrap_socket(plain, server_hostname=parts.hostname, session=session)


def plain_connect(url: str) -> socket.socket:
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname, parts.port), timeout=10)


class Kept:
    """One kept-alive connection that is never replaced behind our back."""

    def __init__(self, url: str, context: ssl.SSLContext, *, session: ssl.SSLSession | None = None) -> None:
        self.socket = connect(url, context, session=session)
        self._http = http.client.HTTPConnection(urlsplit(url).netloc)
        self._http.sock = self.socket
        self._http.auto_open = 0

    def get(self, path: str = "/v1/whoami") -> tuple[int, Any]:
        self._http.request("GET", path)
        answer = self._http.getresponse()
        return answer.status, json.loads(answer.read())

    def close(self) -> None:
        self.socket.close()
