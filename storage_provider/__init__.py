"""Storage element (SE): keeps content-addressed objects safe and hands them out over several kinds of door.

What for: the channel contract every door speaks (`channel`), the transfer engine that fetches from several replicas
and stores with verification at the far side (`transfer`), the disk store, an area as files (`tree`), and both ends of
each kind of door (`gridftp`, `sftp`, `https`); `channels` opens any door, `node` serves those that are configured.
May import: certs (identity and authenticated HTTP), the standard library and the libraries named in design section 8.
Must never know: DICOM, studies, patients, the catalog, or dgis. An object is a key, a size and digests; nothing else.
`channel`, `transfer`, `channels` and `https.client` import no server library.
"""
