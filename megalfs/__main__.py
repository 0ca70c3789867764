"""`python -m megalfs` is `megalfs`."""

from megalfs.cli.main import entry

entry()
