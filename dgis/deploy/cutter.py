"""End connections that pass through this host, so that both ends learn at once. Its text is run by a bare Python 3.

Reads a JSON list of flows, each [protocol, [source, port], [target, port], [answers from, port], [answers to, port]] as
the kernel tracks them; the only argument is how many seconds to watch. Has the kernel forget each, so that their next
packet meets the rules as if it were the first. That packet's sender is told by the rules, if at all; the other end may
wait for more for ever. So the last packet of a flow that comes by is answered by a reset to both ends: its numbers are
within what they expect (RFC 9293, 3.10.7.4; one that is not exact is asked about, and the answer meets the rules, RFC
5961, 3.2). A flow on which nobody speaks ends when somebody does.
Imports the standard library only.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import struct
import subprocess
import sys
import time
from typing import Any

ETH_P_IP, TCP, ACK, RST = 0x0800, 6, 0x10, 0x04
MOST = 20  # resets for one end of a flow: the first may meet packets that are on their way
BUFFER_FORCED, BUFFER = 33, 32 << 20  # SO_RCVBUFFORCE: a busy line fills the usual buffer in a millisecond

End = tuple[str, int]
Way = tuple[End, End]  # from, to
Numbers = tuple[int, int, int]  # of a packet: its first, the one behind its last, the one that it acknowledges


def ways(flow: list[Any]) -> dict[Way, Way]:
    """How packets of a flow look when they come, either way, and how they look to whom they go."""
    source, target, back, to = ((str(address), int(port)) for address, port in flow)
    return {(source, target): (to, back), (back, to): (target, source)}


def forget(protocol: str, source: End, target: End) -> None:
    """Have the kernel forget a connection; one that has ended by itself meanwhile is fine."""
    words = ["conntrack", "-D", "-p", protocol, "--orig-src", source[0], "--orig-port-src", str(source[1])]
    words += ["--orig-dst", target[0], "--orig-port-dst", str(target[1])]
    subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)


def seen(packet: bytes) -> tuple[Way, Numbers] | None:
    """From and to, and the numbers, of a TCP packet that acknowledges something."""
    if len(packet) < 40 or packet[0] >> 4 != 4 or packet[9] != TCP:
        return None
    total, _, fragment = struct.unpack_from("!HHH", packet, 2)
    head = (packet[0] & 15) * 4
    if fragment & 0x1FFF or len(packet) < head + 20:
        return None
    source, target, first, acknowledged, offset, flags = struct.unpack_from("!HHIIBB", packet, head)
    if not flags & ACK or flags & RST:
        return None
    way = (socket.inet_ntoa(packet[12:16]), source), (socket.inet_ntoa(packet[16:20]), target)
    behind = (first + max(0, total - head - (offset >> 4) * 4)) % (1 << 32)
    return way, (first, behind, acknowledged)


def reset(way: Way, sequence: int, acknowledged: int) -> bytes:
    """A packet that ends a connection, as from its other end."""
    (source, source_port), (target, target_port) = way
    ends = socket.inet_aton(source) + socket.inet_aton(target)
    tcp = struct.pack("!HHIIBBHHH", source_port, target_port, sequence, acknowledged, 5 << 4, RST | ACK, 0, 0, 0)
    total = sum(struct.unpack("!16H", ends + struct.pack("!HH", TCP, len(tcp)) + tcp))
    total = (total & 0xFFFF) + (total >> 16)
    checksum = ~(total + (total >> 16)) & 0xFFFF
    # the kernel fills in length and checksum of the outer header
    head = struct.pack("!BBHHHBBH", 0x45, 0, 0, 0, 0, 64, TCP, 0) + ends
    return head + tcp[:16] + struct.pack("!H", checksum) + tcp[18:]


class Cutter:
    """The flows that end, what was seen of them last, and how often who was told."""

    def __init__(self, flows: list[list[Any]]) -> None:
        self.flows = flows
        self.known: dict[Way, Way] = {}
        self.last: dict[Way, Numbers] = {}
        self.told: dict[Way, int] = {}
        self.ears = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_IP))
        self.ears.setblocking(False)
        self.ears.setsockopt(socket.SOL_SOCKET, BUFFER_FORCED, BUFFER)
        self.mouth = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)

    def run(self, seconds: float) -> None:
        """Forget all, then watch for what is still on its way."""
        for flow in self.flows:
            if flow[0] == "tcp":
                self.known.update(ways(flow[1:]))
        for flow in self.flows:
            there, back = ways(flow[1:])
            forget(str(flow[0]), *there)
            self.listen(0)
            self.answer(there, back)
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.listen(left)
            self.answer(*self.last)

    def listen(self, seconds: float) -> None:
        """Note the last packet of each flow that is there, or comes in time."""
        if not select.select([self.ears], [], [], seconds)[0]:
            return
        with contextlib.suppress(BlockingIOError):
            while True:
                packet, (_, _, kind, *_) = self.ears.recvfrom(128)
                found = seen(packet) if kind != socket.PACKET_OUTGOING else None
                if found is not None and found[0] in self.known:
                    self.last[found[0]] = found[1]

    def answer(self, *ways_: Way) -> None:
        """End both ends of what was seen: who sent a packet expects what it acknowledges, whom it is for expects its
        first number when it was refused, and the one behind its last when it got through.
        """
        for way in ways_:
            if way in self.last:
                first, behind, acknowledged = self.last.pop(way)
                for sequence in {first, behind}:
                    self.tell(self.known[way], sequence, acknowledged)
                self.tell((way[1], way[0]), acknowledged, behind)

    def tell(self, way: Way, sequence: int, acknowledged: int) -> None:
        self.told[way] = self.told.get(way, 0) + 1
        if self.told[way] <= MOST:
            with contextlib.suppress(OSError):  # no way there any more: nobody to tell
                self.mouth.sendto(reset(way, sequence, acknowledged), (way[1][0], 0))


if __name__ == "__main__":
    Cutter(json.loads(sys.stdin.read())).run(float(sys.argv[1]))
