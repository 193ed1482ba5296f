"""Files that somebody may have replaced with another thing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bpsd_adapters.files import open_regular, read_limited, read_tail


def test_only_regular_files_are_opened_and_nothing_waits(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "fifo")
    for name in ("link", "fifo", "nothing", "."):
        with pytest.raises(OSError, match=r"symbolic link|regular|No such|directory"):
            os.close(open_regular(tmp_path / name))
    for device in ("/dev/zero", "/dev/tty"):
        with pytest.raises(OSError, match=r"regular|No such"):
            os.close(open_regular(device, follow=True))
    assert read_limited(tmp_path / "link", 10, follow=True) == b"0123456789"


def test_reading_has_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")

    assert read_limited(path, 10) == b"0123456789"
    with pytest.raises(OSError, match="larger than 9 bytes"):
        read_limited(path, 9)
    assert (read_tail(path, 3), read_tail(path, 30)) == (b"789", b"0123456789")
