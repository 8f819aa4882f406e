"""Moving objects between a local file and storage elements: what to ask of whom (`plan`, pure), by which door
(`route`), and the doing (`engine`). Knows plain sources and channels; knows no catalog, no HTTP and no TLS.
"""
