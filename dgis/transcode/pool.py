"""Has conversions done by worker processes: bounded in number, in time and in memory, restarted when they die."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

from certs.log import get_log
from dgis.transcode.convert import Bounds, Job
from dgis.transcode.errors import TranscodeCancelled, TranscodeError

log = get_log()

_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Limits:
    """Worker processes at once; seconds until the first or next frame, and altogether; bytes of address space."""

    workers: int = 2
    stall: float = 30.0
    total: float = 1800.0
    memory: int = 2 << 30
    bounds: Bounds = field(default_factory=Bounds)


class Transcoder:
    """Converts files. Thread-safe; a worker process is started when first needed and kept for the next job."""

    def __init__(self, limits: Limits | None = None) -> None:
        """Start nothing yet."""
        self._limits = limits or Limits()
        self._slots = threading.BoundedSemaphore(self._limits.workers)
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._closed = False

    def convert(self, job: Job, *, cancelled: Callable[[], bool]) -> int:
        """Write the converted data set to `job.output` and return its length.

        Raises TranscodeError when it cannot be had, at the latest when the limits say so, TranscodeCancelled within a
        fraction of a second of `cancelled`. Nothing is left at `job.output` then.
        """
        started = time.monotonic()
        with self._slot(cancelled), self._worker() as worker:
            try:
                length = worker.run(job, self._limits, cancelled)
            except TranscodeError as error:
                if not worker.alive:
                    Path(job.output).unlink(missing_ok=True)
                if not isinstance(error, TranscodeCancelled):
                    log.warning("not converted", stored=job.stored, target=job.target, reason=str(error))
                raise
        log.debug("converted", stored=job.stored, target=job.target, seconds=round(time.monotonic() - started, 3))
        return length

    def close(self) -> None:
        """End the idle worker processes; a busy one ends with its job."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.end()

    @contextlib.contextmanager
    def _slot(self, cancelled: Callable[[], bool]) -> Iterator[None]:
        deadline = time.monotonic() + self._limits.total
        while not self._slots.acquire(timeout=_POLL_SECONDS):
            if cancelled():
                raise TranscodeCancelled("cancelled")
            if time.monotonic() > deadline:
                raise TranscodeError("every converter was busy for too long")
        try:
            yield
        finally:
            self._slots.release()

    @contextlib.contextmanager
    def _worker(self) -> Iterator[_Worker]:
        with self._lock:
            worker = self._idle.pop() if self._idle else None
        if worker is None or not worker.alive:
            worker = _Worker(self._limits)
        try:
            yield worker
        finally:
            with self._lock:
                keep = worker.alive and worker.ready and not self._closed
                if keep:
                    self._idle.append(worker)
            if not keep:
                worker.end()


class _Worker:
    """One worker process, for one job at a time."""

    def __init__(self, limits: Limits) -> None:
        bounds = limits.bounds
        arguments = (bounds.result, bounds.frame, bounds.reserve, limits.memory)
        # One thread each: a codec's own threads would take the cores from the receivers.
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-m", "dgis.transcode", *map(str, arguments)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd="/", env=environment,
        )  # fmt: skip
        assert self._process.stdin is not None and self._process.stdout is not None
        self._in: IO[bytes] = self._process.stdin
        self._out: IO[bytes] = self._process.stdout
        self._buffer = b""
        self.ready = True

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def run(self, job: Job, limits: Limits, cancelled: Callable[[], bool]) -> int:
        """Return the length of the result. Raises TranscodeError; then the process may have been ended."""
        self.ready = False
        overall = time.monotonic() + limits.total
        self._ask(job)
        while True:
            answer = self._answer(min(time.monotonic() + limits.stall, overall), cancelled)
            if "frame" in answer:
                continue
            self.ready = True
            if "length" in answer:
                return int(answer["length"])
            raise TranscodeError(str(answer.get("failed", "the converter gave no answer")))

    def end(self) -> None:
        """End the process; safe to call twice."""
        with contextlib.suppress(OSError):
            self._in.close()
        if self.alive:
            self._process.kill()
        self._process.wait()
        self._out.close()

    def _ask(self, job: Job) -> None:
        try:
            self._in.write(json.dumps(asdict(job)).encode() + b"\n")
            self._in.flush()
        except OSError:
            self.end()
            raise TranscodeError("the converter did not start") from None

    def _answer(self, deadline: float, cancelled: Callable[[], bool]) -> dict[str, int | str]:
        while b"\n" not in self._buffer:
            readable = select.poll()
            readable.register(self._out, select.POLLIN)
            if readable.poll(_POLL_SECONDS * 1000):
                piece = os.read(self._out.fileno(), 65536)
                if not piece:
                    raise self._died()
                self._buffer += piece
            elif cancelled():
                self.end()
                raise TranscodeCancelled("cancelled")
            elif time.monotonic() > deadline:
                self.end()
                raise TranscodeError("converting it took too long")
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, int | str] = json.loads(line)
        return answer

    def _died(self) -> TranscodeError:
        self.end()
        code = self._process.returncode
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return TranscodeError(f"the codestream ended the converter ({name})")
