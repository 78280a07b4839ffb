"""Can the command line be run as a module? ``python -m tritoncrf``, as `torchrun` wants it."""

from tritoncrf.cli import command

if __name__ == "__main__":
    raise SystemExit(command())
