"""The audit trail: what happened (``event``), as PS3.15 A.5 messages (``message``), in chained files (``journal``).

``trail`` reads them again: whether the chain is whole, and what it says. No image, no patient, no query key is ever
in it: studies are named by Study Instance UID alone.
"""
