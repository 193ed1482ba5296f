"""What the client reads of a workflow's file: all of a file or a pipe, and nothing of a device without an end."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from bpsd import wire
from bpsd.cli import documents
from bpsd.cli.documents import read_document
from bpsd.client.failures import ClientError


def test_a_device_is_refused_at_once() -> None:
    with pytest.raises(ClientError, match="/dev/zero: it is a device, not a file"):
        read_document("/dev/zero")


def test_nothing_is_empty() -> None:
    with pytest.raises(ClientError, match="is empty"):
        read_document("/dev/null")


def test_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(b"name: x\n" * 100_000,))
    writer.start()
    data, source = read_document(str(pipe))
    writer.join()
    assert (len(data), source) == (800_000, str(pipe))


def test_what_is_too_long_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "DOCUMENT_BYTES", 10)
    file = tmp_path / "w.yaml"
    file.write_bytes(b"x" * 11)
    with pytest.raises(ClientError, match="longer than 10 bytes"):
        read_document(str(file))


def test_relative_folders_of_the_environment_are_ignored() -> None:
    """As the XDG Base Directory Specification says."""
    environ = {"HOME": "/h", "XDG_RUNTIME_DIR": "run", "XDG_STATE_HOME": "state"}
    assert wire.default_socket(environ, 4_000_000) == "/h/.local/state/bpsd/bpsd.sock"
    assert wire.xdg({"XDG_STATE_HOME": "/s"}, "XDG_STATE_HOME") == "/s"
