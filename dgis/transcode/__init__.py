"""Re-encode stored instances for a receiver that does not take their transfer syntax, PS3.5 annex A.

`plan` says whether and how; `pool` has it done by a worker process with a limit of time and memory, so that a hostile
codestream can neither hang nor crash a receiver; `convert` is what the worker runs: element by element and frame by
frame, memory holds one frame. Nothing is ever encoded lossily, and the stored bytes are not touched.
May import: pydicom, numpy and the codecs behind pydicom. Must never know: associations, the spool, the catalog.
"""
