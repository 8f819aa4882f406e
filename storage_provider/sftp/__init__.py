"""The SFTP door: our channel to any SFTP server (`client`), and our own server that shows areas as files.

May import: the contract, `tree` (the server), paramiko (`client_transport` alone) and asyncssh (the server's rooms).
Must never know: HTTP, GridFTP, DICOM, the catalog. `client` imports no server library.
"""
