"""Fetch the pinned ``bfcl-eval`` wheel into a cache directory of ours, and import its API classes from there.

The package pins old versions of common libraries and draws in several vendor SDKs, so it is never installed:
its wheel is unpacked, and only the modules that need no SDK (the eight API classes) are ever imported.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from functools import cache
from pathlib import Path

import platformdirs
from filelock import FileLock

from rcgrpo.errors import UserError

VERSION = "2026.3.23"
WHEEL_SHA256 = "3bb6dfa5f0c68ad403c9ec50b00db2bb3b4cc9b38ab1ff33f48fe30d853d3a0a"


def cache_root() -> Path:
    """Where downloads are kept: ``$RCGRPO_CACHE``, or the user's cache directory."""
    override = os.environ.get("RCGRPO_CACHE")
    return Path(override) if override else Path(platformdirs.user_cache_dir("rcgrpo"))


def _home() -> Path:
    return cache_root() / f"bfcl-{VERSION}"


def install(force: bool = False) -> Path:
    """Download, verify and unpack ``bfcl-eval``; returns :func:`location`. Does nothing where it is there already.

    Safe to call from several processes at once. Raises :class:`UserError` if pip cannot fetch the wheel or the
    wheel's SHA-256 is not the pinned one.
    """
    root = cache_root()
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f"bfcl-{VERSION}.lock"):
        if _home().is_dir() and not force:
            return _home()
        with tempfile.TemporaryDirectory(dir=root, prefix=".bfcl-") as scratch:
            wheel = _download(Path(scratch))
            unpacked = Path(scratch) / "unpacked"
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(unpacked)
            if _home().is_dir():
                shutil.rmtree(_home())
            os.replace(unpacked, _home())
    return _home()


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir"]
    command += ["--only-binary", ":all:", "--disable-pip-version-check", "--dest", str(folder)]
    command.append(f"bfcl-eval=={VERSION}")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(
            f"bfcl-eval=={VERSION} could not be downloaded with pip: {reason}. Check the network and retry."
        )
    wheel = next(folder.glob("*.whl"))
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != WHEEL_SHA256:
        raise UserError(
            f"the downloaded {wheel.name} has sha256 {digest}, expected {WHEEL_SHA256}: "
            "check which package index pip is configured to use"
        )
    return wheel


def location() -> Path:
    """The directory that holds the ``bfcl_eval`` package. Raises :class:`UserError` if it is not installed."""
    home = _home()
    if not (home / "bfcl_eval").is_dir():
        raise UserError("BFCL is not installed: run `rcgrpo bfcl install`")
    return home


def data_dir() -> Path:
    """The folder of BFCL's task files, function documents and gold answers."""
    return location() / "bfcl_eval" / "data"


@cache
def api_class(name: str) -> type:
    """One of BFCL's API classes, such as ``GorillaFileSystem``. The only place that imports from the package.

    The package creates result folders where ``BFCL_PROJECT_ROOT`` points as soon as its configuration is
    imported; these modules do not import it, and the variable keeps such folders inside our cache if they ever do.
    """
    home = str(location())
    if home not in sys.path:
        sys.path.insert(0, home)
    os.environ.setdefault("BFCL_PROJECT_ROOT", str(cache_root() / "bfcl-project"))
    paths = importlib.import_module("bfcl_eval.constants.executable_backend_config").CLASS_FILE_PATH_MAPPING
    return getattr(importlib.import_module(paths[name]), name)
