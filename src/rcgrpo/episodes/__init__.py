"""Station 1: what is passed along. Types and their storage; imports nothing of the other stations."""
