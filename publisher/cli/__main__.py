"""`python -m publisher.cli` is `edgewright`."""

from publisher.cli.main import main

main()
