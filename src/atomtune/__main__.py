"""`python -m atomtune` is `atomtune`."""

from atomtune.cli import main

main()
