"""The command line, installed as ``netgraft.cli``."""
