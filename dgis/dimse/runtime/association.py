"""One association: the thread that runs its long operations, and the one lock that orders what is written."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol, cast

from pynetdicom import evt
from pynetdicom._globals import MODE_ACCEPTOR
from pynetdicom.association import Association
from pynetdicom.pdu import P_DATA_TF
from pynetdicom.pdu_primitives import A_ABORT, A_P_ABORT, A_RELEASE
from pynetdicom.timer import Timer

from dgis.dimse import command as dimse
from dgis.dimse.command import Command, CommandError
from dgis.dimse.limits import Timeouts
from dgis.dimse.messages import Assembler, Message, Sink
from dgis.dimse.negotiation import Context, Rejection, Request, Verdict
from dgis.dimse.runtime.acse import GridACSE
from dgis.dimse.runtime.sockets import PduRefused, PeerGone
from dgis.dimse.runtime.upper import GridDUL

if TYPE_CHECKING:
    from dgis.dimse.runtime.entity import GridAE

_WAITING_ANSWERS = 512  # responses read ahead of whoever asked for them
_WAITING_REQUESTS = 8  # requests a peer may send ahead although it negotiated no asynchronous window


class AssociationUser(Protocol):
    """What serves an association. `reading` methods are called in the reading thread and must be quick."""

    def admit(self, association: GridAssociation, request: Request) -> Rejection | None:
        """Take an association slot, or say why not."""

    def negotiate(self, association: GridAssociation, request: Request) -> Verdict:
        """Answer each proposed context and the negotiation items."""

    def open_sink(self, association: GridAssociation, context: Context, command: Command) -> Sink | None:
        """Reading: return where the data set of this request goes, None to collect it."""

    def quick(self, association: GridAssociation, message: Message) -> bool:
        """Reading: deal with a message that needs no thread; False to have `serve` called with it."""

    def serve(self, association: GridAssociation, message: Message) -> None:
        """Run one operation to its final response."""

    def interrupted(self, association: GridAssociation) -> None:
        """The association is over or ending; a running operation should stop. May be called more than once."""

    def tick(self, association: GridAssociation) -> float | None:
        """Reading: do what is due; return the seconds until the next time, None for never."""

    def releasing(self, association: GridAssociation) -> None:
        """The peer asked for release; the answer is sent when this returns."""

    def failed(self, association: GridAssociation, error: BaseException) -> None:
        """A thread of the association ended by an exception."""

    def ended(self, association: GridAssociation) -> None:
        """Nothing more happens on this association."""


class GridAssociation(Association):
    """An association that sleeps unless there is something to do.

    As acceptor it serves its `user`. As requestor it belongs to the thread that made it: responses arrive in
    `dimse.msg_queue`, which nobody else reads (the cause of lost responses upstream), as `Message` when `raw`, else as
    pynetdicom's primitives so that its `send_c_*` methods work.
    """

    dul: GridDUL
    ae: GridAE

    def __init__(self, ae: GridAE, mode: str, *, user: AssociationUser, raw: bool = True) -> None:
        """Not connected, not started."""
        self.user = user
        self.timeouts: Timeouts = ae.timeouts
        self.raw = raw or mode == MODE_ACCEPTOR
        self.over = threading.Event()
        self._turn = threading.Lock()
        super().__init__(ae, mode)
        self.acse = GridACSE(self)
        self.dul = GridDUL(self)
        self.acse_timeout = self.timeouts.acse
        self.dul.artim_timer.timeout = self.timeouts.close
        self.network_timeout = self.timeouts.idle
        # One queue with upstream's name for it: its state machine wakes us through it, its SCU methods read it.
        self.inbox: queue.Queue[tuple[int | None, Message | None]] = cast(Any, self.dimse.msg_queue)
        self.session: Any = None  # whatever the user wants to remember
        self.farewell: Callable[[GridAssociation], None] | None = None
        self.assembler = Assembler(self, max_data=ae.max_identifier)
        self.contexts: dict[int, Context] = {}
        self.tls = False
        self.certificate = ""  # subject DN of the verified peer, on TLS
        self.trouble = ""  # as requestor: why TLS could not be set up
        self._is_paused = True  # upstream's SCU methods wait for this: no reactor competes with them here

    def _bind_defaults(self) -> None:
        """Bind no handlers: they would log identifiers, which are patient data."""
        if self.mode != MODE_ACCEPTOR:
            for event in evt._INTERVENTION_EVENTS:
                self.bind(event, evt.get_default_handler(event))

    # --- as acceptor ---------------------------------------------------------------------------------------------

    def run_reactor(self) -> None:
        """Negotiate, then serve until release, abort or a broken connection."""
        try:
            self._serve_association()
        except Exception as error:  # noqa: BLE001  the edge: one association may die of anything, others go on
            self.user.failed(self, error)
            self.abort(block=False)
        finally:
            self.is_established = False
            self.interrupted()
            self.user.ended(self)
            if self.farewell is not None:
                self.farewell(self)

    def _serve_association(self) -> None:
        self.dul.start()
        primitive: Any = self.dul.receive_pdu(wait=True, timeout=self.timeouts.acse)
        if primitive is None or isinstance(primitive, (A_ABORT, A_P_ABORT, A_RELEASE)):
            self.kill()
            return
        self.requestor.primitive = primitive
        self.acse.negotiate_association()
        while self.is_established:
            _, message = self.inbox.get()
            if message is not None:
                self.user.serve(self, message)
            else:
                self._take_indication()

    def _take_indication(self) -> None:
        primitive: Any = self.dul.receive_pdu(wait=False)
        if isinstance(primitive, A_RELEASE) and primitive.result is None:
            self.user.releasing(self)
            self.acse.send_release(is_response=True)
            self.is_released, self.is_established = True, False
        elif isinstance(primitive, (A_ABORT, A_P_ABORT)):
            self.is_aborted, self.is_established = True, False

    # --- from the reading thread -----------------------------------------------------------------------------------

    def indicated(self, primitive: Any) -> None:
        """Wake whoever waits for a message when the association ends."""
        if isinstance(primitive, (A_ABORT, A_P_ABORT)) or (isinstance(primitive, A_RELEASE) and not primitive.result):
            self.inbox.put((None, None))

    def p_data(self, body: memoryview) -> None:
        """Take one P-DATA-TF; raise PduRefused when it breaks the rules."""
        try:
            if self.raw:
                self.assembler.feed(body)
            else:
                self._upstream_p_data(body)
        except CommandError as error:
            raise PduRefused(str(error)) from error

    def _upstream_p_data(self, body: memoryview) -> None:
        pdu = P_DATA_TF()
        pdu.decode(b"\x04\x00" + len(body).to_bytes(4, "big") + bytes(body))
        self.dimse.receive_primitive(pdu.to_primitive())

    def accepted(self, context_id: int) -> bool:
        """Say whether this presentation context was accepted."""
        return context_id in self.contexts

    def open_sink(self, context_id: int, command: Command) -> Sink | None:
        """Ask the user where a data set goes."""
        return self.user.open_sink(self, self.contexts[context_id], command)

    def received(self, message: Message) -> None:
        """Deal with a message here, or leave it to the association's thread."""
        if self.is_acceptor and self.user.quick(self, message):
            return
        if self.is_requestor:
            self._await_reader()
        elif self.inbox.qsize() >= _WAITING_REQUESTS:
            raise CommandError("more requests at once than negotiated")
        self.inbox.put((message.context_id, message))

    def _await_reader(self) -> None:
        """Let a peer that answers faster than its answers are read wait, in TCP, for our reader."""
        deadline = time.monotonic() + self.timeouts.dimse
        while self.inbox.qsize() >= _WAITING_ANSWERS:
            if self._sent_abort or time.monotonic() > deadline:
                raise CommandError("answers that nobody reads")
            time.sleep(0.002)

    def interrupted(self) -> None:
        """The association ends: nothing half received is kept, a running operation stops."""
        self.over.set()
        if threading.current_thread() is self.dul or not self.dul.is_alive():
            self.assembler.abort()
        self.user.interrupted(self)

    def patience(self, *, idle: Timer) -> float | None:
        """Return the seconds until the reading thread has to look at the clock."""
        due = self.user.tick(self)
        if due is not None:
            idle.restart()  # an operation runs: it is not the peer's turn
            return due
        idle.timeout = self.timeouts.stall if self.mid_message() else self.timeouts.idle
        return float(idle.remaining)

    def tick(self) -> None:
        """End an association whose peer has been silent for too long while it was its turn."""
        if self.is_established and self.user.tick(self) is None and self.dul.idle_timer_expired():
            self.acse.send_ap_abort(0x00)
            self.is_aborted = True
            silent = A_P_ABORT()
            silent.provider_reason = 0x00
            self.dul.to_user_queue.put(silent)

    def mid_message(self) -> bool:
        """Whether more of a message or PDU must come."""
        sock = self.dul.socket
        return self.assembler.in_message or (sock is not None and sock.in_pdu)

    # --- writing -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def turn(self, timeout: float = -1) -> Iterator[bool]:
        """Hold the connection's write side; yields False when it stayed taken for `timeout` seconds."""
        mine = self._turn.acquire(timeout=timeout)
        try:
            yield mine
        finally:
            if mine:
                self._turn.release()

    def write(self, pdu: bytes | memoryview) -> None:
        """Write one P-DATA-TF. Raises PeerGone when the association is not open for data."""
        with self.turn():
            self.write_in_turn(pdu)

    def write_in_turn(self, pdu: bytes | memoryview) -> None:
        """Like `write`, for a caller that holds the turn over a whole message."""
        sock = self.dul.socket
        # Sta3 is seen for a moment by an acceptor that writes right after its A-ASSOCIATE-AC was queued.
        if sock is None or self.dul.state not in ("Sta6", "Sta8"):
            raise PeerGone("the association is over")
        sock.send_all(pdu)

    def send_message(self, context_id: int, command: bytes, data: bytes | None = None) -> None:
        """Write one DIMSE message of which both parts are in memory. Raises PeerGone."""
        parts = list(dimse.p_data(context_id, command, is_command=True, max_pdu=self.peer_max_pdu))
        if data is not None:
            parts += dimse.p_data(context_id, data, is_command=False, max_pdu=self.peer_max_pdu)
        whole = b"".join(parts)
        with self.turn():
            self.write_in_turn(whole)

    def send_messages(self, context_id: int, command: bytes, data_sets: list[bytes]) -> None:
        """Write the same command with each data set, as whole messages in one go. Raises PeerGone."""
        head = b"".join(dimse.p_data(context_id, command, is_command=True, max_pdu=self.peer_max_pdu))
        out = bytearray()
        for data in data_sets:
            out += head
            for pdu in dimse.p_data(context_id, data, is_command=False, max_pdu=self.peer_max_pdu):
                out += pdu
        if out:
            with self.turn():
                self.write_in_turn(bytes(out))

    @property
    def peer_max_pdu(self) -> int:
        """The longest P-DATA-TF the peer takes; 0 when it named no limit."""
        peer = self.acceptor if self.is_requestor else self.requestor
        return int(peer.maximum_length or 0)

    # --- ending ------------------------------------------------------------------------------------------------------

    def request(self) -> None:
        """Connect and negotiate; look at `is_established` afterwards. Never raises for what the peer does."""
        self.dul.start()
        self._started_dul = True
        self.acse.negotiate_association()

    def release(self) -> None:
        """Release as the requestor, waiting at most the ACSE timeout for the answer."""
        if self.is_established:
            self.acse.negotiate_release()
            self.dul.join(self.timeouts.close)

    def abort(self, block: bool = True) -> None:
        """Send an A-ABORT and break the connection soon after. Safe to repeat, safe from any thread."""
        if self._sent_abort or self.is_released:
            return
        self._sent_abort = True
        self.acse.send_abort(0x00)
        if block:
            self._hang_up(grace=0.2)

    def _hang_up(self, *, grace: float) -> None:
        """Give the A-ABORT a moment to leave, then end the reading thread."""
        if threading.current_thread() is self.dul or not self.dul.is_alive():
            return
        deadline = time.monotonic() + grace
        while self.dul.state not in ("Sta13", "Sta1") and time.monotonic() < deadline:
            self.dul.join(0.01)
        if (sock := self.dul.socket) is not None:
            sock.hang_up()
        self.dul.join(1.0)

    def kill(self) -> None:
        """End the association without another word; never blocks on its own threads."""
        self._kill = True
        self.is_established = False
        sock = self.dul.socket
        if self.is_requestor and sock is not None and self.dul.state != "Sta13":
            sock.hang_up()
        self.dul.wake()
