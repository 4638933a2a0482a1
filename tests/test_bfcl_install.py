"""Installing BFCL: what is said without it, and that a wheel with another hash is not used. No network."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from rcgrpo.environments.bfcl import install
from rcgrpo.environments.bfcl.suite import BfclSuite
from rcgrpo.errors import UserError


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RCGRPO_CACHE", str(tmp_path))


def _pip(monkeypatch, content: bytes | None) -> None:
    def run(command, **_):
        if content is None:
            return subprocess.CompletedProcess(command, 1, "", "ERROR: no network\n")
        folder = Path(command[command.index("--dest") + 1])
        (folder / f"bfcl_eval-{install.VERSION}-py3-none-any.whl").write_bytes(content)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(install.subprocess, "run", run)


def test_without_bfcl_the_cure_is_named():
    with pytest.raises(UserError, match="run `rcgrpo bfcl install`"):
        install.location()
    with pytest.raises(UserError, match="run `rcgrpo bfcl install`"):
        install.data_dir()
    assert len(BfclSuite().split().pools["test"]) == 160  # a split needs no data


def test_a_wheel_with_another_hash_is_not_unpacked(monkeypatch, tmp_path):
    _pip(monkeypatch, b"not the wheel")
    with pytest.raises(UserError, match="sha256"):
        install.install()
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == []


def test_a_failed_download_is_the_users_to_cure(monkeypatch):
    _pip(monkeypatch, None)
    with pytest.raises(UserError, match="no network"):
        install.install()


def test_a_verified_wheel_is_unpacked_once(monkeypatch, tmp_path):
    import hashlib
    import io
    import zipfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("bfcl_eval/__init__.py", "")
    _pip(monkeypatch, buffer.getvalue())
    monkeypatch.setattr(install, "WHEEL_SHA256", hashlib.sha256(buffer.getvalue()).hexdigest())
    assert install.install() == install.location() == tmp_path / f"bfcl-{install.VERSION}"
    _pip(monkeypatch, None)  # a second call needs no network
    assert install.install() == install.location()
    with pytest.raises(UserError, match="no network"):
        install.install(force=True)
    assert (install.location() / "bfcl_eval" / "__init__.py").exists()  # the old one stays until the new is there
