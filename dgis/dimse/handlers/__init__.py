"""The operations of the edge: one module per service, and the dispatcher that knows them all.

May use: the services' protocols, the pure rooms of `dgis.dimse`, an association's public methods.
Must never know: pynetdicom, sockets, where instances lie.
"""
