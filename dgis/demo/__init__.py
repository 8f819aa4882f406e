"""The main job shown on real images: a grid of its own, a stock DICOM client as the viewer, one provider lost.

May import localgrid and pynetdicom's public client side; must never reach into the services: all it sees, it sees as a
viewer does.
"""
