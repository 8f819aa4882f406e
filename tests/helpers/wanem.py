"""A wide area line in user space, for kernels without sch_netem: needs CAP_NET_ADMIN and /dev/net/tun.

Joins two network namespaces with a TAP in each and moves frames between them with, for each direction, a rate
(bit/s at layer 2), a bounded queue (bytes, tail drop), a one-way delay (plus jitter; frames keep their order) and a
seeded random loss. A TAP without IFF_VNET_HDR never sees GSO super-frames, so queueing is per real frame.

    python -m tests.helpers.wanem --a NS:DEV --b NS:DEV --ab rate=800k,delay=25,loss=0,queue=32k --ba rate=3m,delay=25

Prints ``ready``, runs until its standard input ends (its maker may have been killed), prints its counters as JSON.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import random
import select
import struct
import sys
import time
from collections import deque
from dataclasses import dataclass, field

from tests.helpers.netns import inside

_TUNSETIFF, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 2, 0x1000
_LARGEST_FRAME = 65536
_FRAMES_PER_TURN = 64
_IDLE_SECONDS = 0.5
_SCALE = {"k": 1e3, "m": 1e6, "g": 1e9}


@dataclass(frozen=True, slots=True)
class Shape:
    """One direction of a line: rate in bit/s (0: no limit), delay and jitter in ms, loss in percent, queue in bytes."""

    rate: float = 0.0
    delay: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0
    queue: float = 64e3

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Read ``rate=800k,delay=25``; raises ValueError for an unknown word."""
        pairs = dict(part.split("=", 1) for part in text.split(",") if part)
        unknown = sorted(set(pairs) - set(cls.__slots__))
        if unknown:
            raise ValueError(f"unknown: {', '.join(unknown)}; a line has {', '.join(cls.__slots__)}")
        return cls(**{word: _number(value) for word, value in pairs.items()})

    def __str__(self) -> str:
        return ",".join(f"{word}={getattr(self, word):f}" for word in self.__slots__)


@dataclass
class Counters:
    """What one direction did: frames and bytes delivered, frames lost on purpose, frames that found no room."""

    frames: int = 0
    bytes: int = 0
    lost: int = 0
    dropped: int = 0


@dataclass
class Direction:
    """Frames from one TAP to the other; times are seconds of the monotonic clock."""

    source: int
    target: int
    shape: Shape
    chance: random.Random
    counters: Counters = field(default_factory=Counters)
    queue: deque[tuple[float, bytes]] = field(default_factory=deque)
    free_at: float = 0.0

    def due(self) -> float | None:
        """When the next frame is due, if there is one."""
        return self.queue[0][0] if self.queue else None

    def take(self, now: float) -> None:
        """Read what came, up to a turn's share, so that the other direction is not starved."""
        for _ in range(_FRAMES_PER_TURN):
            try:
                frame = os.read(self.source, _LARGEST_FRAME)
            except BlockingIOError:
                return
            self._enqueue(frame, now)

    def _enqueue(self, frame: bytes, now: float) -> None:
        shape = self.shape
        if shape.loss and self.chance.random() * 100 < shape.loss:
            self.counters.lost += 1
            return
        sent = max(now, self.free_at)
        if shape.rate:
            if (sent - now) * shape.rate / 8 + len(frame) > shape.queue:
                self.counters.dropped += 1
                return
            sent += len(frame) * 8 / shape.rate
            self.free_at = sent
        due = sent + (shape.delay + (self.chance.random() * shape.jitter if shape.jitter else 0)) / 1e3
        self.queue.append((max(due, self.queue[-1][0]) if self.queue else due, frame))

    def put(self, now: float) -> None:
        """Deliver what is due."""
        while self.queue and self.queue[0][0] <= now:
            frame = self.queue.popleft()[1]
            try:
                os.write(self.target, frame)
            except OSError:  # the far side is down
                self.counters.dropped += 1
            else:
                self.counters.frames += 1
                self.counters.bytes += len(frame)


def open_tap(end: str) -> int:
    """Make a TAP device in a namespace (``NS:DEV``); it lives as long as the descriptor."""
    namespace, device = end.split(":", 1)

    def make() -> int:
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", device.encode(), _IFF_TAP | _IFF_NO_PI))
        return descriptor

    return inside(namespace, make)


def forward(directions: tuple[Direction, Direction], stop: int) -> None:
    """Move frames until ``stop`` is readable."""
    sources = [each.source for each in directions]
    while True:
        due = min((when for each in directions if (when := each.due()) is not None), default=None)
        rest = _IDLE_SECONDS if due is None else max(0.0, due - time.monotonic())
        ready = select.select([*sources, stop], [], [], rest)[0]
        if stop in ready:
            return
        now = time.monotonic()
        for each in directions:
            if each.source in ready:
                each.take(now)
            each.put(now)


def main() -> None:
    """Run the line as a program."""
    parser = argparse.ArgumentParser(description="a wide area line between two network namespaces")
    for option in ("--a", "--b"):
        parser.add_argument(option, required=True, metavar="NS:DEV")
    for option in ("--ab", "--ba"):
        parser.add_argument(option, type=Shape.parse, default=Shape(), metavar="rate=800k,delay=25,...")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    a, b = open_tap(given.a), open_tap(given.b)
    directions = (
        Direction(a, b, given.ab, random.Random(given.seed)),
        Direction(b, a, given.ba, random.Random(given.seed + 1)),
    )
    print("ready", flush=True)
    forward(directions, sys.stdin.fileno())
    print(json.dumps([vars(each.counters) for each in directions]), flush=True)


def _number(text: str) -> float:
    scale = _SCALE.get(text[-1:].lower())
    return float(text[:-1]) * scale if scale else float(text)


if __name__ == "__main__":
    main()
