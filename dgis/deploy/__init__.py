"""A site from one file: guests, NAT, firewall, routes, service files, Ansible variables and the exception sheet.

The core is pure: `sitefile` reads the YAML, `topology` resolves it, `flows` says who must reach whom, `plan` what one
host has to do for that, and every renderer turns these values into the text of one tool. `host` and the commands above
it are the thin edge that runs nft, conntrack, haproxy, virsh, xl and ssh. May import the services' `config`, nothing
else of them; must never know what the services do with what they are given.
"""
