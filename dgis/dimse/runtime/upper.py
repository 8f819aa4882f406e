"""The upper layer of one association: pynetdicom's state machine, driven by poll() instead of sleeps."""

from __future__ import annotations

import contextlib
import queue
import select
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from pynetdicom.dul import DULServiceProvider
from pynetdicom.fsm import TRANSITION_TABLE, StateMachine
from pynetdicom.pdu import A_ABORT_RQ, P_DATA_TF
from pynetdicom.pdu_primitives import A_P_ABORT, P_DATA

from dgis.dimse.runtime.lenient import tidy_request
from dgis.dimse.runtime.sockets import P_DATA as P_DATA_TYPE
from dgis.dimse.runtime.sockets import GridSocket, PduRefused, PeerGone, Wakeup

if TYPE_CHECKING:
    from dgis.dimse.runtime.association import GridAssociation

_ASSOCIATE_RQ = 0x01
_DATA_STATES = frozenset(("Sta6", "Sta7"))
_ARTIM_STATES = frozenset(("Sta2", "Sta13"))
_LOCAL_EVENTS = frozenset(("Evt1", "Evt7", "Evt8", "Evt9", "Evt11", "Evt14", "Evt15"))
# How long a control PDU waits for a writer that is stuck before the connection is broken instead.
_TURN = 2.0


