"""``python -m netgraft``: the command line."""

from netgraft.cli.entry import main

main()
