"""``python -m hefl.cli`` is ``hefl``."""

from hefl.cli.main import main

main()
