"""The channel factory: which implementation speaks to a door, by the URL's scheme."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit

from certs.https.session import GridSession
from storage_provider.channel import Channel
from storage_provider.errors import DoorURL
from storage_provider.gridftp.client.channel import GsiftpChannel
from storage_provider.gridftp.settings import DataSettings
from storage_provider.https.client import HttpsChannel
from storage_provider.sftp.client import SftpChannel
from storage_provider.timeouts import Timeouts
from storage_provider.transfer.route import SCHEMES


def open_channels(
    session: GridSession,
    *,
    permit: str | None = None,
    timeouts: Timeouts | None = None,
    data: DataSettings | None = None,
) -> Callable[[str], Channel]:
    """Return the factory for an Engine; it raises DoorURL for a URL that no channel speaks.

    `data` says how GridFTP's data connections are made. The channels share the session's identity, trust and TLS.
    """

    def open_channel(url: str) -> Channel:
        scheme = urlsplit(url).scheme
        if scheme == "https":
            return HttpsChannel(session, url, permit=permit, timeouts=timeouts)
        if scheme == "gsiftp":
            return GsiftpChannel(session.tls, url, permit=permit, timeouts=timeouts, data=data)
        if scheme == "sftp":
            return SftpChannel(session.identity, session.tls.trust, url, permit=permit, timeouts=timeouts)
        raise DoorURL(f"no channel for {scheme or 'a URL without scheme'}; doors are {', '.join(SCHEMES)}", door=url)

    return open_channel
