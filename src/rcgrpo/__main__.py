"""``python -m rcgrpo``."""

from rcgrpo.cli import main

main()
