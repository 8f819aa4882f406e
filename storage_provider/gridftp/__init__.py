"""The GridFTP door (RFC 959, RFC 2228, GFD.20, GFD.47): client and server in pure Python, over sans-I/O rooms.

What for: institutions that run GridFTP and have firewall agreements for it. Control and data channels are always
authenticated and private; identities are the grid's, judged by our own trust (chain, CRL) at both ends.
May import: the channel contract, Tree (server) and certs; sockets and TLS only in `client` and `server`.
Must never know: studies, patients, the catalog.
"""
