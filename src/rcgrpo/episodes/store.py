"""Episodes on disk: JSON lines, one episode a line, gzip-compressed where the name ends in ``.gz``.

The format is documented in docs/episodes.md. Reading is lazy; writing goes to a temporary file that is
renamed when complete, so that a reader never sees half a file.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, cast

from pydantic import ValidationError

from rcgrpo.episodes.types import Episode
from rcgrpo.errors import UserError


def write_episodes(path: Path, episodes: Iterable[Episode]) -> int:
    """Write episodes to ``path`` (``.jsonl`` or ``.jsonl.gz``); return how many."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    count = 0
    # mtime=0 keeps the bytes of a compressed file a function of its content alone
    raw = partial.open("wb")
    stream = cast(IO[bytes], gzip.GzipFile("", "wb", fileobj=raw, mtime=0)) if path.suffix == ".gz" else raw
    try:
        with raw, stream:
            for episode in episodes:
                stream.write(episode.model_dump_json().encode() + b"\n")
                count += 1
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return count


def read_episodes(path: Path) -> Iterator[Episode]:
    """Yield the episodes of a file written by :func:`write_episodes`.

    Raises :class:`UserError` naming file and line where one is missing or damaged.
    """
    if not path.is_file():
        raise UserError(f"no episode file at {path}")
    complete = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as lines:
            for line in lines:
                yield Episode.model_validate_json(line)
                complete += 1
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "line"
        raise UserError(f"{path}, line {complete + 1}: {where}: {first['msg']}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: damaged after line {complete}: {error}") from error
