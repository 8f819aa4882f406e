"""The GridFTP client: control connections, data connections, and the channel over them.

What for: reaching gsiftp doors, our own and those of the Grid Community Toolkit (GCT), with everything encrypted and
nobody's key delegated. May import: the channel contract, the sans-I/O rooms of gridftp, certs. Must never know: the
server's rooms, the disk store, studies, patients, the catalog.
"""
