"""The far side of the host's network card: calls from a network namespace, made in this process."""

from __future__ import annotations

import ctypes
import http.client
import json
import os
import socket
import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

_CLONE_NEWNET = 0x40000000
T = TypeVar("T")


def within(netns: str, work: Callable[[], T]) -> T:
    """Do ``work`` on a thread that has joined the namespace; sockets that it makes stay there. Needs root."""

    def joined() -> T:
        handle = os.open(f"/run/netns/{netns}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            # Python has os.setns from 3.12 on. It moves the calling thread only, and that ends with the pool.
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(handle, _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"cannot join namespace {netns}")
        finally:
            os.close(handle)
        return work()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(joined).result()


def knock(netns: str, address: str, port: int, *, seconds: float = 2.0, source: str = "") -> str:
    """Open a TCP connection: `open`, `refused` (somebody said no), `silent` (nobody said anything).

    ``source`` is an address of the namespace, where it has several.
    """

    def work() -> str:
        try:
            socket.create_connection((address, port), seconds, (source, 0)).close()
        except ConnectionRefusedError:
            return "refused"
        except TimeoutError:
            return "silent"
        return "open"

    return within(netns, work)


def fetch(netns: str, address: str, port: int, path: str = "/", *, seconds: float = 20.0, source: str = "") -> str:
    """GET a page; OSError where there is none."""

    def work() -> str:
        connection = http.client.HTTPConnection(address, port, seconds, (source, 0))
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            if answer.status != 200:
                raise OSError(f"{address}:{port}{path} answered {answer.status}")
            return answer.read().decode()
        finally:
            connection.close()

    return within(netns, work)


def who(netns: str, address: str, port: int, *, source: str = "") -> dict[str, Any]:
    """What a test guest says of itself at this port: see `guest_initrd`."""
    said: dict[str, Any] = json.loads(fetch(netns, address, port, source=source))
    return said


def client_hello(name: str) -> bytes:
    """The first words of a TLS client that asks for a server by its name."""
    out = ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), out, server_hostname=name)
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        return out.read()
    raise AssertionError("a handshake ended without an answer")


def speak(
    netns: str, address: str, port: int, words: bytes, *, seconds: float = 20.0, source: str = ""
) -> dict[str, Any]:
    """Say something at a raw port of a test guest (see `Lease`); {} when whoever is there closes without a word."""

    def work() -> bytes:
        with socket.create_connection((address, port), seconds, (source, 0)) as link:
            try:
                link.sendall(words)
                heard = b""
                while part := link.recv(65536):
                    heard += part
            except ConnectionResetError:
                return b""
            return heard

    heard = within(netns, work)
    said: dict[str, Any] = json.loads(heard.partition(b"\r\n\r\n")[2]) if heard else {}
    return said
