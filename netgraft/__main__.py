"""``python -m netgraft``: the command line."""

from netgraft.cli.main import main

main()
