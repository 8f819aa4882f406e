"""Authenticated HTTPS: the server harness, the one requests factory and RFC 9457 problems.

For: mutual TLS with the verified identity handed to the application, limits, health and metrics.
May import: the rest of ``certs``; ``server`` imports FastAPI and uvicorn, ``session`` and ``problem`` never do.
Must never know: what the routes behind it are about.
"""
