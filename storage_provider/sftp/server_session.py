"""One SFTP session on an SSH channel: requests in, answers out, disk work in the pools; nothing grows without bound.

Requests are worked on in order, a batch at a time: while a thread works on one batch, the event loop decrypts the next
and encrypts the answers to the last. Commits alone go on beside what follows them. A client that sends too far ahead is
not read from, one that does not take its answers gets no further work done.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import asyncssh

from certs.log import get_log
from storage_provider.sftp.numbers import Kind
from storage_provider.sftp.server_files import SftpFiles
from storage_provider.sftp.server_packets import BadPacket, Framer, Request
from storage_provider.sftp.server_tuning import without_environment

# What may wait to be worked on before the client is made to wait, and what one turn in the pool takes
MOST_WAITING_BYTES = 2 * 1024 * 1024
MOST_WAITING = 256
BATCH_BYTES = 1024 * 1024
BATCH = 64
# Renames and our extensions verify: they may read whole objects, and stand alone
SLOW = frozenset({Kind.RENAME, Kind.EXTENDED})
# So many objects of a session are committed beside each other; what follows goes on meanwhile, as far as it may be
# reordered: requests of the same file may not (section 6.1 of the draft)
MOST_COMMITS = 4
_NAMELESS = frozenset({Kind.READ, Kind.WRITE, Kind.FSTAT, Kind.FSETSTAT, Kind.OPENDIR, Kind.READDIR, Kind.REALPATH})
_ONE_PATH = frozenset({Kind.OPEN, Kind.STAT, Kind.LSTAT, Kind.REMOVE, Kind.SETSTAT, Kind.MKDIR})

log = get_log()


@dataclass(frozen=True, slots=True)
class Pools:
    """Threads for bytes, for commits (which wait for the disk), and for checks that read whole objects.

    So that the first never wait for the others, nor commits for checks.
    """

    data: ThreadPoolExecutor
    commits: ThreadPoolExecutor
    checks: ThreadPoolExecutor

    @classmethod
    def of(cls, threads: int) -> Pools:
        """Make each of one size."""
        return cls(*(ThreadPoolExecutor(threads, thread_name_prefix=f"sftp-{name}") for name in cls.__slots__))

    def close(self) -> None:
        """Wait for what is running."""
        for pool in (self.data, self.commits, self.checks):
            pool.shutdown()


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
        self._committing: list[str] = []
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
        without_environment(chan)

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
        if not self.busy:
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
        """Whether something is being worked on."""
        return self._working or bool(self._committing)

    def _work_on(self) -> None:
        while self._waiting and not (self._working or self._held or self._over or self._must_wait(self._waiting[0])):
            if self._files.commits(self._waiting[0]):
                self._begin_commit(self._take())
            else:
                self._begin_batch()
        low = self._waiting_bytes < MOST_WAITING_BYTES // 2 and len(self._waiting) < MOST_WAITING // 2
        if low and not self._reading and not self._over:
            self._reading = True
            self._channel.resume_reading()

    def _must_wait(self, request: Request) -> bool:
        """Tell whether a request has to wait for the end of commits: too many, or one may be of the same file."""
        if not self._committing or request.kind in _NAMELESS:
            return False
        if request.kind == Kind.CLOSE:
            return len(self._committing) >= MOST_COMMITS and self._files.commits(request)
        return request.kind not in _ONE_PATH or self._files.path_of(request) in self._committing

    def _take(self) -> Request:
        request = self._waiting.popleft()
        self._waiting_bytes -= len(request)
        return request

    def _begin_commit(self, request: Request) -> None:
        path, commit = self._files.begin_commit(request)
        self._committing.append(path)

        def work() -> None:
            outcome = self._guarded([commit])
            self._loop.call_soon_threadsafe(self._committed, path, outcome)

        self._pools.commits.submit(work)

    def _begin_batch(self) -> None:
        first = self._take()
        batch = [first]
        room = BATCH_BYTES - len(first) - first.answer_bytes()
        while first.kind not in SLOW and self._waiting and len(batch) < BATCH and room > 0:
            following = self._waiting[0]
            if following.kind in SLOW or self._files.commits(following) or self._must_wait(following):
                break
            batch.append(self._take())
            room -= len(following) + following.answer_bytes()
        self._working = True
        if first.kind == Kind.RENAME or first.first() == b"posix-rename@openssh.com":
            pool = self._pools.commits
        else:
            pool = self._pools.checks if first.kind == Kind.EXTENDED else self._pools.data
        pool.submit(self._work, batch)

    def _work(self, batch: list[Request]) -> None:
        """Work on a batch (in a pool), and go on in the event loop."""
        outcome = self._guarded([partial(self._files.answer, request) for request in batch])
        self._loop.call_soon_threadsafe(self._worked, outcome)

    def _guarded(self, works: list[Callable[[], bytes]]) -> _Outcome:
        answers: list[bytes] = []
        try:
            for work in works:
                if self._over and len(works) > 1:
                    break
                answers.append(work())
        except BadPacket as error:
            return _Outcome(answers, str(error))
        except Exception as error:
            log.error("sftp_session_failed", error=type(error).__name__, exc_info=error)
            return _Outcome(answers, "internal error")
        return _Outcome(answers)

    def _worked(self, outcome: _Outcome) -> None:
        self._working = False
        self._go_on(outcome)

    def _committed(self, path: str, outcome: _Outcome) -> None:
        self._committing.remove(path)
        self._go_on(outcome)

    def _go_on(self, outcome: _Outcome) -> None:
        if self._lost and not self.busy:
            self._close_files()
        if self._over:
            return
        self._touched()
        if outcome.broken:
            self._send(outcome.answers)
            self._break(outcome.broken)
            return
        if self._blocked or self._held:
            self._held += outcome.answers
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
        if self._eof and not (self._over or self.busy or self._waiting or self._held):
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
