"""Fixtures that every room's tests may use."""

from __future__ import annotations

from hypothesis import settings

# Time per example says how busy the machine is; what hangs meets pytest's own limit
settings.register_profile("dgis", deadline=None)
settings.load_profile("dgis")

pytest_plugins = ["tests.helpers.pki"]
