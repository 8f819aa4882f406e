"""The own SFTP server, for sites that have nothing but pip: asyncssh for SSH, our own SFTP over the Tree.

An event loop in a thread of its own speaks SSH, a pool of threads works on the disk.
"""

from __future__ import annotations

import asyncio
import threading

import asyncssh
from asyncssh.kex import get_kex_algs

from certs.config import IdentityConfig
from certs.credential import Credential
from certs.descriptors import quiet_when_scarce
from certs.errors import ConfigError, CredentialError
from certs.files import Signature, signature_of
from certs.gridmap import Gridmap
from certs.log import get_log
from certs.sshpeers import SshPeers
from certs.trust import Trust
from storage_provider.errors import LocalFault
from storage_provider.service import StorageService
from storage_provider.sftp.server_login import CIPHERS, KEX, MACS, SIGNATURES, Doorkeeper, Lobby, Login
from storage_provider.sftp.server_session import Pools
from storage_provider.sftp.settings import SftpSettings

# How often connections are looked at: idle, revoked; and our own key, renewed (seconds)
SWEEP_SECONDS = 2.0
# One packet of the client; its window bounds what a session that is not read from can pile up
_PACKET_BYTES = 128 * 1024
_WINDOW_BYTES = 2 * 1024 * 1024
_STOP_SECONDS = 10.0

log = get_log()


class SftpServer:
    """Serves an SE's areas over SFTP until it is stopped. The host key is the key of our certificate.

    Raises ConfigError when the identity names no directory of SSH peers, TrustError when that cannot be read.
    """

    def __init__(
        self,
        service: StorageService,
        identity: IdentityConfig,
        trust: Trust,
        gridmap: Gridmap,
        settings: SftpSettings | None = None,
    ) -> None:
        if identity.ssh_peers is None:
            raise ConfigError(
                "[identity] needs ssh_peers (a directory with the certificates of those who may come) to serve SFTP"
            )
        self._settings = settings or SftpSettings()
        self._credential = Credential(identity.cert, identity.key)
        self._credential.check()
        peers = SshPeers(identity.ssh_peers, trust)
        pools = Pools.of(self._settings.disk_threads)
        self._keeper = Doorkeeper(service, peers, gridmap, self._settings, pools)
        self._address: tuple[str, int] | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that the server listens on."""
        if self._address is None:
            raise LocalFault("the SFTP server is not running")
        return self._address

    def start(self) -> str:
        """Listen, and return the base URL (sftp://HOST:PORT); LocalFault when the port cannot be had."""
        ready: threading.Event = threading.Event()
        failed: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, args=(ready, failed), name="sftp", daemon=True)
        self._thread.start()
        ready.wait()
        if failed:
            self._thread.join()
            self._thread = None
            raise LocalFault(f"the SFTP server cannot listen: {failed[0]}") from failed[0]
        host = self._settings.advertise or self.address[0]
        return f"sftp://{f'[{host}]' if ':' in host else host}:{self.address[1]}"

    def stop(self) -> None:
        """End all connections, keep what of their uploads can be resumed, and stop; harmless when stopped."""
        thread, self._thread = self._thread, None
        if thread is None or self._loop is None or self._stopping is None:
            return
        self._loop.call_soon_threadsafe(self._stopping.set)
        thread.join()
        self._keeper.pools.close()
        self._address = None

    def _run(self, ready: threading.Event, failed: list[BaseException]) -> None:
        try:
            asyncio.run(self._serve(ready))
        except BaseException as error:
            if ready.is_set():
                log.error("sftp_server_failed", error=str(error))
                raise
            failed.append(error)
        finally:
            ready.set()

    async def _serve(self, ready: threading.Event) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        self._loop.set_exception_handler(quiet_when_scarce("sftp_accept_failed"))
        lobby = Lobby(self._settings)
        key_seen = signature_of(self._credential.key)
        acceptor = await self._listen(lobby)
        host, port = acceptor.sockets[0].getsockname()[:2]
        self._address = (host, port)
        ready.set()
        while not self._stopping.is_set():
            try:
                await asyncio.wait_for(self._stopping.wait(), SWEEP_SECONDS)
            except TimeoutError:
                lobby.sweep(judge=self._judge)
                key_seen = self._renew(acceptor, key_seen)
        acceptor.close()
        await self._end_all(lobby)

    def _renew(self, acceptor: asyncssh.SSHAcceptor, seen: Signature | None) -> Signature | None:
        """Take our own key anew when its file has changed; one that cannot be used is logged, the old one kept."""
        now = signature_of(self._credential.key)
        if now != seen:
            try:
                self._credential.check()
                acceptor.update(server_host_keys=[self._host_key()])
                log.info("sftp_host_key_reloaded")
            except (CredentialError, asyncssh.KeyImportError, OSError) as error:
                log.error("sftp_host_key_kept", reason=str(error))
        return now

    def _judge(self, login: Login) -> None:
        assert self._loop is not None
        future = self._loop.run_in_executor(self._keeper.pools.data, login.judge)
        future.add_done_callback(lambda _: login.end_if_refused())

    async def _listen(self, lobby: Lobby) -> asyncssh.SSHAcceptor:
        return await asyncssh.listen(
            self._settings.host,
            self._settings.port,
            server_factory=lambda: Login(self._keeper, lobby),
            server_host_keys=[self._host_key()],
            config=[],
            server_version="dgis",
            encoding=None,
            kex_algs=[name for name in KEX if name.encode() in get_kex_algs()],
            encryption_algs=CIPHERS,
            mac_algs=MACS,
            signature_algs=SIGNATURES,
            compression_algs=None,
            login_timeout=self._settings.grace_seconds,
            keepalive_interval=30,
            password_auth=False,
            kbdint_auth=False,
            host_based_auth=False,
            gss_host=None,
            x509_trusted_certs=None,
            send_server_host_keys=False,
            agent_forwarding=False,
            x11_forwarding=False,
            allow_pty=False,
            line_editor=False,
            allow_scp=False,
            window=_WINDOW_BYTES,
            max_pktsize=_PACKET_BYTES,
        )

    def _host_key(self) -> asyncssh.SSHKey:
        return asyncssh.import_private_key(self._credential.key.read_bytes())

    async def _end_all(self, lobby: Lobby) -> None:
        logins = tuple(lobby.logins)
        for login in logins:
            login.end("the server stops")
        deadline = asyncio.get_running_loop().time() + _STOP_SECONDS
        while not all(login.over for login in logins) and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.01)
