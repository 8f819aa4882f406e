"""Who may do what in a virtual organisation: one readable policy, decided purely.

``policy`` holds the values and the decision, ``file`` reads the TOML file, ``explain`` says in words why. Nothing here
opens a socket or a database; the catalog keeps the policy in force and asks.
"""
