"""The DICOM Conformance Statement (PS3.2), written from what negotiation and the handlers themselves use.

`facts` asks negotiation, `queries` asks the reading of identifiers, `statement` puts their answers together with a
node's configuration, `render` makes Markdown and HTML of it with the texts in `templates`. No list of SOP classes,
transfer syntaxes, statuses or keys is kept here: a second list would drift.
May import: the pure rooms of `dgis.dimse`, `dgis.config`, Jinja2, markdown-it. Must never know: sockets, services.
"""
