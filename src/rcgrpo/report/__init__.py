"""The report station: a finished (or unfinished) run directory as one HTML page, and its table for the terminal."""
