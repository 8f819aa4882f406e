"""Tell when pynetdicom changes what `dgis.dimse.runtime` builds on: its private names, and behaviour we replace."""

from __future__ import annotations

import inspect

import pydicom._uid_dict
import pynetdicom
import pytest
from pynetdicom import _globals, acse, association, dul, evt, fsm, pdu, timer, transport

from dgis.dimse.runtime.acse import GridACSE
from dgis.dimse.runtime.association import GridAssociation
from dgis.dimse.runtime.entity import GridAE
from dgis.dimse.runtime.sockets import GridSocket
from dgis.dimse.runtime.upper import GridDUL, GridStateMachine


def test_the_version_is_the_one_we_know() -> None:
    assert pynetdicom.__version__.startswith("3.0.")


@pytest.mark.parametrize(
    ("ours", "base", "names"),
    [
        (GridSocket, transport.AssociationSocket, {"connect", "send", "_shutdown_socket"}),
        (GridDUL, dul.DULServiceProvider, {"run_reactor", "send_pdu", "kill_dul", "stop_dul", "_send", "assoc"}),
        (GridStateMachine, fsm.StateMachine, {"do_action"}),
        (GridACSE, acse.ACSE, {"_negotiate_as_acceptor", "_negotiate_as_requestor", "assoc"}),
        (
            GridAssociation,
            association.Association,
            {"run_reactor", "request", "release", "abort", "kill", "_bind_defaults"},
        ),
        (GridAE, pynetdicom.AE, set()),
    ],
)
def test_what_we_override_exists_upstream(ours: type, base: type, names: set[str]) -> None:
    assert issubclass(ours, base)
    for name in names:
        assert name in vars(ours), name
        assert hasattr(base, name), name
        if inspect.isfunction(vars(base).get(name)):
            upstream = list(inspect.signature(getattr(base, name)).parameters)
            assert list(inspect.signature(getattr(ours, name)).parameters)[: len(upstream)] == upstream, name


def test_private_names_we_read() -> None:
    source = {
        dul.DULServiceProvider: ("_idle_timer", "artim_timer", "_kill_thread", "_recv_pdu", "to_user_queue"),
        association.Association: ("_dul_ready", "_sent_abort", "_accepted_cx", "_rejected_cx", "_is_paused", "_kill"),
        transport.AssociationSocket: ("_ready", "_is_connected"),
        association.ServiceUser: ("_ae_title", "primitive"),
    }
    for owner, names in source.items():
        text = inspect.getsource(owner.__init__)
        for name in names:
            assert f"self.{name}" in text, f"{owner.__name__}.{name}"
    for name in ("_decode_pdu", "_process_recv_primitive", "peek_next_pdu", "receive_pdu"):
        assert hasattr(dul.DULServiceProvider, name)
    assert _globals.MODE_ACCEPTOR == "acceptor" and _globals.MODE_REQUESTOR == "requestor"
    assert evt._INTERVENTION_EVENTS and evt.get_default_handler(evt.EVT_C_ECHO)
    assert isinstance(timer.Timer(1).remaining, (int, float))
    assert pydicom._uid_dict.UID_dictionary["1.2.840.10008.1.1"][1] == "SOP Class"


def test_the_state_machine_is_the_standards() -> None:
    assert fsm.TRANSITION_TABLE["Evt10", "Sta6"] == "DT-2"  # replaced by GridDUL._dispatch
    assert fsm.TRANSITION_TABLE["Evt10", "Sta7"] == "AR-6"
    assert fsm.TRANSITION_TABLE["Evt19", "Sta6"] == "AA-8"
    assert {pdu.P_DATA_TF().pdu_type, pdu.A_ABORT_RQ().pdu_type} == {4, 7}


def test_upstreams_scu_methods_work_on_our_runtime(edge: object) -> None:
    """`raw=False` is what the operators' tools will use: pynetdicom's send_c_* over our threads."""
    from dgis.dimse.limits import PeerAddress, Timeouts
    from dgis.dimse.runtime.entity import Proposal
    from dgis.dimse.scu import NobodyServed

    ae = GridAE("TOOL", timeouts=Timeouts(connect=2, acse=3, dimse=5))
    peer = PeerAddress("DGIS", "127.0.0.1", edge.port)  # type: ignore[attr-defined]
    proposals = [
        Proposal("1.2.840.10008.1.1", ("1.2.840.10008.1.2",)),
        Proposal("1.2.840.10008.5.1.4.1.2.2.1", ("1.2.840.10008.1.2.1",)),
    ]
    one = ae.open(peer, proposals, user=NobodyServed(), raw=False)
    assert one.is_established
    assert one.send_c_echo().Status == 0
    edge.search.rows = [{"StudyInstanceUID": str(i)} for i in range(50)]  # type: ignore[attr-defined]
    query = pydicom.Dataset()
    query.QueryRetrieveLevel = "STUDY"
    query.StudyInstanceUID = ""
    found = [s.Status for s, _ in one.send_c_find(query, "1.2.840.10008.5.1.4.1.2.2.1")]
    assert found == [0xFF00] * 50 + [0]
    one.release()
    assert one.is_released and not one.dul.is_alive()
