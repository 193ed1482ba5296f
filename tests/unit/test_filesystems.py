from __future__ import annotations

from pathlib import Path

import pytest

from bpsd import filesystems
from bpsd.filesystems import NETWORK_TYPES, file_system, network_mount

# The format is that of proc_pid_mountinfo(5).
MOUNTINFO = r"""
24 29 0:22 / /proc rw,nosuid,nodev,noexec,relatime shared:13 - proc proc rw
29 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro
97 29 0:50 / /home rw,relatime shared:60 - autofs systemd-1 rw,fd=42
98 97 0:51 /export/home /home rw,relatime shared:61 - nfs4 server:/export/home rw,vers=4.2
99 29 0:52 / /mnt/with\040space rw - fuse.sshfs op@host: rw,user_id=0
100 29 0:53 / /lustre rw - lustre mgs:/scratch rw
101 100 8:17 / /lustre/local rw master:2 propagate_from:3 - xfs /dev/sdb1 rw
102 29 0:54 / /homework rw - tmpfs tmpfs rw
a line of something else
"""


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/var/lib/bpsd", ("/", "ext4")),
        ("/home/op/.local/state/bpsd", ("/home", "nfs4")),
        ("/homework/bpsd", ("/homework", "tmpfs")),
        ("/mnt/with space/bpsd", ("/mnt/with space", "fuse.sshfs")),
        ("/lustre/op", ("/lustre", "lustre")),
        ("/lustre/local/op", ("/lustre/local", "xfs")),
        ("/lustre", ("/lustre", "lustre")),
    ],
)
def test_longest_and_latest_mount_wins(path: str, expected: tuple[str, str]) -> None:
    assert file_system(Path(path), MOUNTINFO) == expected


def test_nothing_covers_the_path() -> None:
    assert file_system(Path("/x"), "") == ("", "")


def test_names_of_network_file_systems() -> None:
    wanted = {"nfs", "nfs4", "cifs", "smb3", "lustre", "gpfs", "beegfs", "afs", "fuse.sshfs", "9p", "ceph"}

    assert wanted <= NETWORK_TYPES
    assert not {"ext4", "xfs", "btrfs", "tmpfs", "overlay", "zfs"} & NETWORK_TYPES


def test_links_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "link").symlink_to(real)
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text(f"1 0 0:1 / / rw - ext4 x rw\n2 1 0:2 / {real} rw - nfs server:/x rw\n")
    monkeypatch.setattr(filesystems, "MOUNTINFO", mountinfo)

    assert network_mount(tmp_path / "link") == (str(real), "nfs")
    assert network_mount(tmp_path) is None


def test_without_a_list_of_mounts_the_path_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystems, "MOUNTINFO", tmp_path / "none")

    assert network_mount(tmp_path) is None


def test_the_kernel_of_this_host_is_understood() -> None:
    point, kind = file_system(Path("/proc/self").absolute(), filesystems.MOUNTINFO.read_text())

    assert (point, kind) == ("/proc", "proc")
