"""The gsiftp door's server: sessions in threads over blocking control and never-blocking data connections.

May import: the sans-I/O rooms above, Tree and service, certs. Knows no client. `GsiftpServer` is its whole face.
"""

from storage_provider.gridftp.server.listener import GsiftpServer

__all__ = ["GsiftpServer"]
