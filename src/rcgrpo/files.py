"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_text(path: Path, text: str, errors: str = "strict") -> None:
    """Write UTF-8 text through a temporary file beside it and a rename; folders that are missing are made.

    The temporary file's name holds the process, so that two sessions that write one file do not mix its halves.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8", errors=errors)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