class WakingQueue(queue.Queue[Any]):
    """A queue that tells somebody, after each item was put, that there is one."""

    def __init__(self, put: Callable[[Any], None]) -> None:
        """Call `put(item)` after each put."""
        super().__init__()
        self._told = put

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Put, then tell."""
        super().put(item, block, timeout)
        self._told(item)


class GridStateMachine(StateMachine):
    """Upstream's PS3.8 table 9-10, except that an event the table does not know is passed over, not fatal.

    That happens when the user asks for something (a release, an abort) just as the peer ended the association.
    """

    def do_action(self, event: str) -> None:
        """Run the action for `event` in the current state."""
        if (event, self.current_state) in TRANSITION_TABLE:
            super().do_action(event)
        elif event in _LOCAL_EVENTS:
            with contextlib.suppress(queue.Empty):
                self.dul.to_provider_queue.get(False)


class GridDUL(DULServiceProvider):
    """The reading thread of one association."""

    socket: GridSocket | None

    def __init__(self, assoc: GridAssociation) -> None:
        """Not running yet; `start` is the association's business."""
        super().__init__(assoc)
        self._wakeup = Wakeup()
        self.state_machine = GridStateMachine(self)
        self.event_queue = WakingQueue(lambda _: self._wakeup.set())
        self.to_provider_queue = WakingQueue(lambda _: self._wakeup.set())
        self.to_user_queue = WakingQueue(assoc.indicated)
        self.daemon = True
        self._deaf = False
        self._polled: GridSocket | None = None
        self._poller: select.poll = select.poll()

    @property
    def assoc(self) -> GridAssociation:
        """The association this thread reads for."""
        return cast("GridAssociation", self._assoc)

    # --- for the association ---------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """The current state of PS3.8 section 9.2, "Sta1" to "Sta13"."""
        return str(self.state_machine.current_state)

    def wake(self) -> None:
        """Make the reading thread look around."""
        self._wakeup.set()

    def send_pdu(self, primitive: Any) -> None:
        """Queue a control primitive; write P-DATA at once from the calling thread, so that a slow peer slows it."""
        if isinstance(primitive, P_DATA):
            self.assoc.write(P_DATA_TF(primitive).encode())
        else:
            super().send_pdu(primitive)

    def kill_dul(self) -> None:
        """End the reading thread."""
        super().kill_dul()
        self._wakeup.set()

    def stop_dul(self) -> bool:
        """End the reading thread if nothing is open; never waits for it."""
        if self.state == "Sta1":
            self.kill_dul()
            return True
        return False

    # --- the reading thread ----------------------------------------------------------------------------------------

    def run_reactor(self) -> None:
        """Run until the transport connection is closed."""
        self._poller.register(self._wakeup.open(), select.POLLIN)
        self._idle_timer.start()
        self.assoc._dul_ready.set()
        try:
            while not self._kill_thread:
                self._step()
        except Exception as error:  # noqa: BLE001  the edge: whatever went wrong, the peer hears an abort and others go on
            self.assoc.user.failed(self.assoc, error)
            self._emergency()
        finally:
            self._finish()

    def _step(self) -> None:
        if self._run_event():
            return
        if self.state in _ARTIM_STATES and self.artim_timer.expired:
            self.state_machine.do_action("Evt18")
        elif not (self._take_pdu() or self._run_event()):
            self._wait()

    def _run_event(self) -> bool:
        """Run one queued event; a queued primitive of the user counts as one."""
        if not self.event_queue.queue:  # the deques themselves: no lock, no exception for what is nearly always so
            if not self.to_provider_queue.queue:
                return False
            self._process_recv_primitive()
        try:
            event = self.event_queue.get(block=False)
        except queue.Empty:
            return False
        self.state_machine.do_action(event)
        return True

    def _wait(self) -> None:
        """Sleep until the socket, another thread or a timer wants something."""
        sock = self.socket
        if sock is not None and self.state in _DATA_STATES and self.assoc.mid_message() and self._read(sock):
            return  # within a message the next bytes are there already, more often than not
        self._watch_socket()
        if sock is not None:
            sock.acknowledge()
        buffered = sock is not None and sock.pending()
        timeout = 0.0 if buffered else self._patience()
        ready = dict(self._poller.poll(None if timeout is None else max(timeout, 0.0) * 1000 + 1))
        self._wakeup.clear()
        fd = sock.socket.fileno() if sock is not None and sock.socket is not None else -1
        if sock is not None and (buffered or fd in ready):
            self._read(sock)
        else:
            self.assoc.tick()

    def _read(self, sock: GridSocket) -> bool:
        """Read once without waiting; False when nothing was there. The end of the connection is dealt with."""
        count = sock.fill()
        if count == 0:
            return False
        self._idle_timer.restart()
        if count < 0:
            self.assoc.interrupted()
            self.state_machine.do_action("Evt17")
        return True

    def _watch_socket(self) -> None:
        """Register the socket once it is connected."""
        sock = self.socket
        if sock is not None and self._polled is not sock and sock._is_connected and sock.socket is not None:
            self._poller.register(sock.socket.fileno(), select.POLLIN)
            self._polled = sock

    def _patience(self) -> float | None:
        """Return the seconds until the next timer, None when only the peer or the user can move us."""
        if self.state in _ARTIM_STATES:
            return float(self.artim_timer.remaining)
        return self.assoc.patience(idle=self._idle_timer)

    def _take_pdu(self) -> bool:
        """Deal with one whole PDU from the buffer; False when there is none."""
        sock = self.socket
        if sock is None or not sock.in_pdu:
            return False
        if self._deaf:
            sock.discard()
            return False
        try:
            pdu = sock.next_pdu()
            if pdu is None:
                return False
            self._dispatch(*pdu)
        except PduRefused:
            self._refuse_pdu()
        return True

    def _dispatch(self, pdu_type: int, body: memoryview) -> None:
        if pdu_type == P_DATA_TYPE:
            if self.state in _DATA_STATES:
                self.assoc.p_data(body)  # DT-2, AR-6
                return
            self._recv_pdu.put(P_DATA_TF())
            self.state_machine.do_action("Evt10")
            return
        whole = tidy_request(bytes(body)) if pdu_type == _ASSOCIATE_RQ else bytes(body)
        raw = bytes((pdu_type, 0)) + len(whole).to_bytes(4, "big") + whole
        try:
            pdu, event = self._decode_pdu(bytearray(raw))
        except Exception as error:  # anything from struct.error to RecursionError
            raise PduRefused("a PDU that cannot be decoded") from error
        self._recv_pdu.put(pdu)
        if event in ("Evt12", "Evt16"):
            self.assoc.interrupted()
        self.state_machine.do_action(event)

    def _refuse_pdu(self) -> None:
        """Evt19: abort, and listen to nothing more but the end of the connection (the stream is out of step)."""
        self._deaf = True
        self.assoc.interrupted()
        self.state_machine.do_action("Evt19")

    def _send(self, pdu: Any) -> None:
        """Write a control PDU between the P-DATA of others; break the connection when one of them is stuck."""
        sock = self.socket
        if sock is None:
            return
        with self.assoc.turn(_TURN) as mine:
            if mine:
                sock.send(pdu.encode())
            else:
                sock.hang_up()

    def _emergency(self) -> None:
        """Abort without the state machine, which is what failed."""
        sock = self.socket
        if sock is not None and sock.socket is not None:
            abort = A_ABORT_RQ()
            abort.source, abort.reason_diagnostic = 0x02, 0x00
            with contextlib.suppress(PeerGone), self.assoc.turn(_TURN) as mine:
                if mine:
                    sock.send_all(abort.encode())

    def _finish(self) -> None:
        self._kill_thread = True
        sock = self.socket
        if sock is not None:
            sock._ready.set()  # a requestor may still wait for the connection
            sock._shutdown_socket()
            sock.socket = None
        self.state_machine.current_state = "Sta1"
        self._wakeup.close()
        self.assoc.interrupted()
        gone = A_P_ABORT()
        gone.provider_reason = 0x00
        self.to_user_queue.put(gone)  # whoever waits for an answer need not wait longer
