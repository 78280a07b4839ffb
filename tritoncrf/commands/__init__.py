"""What does each command do? One module a command, with ``run(arguments)``, and what they share.

`tritoncrf.cli` knows the flags and imports a command's module only when it runs.
"""
