"""``python -m hefl.cli`` is ``hefl``."""

from hefl.cli.entry import main

main()
