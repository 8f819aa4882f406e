"""One SFTP session on an SSH channel: requests in, answers out, disk work in the pool; nothing grows without bound.

Requests are answered in order, a batch at a time: while a thread works on one batch, the event loop decrypts the next
and encrypts the answers to the last. A client that sends too far ahead is not read from, one that does not take its
answers gets no further work done.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import asyncssh

from certs.log import get_log
from storage_provider.sftp.numbers import Kind
from storage_provider.sftp.server_files import SftpFiles
from storage_provider.sftp.server_packets import BadPacket, Framer, Request

# What may wait to be worked on before the client is made to wait, and what one turn in the pool takes
MOST_WAITING_BYTES = 2 * 1024 * 1024
MOST_WAITING = 256
BATCH_BYTES = 1024 * 1024
BATCH = 64
# Renames and our extensions verify: they may read whole objects
SLOW = frozenset({Kind.RENAME, Kind.EXTENDED})

log = get_log()


@dataclass(frozen=True, slots=True)
class Pools:
    """Threads for bytes, and others for what may have to read a whole object, so that the bytes never wait for that."""

    data: ThreadPoolExecutor
    slow: ThreadPoolExecutor

    @classmethod
    def of(cls, threads: int) -> Pools:
        """Make both of one size."""
        return cls(
            ThreadPoolExecutor(threads, thread_name_prefix="sftp-data"),
            ThreadPoolExecutor(threads, thread_name_prefix="sftp-slow"),
        )

    def close(self) -> None:
        """Wait for what is running."""
        self.data.shutdown()
        self.slow.shutdown()


@dataclass(slots=True)
class _Outcome:
    """What a batch came to: the answers, and why the session cannot go on."""

    answers: list[bytes]
    broken: str = ""


class SftpSession(asyncssh.SSHServerSession[bytes]):
    """The session of one channel; only the subsystem sftp is there, no shell, no command.

    `touched` is called when something happened, `settled` with the session after a batch, `ended` when all is over and
    its files are closed; all in the event loop.
    """

    def __init__(
        self,
        files: SftpFiles,
        pools: Pools,
        *,
        touched: Callable[[], None],
        settled: Callable[[], None],
        ended: Callable[[SftpSession], None],
    ) -> None:
        self._files = files
        self._pools = pools
        self._touched = touched
        self._settled = settled
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._framer = Framer()
        self._waiting: deque[Request] = deque()
        self._waiting_bytes = 0
        self._held: list[bytes] = []
        self._working = False
        self._reading = True
        self._blocked: set[str] = set()
        self._eof = False
        self._over = False
        self._lost = False

    # -- what asyncssh calls ------------------------------------------------------------------------------------

    def connection_made(self, chan: asyncssh.SSHServerChannel[bytes]) -> None:
        """Take the channel."""
        self._channel = chan
        chan.set_write_buffer_limits(high=BATCH_BYTES)

    def subsystem_requested(self, subsystem: str) -> bool:
        """Admit sftp only."""
        return subsystem == "sftp"

    def shell_requested(self) -> bool:
        """Refuse."""
        return False

    def exec_requested(self, command: str) -> bool:
        """Refuse."""
        return False

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        """Take bytes of the client."""
        if self._over or self._eof:
            return
        self._touched()
        try:
            for request in self._framer.feed(data):
                self._waiting.append(request)
                self._waiting_bytes += len(request)
        except BadPacket as error:
            self._break(str(error))
            return
        if self._reading and (self._waiting_bytes > MOST_WAITING_BYTES or len(self._waiting) > MOST_WAITING):
            self._reading = False
            self._channel.pause_reading()
        self._work_on()

    def eof_received(self) -> bool:
        """Note the end of the requests; the answers to the last ones still go out."""
        self._eof = True
        self._finish_if_done()
        return True

    def pause_writing(self) -> None:
        """Hold answers back: the client's window is full."""
        self.block("window")

    def resume_writing(self) -> None:
        """Send on."""
        self.unblock("window")

    def connection_lost(self, exc: Exception | None) -> None:
        """End: the files are closed once the batch under way is done."""
        self._lost = self._over = True
        self._waiting.clear()
        self._held.clear()
        self._files.stop()
        if not self._working:
            self._close_files()

    # -- flow ---------------------------------------------------------------------------------------------------

    def block(self, reason: str) -> None:
        """Hold answers back for a reason (the window, the connection) until it is unblocked."""
        self._blocked.add(reason)

    def unblock(self, reason: str) -> None:
        """Send on unless there is another reason not to."""
        self._blocked.discard(reason)
        self._touched()
        if self._held and not self._blocked:
            held, self._held = self._held, []
            self._send(held)
        self._work_on()

    @property
    def busy(self) -> bool:
        """Whether a batch is being worked on."""
        return self._working

    def _work_on(self) -> None:
        if self._working or self._held or self._over or not self._waiting:
            return
        slow = self._waiting[0].kind in SLOW
        batch = self._batch(1 if slow else BATCH)
        self._working = True
        (self._pools.slow if slow else self._pools.data).submit(self._work, batch)
        if (
            not self._reading
            and self._waiting_bytes < MOST_WAITING_BYTES // 2
            and len(self._waiting) < MOST_WAITING // 2
        ):
            self._reading = True
            self._channel.resume_reading()

    def _batch(self, most: int) -> list[Request]:
        """Take the next requests: a slow one stands alone."""
        batch: list[Request] = []
        room = BATCH_BYTES
        while self._waiting and len(batch) < most and room > 0:
            if batch and self._waiting[0].kind in SLOW:
                break
            request = self._waiting.popleft()
            self._waiting_bytes -= len(request)
            room -= len(request) + request.answer_bytes()
            batch.append(request)
        return batch

    def _work(self, batch: list[Request]) -> None:
        """Work on a batch (in the pool), and go on in the event loop."""
        outcome = self._answer(batch)
        self._loop.call_soon_threadsafe(self._worked, outcome)

    def _answer(self, batch: list[Request]) -> _Outcome:
        answers: list[bytes] = []
        try:
            for request in batch:
                if self._over:
                    break
                answers.append(self._files.answer(request))
        except BadPacket as error:
            return _Outcome(answers, str(error))
        except Exception as error:
            log.error("sftp_session_failed", error=type(error).__name__, exc_info=error)
            return _Outcome(answers, "internal error")
        return _Outcome(answers)

    def _worked(self, outcome: _Outcome) -> None:
        self._working = False
        if self._lost:
            self._close_files()
        if self._over:
            return
        self._touched()
        if outcome.broken:
            self._send(outcome.answers)
            self._break(outcome.broken)
            return
        if self._blocked:
            self._held = outcome.answers
            return
        self._work_on()  # the next batch first: its thread reads while this one's answers are encrypted
        self._send(outcome.answers)
        self._settled()
        self._finish_if_done()

    def _send(self, answers: list[bytes]) -> None:
        # In one piece: each write to the channel costs packets of its own
        if answers and not self._over:
            self._channel.write(b"".join(answers))

    def _finish_if_done(self) -> None:
        if self._eof and not (self._over or self._working or self._waiting or self._held):
            self._over = True
            self._channel.exit(0)

    def _break(self, reason: str) -> None:
        log.warning("sftp_session_broken", reason=reason)
        self._over = True
        self._waiting.clear()
        self._held.clear()
        self._channel.exit(1)

    def _close_files(self) -> None:
        future = self._loop.run_in_executor(self._pools.data, self._files.close)
        future.add_done_callback(lambda _: self._ended(self))
