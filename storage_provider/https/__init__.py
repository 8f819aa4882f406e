"""The HTTPS door: `client` is the channel, `app` the service; both speak `storage_provider.wire` (see PROTOCOL.md).

`client` imports no server library. `app` imports FastAPI and never the client.
"""
