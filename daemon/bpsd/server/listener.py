"""The listening socket: opened so that nobody else's is taken away, closed so that nothing stale stays behind.

Two ways lead to one `Listener`. systemd may have opened the socket for us (sd_listen_fds(3)); then it stays systemd's,
and clients that connect while no daemon runs wait for the next one. Otherwise it is bound by our own hand:

1. the folder is there (made with mode 0700 if not) and nobody else can replace what is in it;
2. ``PATH.lock`` is locked: of two daemons that start at once, one goes on;
3. what is at PATH is probed: a socket that answers is somebody's, one that does not is stale and removed, anything that
   is no socket is left alone;
4. the socket has its mode before it has a name, so there is no moment at which the wrong people may connect.

A cleaner of temporary folders, or a person, may remove or replace the socket while the daemon runs. `Listener.restore`
notices that, and goes through the same steps again.
"""

from __future__ import annotations

__all__ = ["Listener", "check_folder", "open_listener", "say_goodbye", "turn_away"]

import errno
import fcntl
import os
import socket
import stat
import threading
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bpsd import wire
from bpsd.config import SOCKET_MAX_BYTES
from bpsd.errors import CannotStart
from bpsd.logs import LogEvent
from bpsd.messages import Goodbye
from bpsd.peers import peer_of
from bpsd.protocol import ServerProtocol

BACKLOG = 1024
"""Clients that may wait to be accepted. A full queue refuses asynchronous clients at once (EAGAIN, connect(2))."""

NAMES_ASIDE = 1000
"""Files that stood in the socket's place are kept under at most this many names."""

_FIRST_ACTIVATED_FD = 3  # SD_LISTEN_FDS_START


class Listener:
    """A listening Unix socket. Its calls touch the file system: make them before the event loop, or in a thread.

    Parameters
    ----------
    listening : `socket.socket`
        It belongs to the listener from now on.
    path : `str`
        Where clients find it.
    lock_fd : `int`, optional
        The locked file that belongs to it; `None` for a socket that systemd opened.
    mode : `int`, optional
        The mode of a socket that we bound.
    log : `object`
        A logger.
    """

    def __init__(
        self, listening: socket.socket, path: str, *, lock_fd: int | None, mode: int = 0o600, log: Any
    ) -> None:
        self.socket = listening
        self.path = path
        self.activated = lock_fd is None
        """Whether systemd opened the socket."""
        self.fault = ""
        """Why clients cannot reach the socket at its path (empty: they can), as of the last `restore`."""
        self._lock_fd, self._mode = lock_fd, mode
        self._log = log
        self._guard = threading.Lock()  # held by `restore` and `stop_listening`, each in a thread of its own
        self._identity = _identity(path)
        self._folder_modes = _folder_modes(path)

    def __repr__(self) -> str:
        state = "closed" if self.socket.fileno() < 0 else "activated" if self.activated else "listening"
        return f"<Listener {self.path} {state}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def is_reachable(self) -> bool:
        """Whether PATH still leads to this socket: cleaners of temporary folders, or people, may have removed it."""
        if self.path.startswith("@"):  # an abstract name is no file
            return True
        return self._identity is not None and _identity(self.path) == self._identity

    def restore(self) -> socket.socket | None:
        """Bind the socket again if PATH does not lead to it any more; `fault` says why that could not be done.

        Returns
        -------
        old : `socket.socket` or `None`
            The socket that was replaced: clients may wait in it. The caller closes it.
        """
        with self._guard:
            if self.socket.fileno() < 0:
                return None
            if self.activated:
                self._report("" if self.is_reachable() else _lost_to_systemd(self.path))
                return None
            try:
                old = None if self.is_reachable() and self._has_lock() else self._bind_again()
            except CannotStart as error:
                self._report(f"clients cannot reach {self.path}: {error}")
                return None
            self._report("")
            return old

    def _bind_again(self) -> socket.socket | None:
        folder = Path(self.path).parent
        _make_folder(folder, self._folder_modes)
        if not self._has_lock():
            assert self._lock_fd is not None
            lock_fd = _lock(self.path)
            os.close(self._lock_fd)
            self._lock_fd = lock_fd
        if self.is_reachable():  # only the lock file was gone
            return None
        aside = _put_aside(self.path)
        _remove_stale(self.path)
        old, self.socket = self.socket, _bound(self.path, self._mode)
        self._identity = _identity(self.path)
        self._log.warning(LogEvent.SOCKET_BOUND_AGAIN, path=self.path, set_aside=aside)
        return old

    def _has_lock(self) -> bool:
        """Whether the file that we hold locked is still the one that another daemon would lock."""
        assert self._lock_fd is not None
        held = os.fstat(self._lock_fd)
        return _identity(f"{self.path}.lock") == (held.st_dev, held.st_ino)

    def _report(self, fault: str) -> None:
        if fault and fault != self.fault:
            self._log.error(LogEvent.SOCKET_UNREACHABLE, path=self.path, error=fault)
        self.fault = fault

    def stop_listening(self) -> None:
        """Accept nobody any more; the name is free, but the lock is kept until `close`."""
        with self._guard:
            if self.socket.fileno() < 0:
                return
            if not self.activated:
                if self.is_reachable():
                    Path(self.path).unlink()
                else:  # not ours to remove
                    self._log.warning(LogEvent.SOCKET_TAKEN_AWAY, path=self.path)
            self.socket.close()
        self._log.info(LogEvent.SOCKET_CLOSED, path=self.path)

    def close(self) -> None:
        """Give up socket, name and lock. The lock file stays: removing it would let two daemons hold "the" lock."""
        self.stop_listening()
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None


def open_listener(path: str, *, mode: int, environ: MutableMapping[str, str], log: Any) -> Listener:
    """Open the daemon's socket, or take the one that systemd opened.

    Parameters
    ----------
    path : `str`
        Where to listen, unless systemd says otherwise.
    mode : `int`
        Who may connect: 0o600 for one user, 0o660 for a group.
    environ : `~collections.abc.MutableMapping`
        The environment of the process; what systemd put there is taken out, since it is not meant for our children.
    log : `object`
        A logger.

    Raises
    ------
    CannotStart
        Raised if the socket cannot be opened; it says what is in the way and what to do about it.
    """
    activated = _activated_socket(environ)
    if activated is not None:
        listener = Listener(activated, _name_of(activated), lock_fd=None, log=log)
    else:
        listener = _bind(path, mode, log)
    log.info(LogEvent.SOCKET_OPENED, path=listener.path, activated=listener.activated)
    return listener


def say_goodbye(connected: socket.socket, goodbye: Goodbye) -> None:
    """Tell a client whom nobody will serve why; closing is the caller's."""
    protocol = ServerProtocol(max_message_bytes=wire.MAX_MESSAGE_BYTES)
    protocol.send_notification("goodbye", goodbye)
    try:
        connected.send(protocol.data_to_send())
    except OSError:  # it has left already
        pass


# -- opened by systemd -----------------------------------------------------------------------------------------------


def turn_away(message: str, environ: MutableMapping[str, str]) -> None:
    """Tell the clients who wait in a socket of systemd's that no daemon comes: each would have it start one again.

    Without such a socket nobody waits.
    """
    try:
        listening = _activated_socket(environ)
    except CannotStart:
        return
    if listening is None:
        return
    with listening:
        for _ in range(BACKLOG):
            try:
                connected, _ = listening.accept()
            except OSError:  # nobody waits any more
                return
            with connected:
                say_goodbye(connected, Goodbye(code="stopping", message=message))


def _activated_socket(environ: MutableMapping[str, str]) -> socket.socket | None:
    """The socket that systemd passed to this process, if it did."""
    pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    names = environ.pop("LISTEN_FDNAMES", "")
    if pid != str(os.getpid()) or count in ("", "0"):  # nothing, or meant for a process before us
        return None
    if count != "1":
        raise CannotStart(
            f"systemd passed {count} sockets ({names}), and the daemon listens on one",
            advice="leave one ListenStream= in the socket unit",
        )
    try:
        passed = socket.socket(fileno=_FIRST_ACTIVATED_FD)
    except OSError as error:
        raise CannotStart(
            f"file descriptor {_FIRST_ACTIVATED_FD}, which systemd should have passed, is no socket: {error.strerror}",
            advice="start the daemon by its units, or without LISTEN_FDS in its environment",
        ) from error
    listening = passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if passed.family != socket.AF_UNIX or passed.type != socket.SOCK_STREAM or not listening:
        passed.close()
        raise CannotStart(
            f"the socket that systemd passed ({names or 'without a name'}) is no listening Unix stream socket",
            advice="use ListenStream= with a path, and Accept=no, in the socket unit",
        )
    passed.set_inheritable(False)
    passed.setblocking(False)
    return passed


def _name_of(listening: socket.socket) -> str:
    name = listening.getsockname()
    return os.fsdecode(name).replace("\0", "@")


# -- bound by our own hand -------------------------------------------------------------------------------------------


def _bind(path: str, mode: int, log: Any) -> Listener:
    _check_path(path)
    _make_folder(Path(path).parent)
    lock_fd = _lock(path)
    try:
        if _remove_stale(path):
            log.info(LogEvent.SOCKET_STALE_REMOVED, path=path)
        return Listener(_bound(path, mode), path, lock_fd=lock_fd, mode=mode, log=log)
    except BaseException:
        os.close(lock_fd)
        raise


def _check_path(path: str) -> None:
    size = len(os.fsencode(path))
    if size > SOCKET_MAX_BYTES:
        raise CannotStart(
            f"the socket's path is {size} bytes long, and a Unix socket takes {SOCKET_MAX_BYTES}: {path}",
            advice="choose a shorter one with the setting socket or BPSD_SOCKET",
        )
    if not path.startswith("/") or "\0" in path:
        raise CannotStart(f"the socket's path is not absolute: {path!r}", advice="give the whole path")


def _make_folder(folder: Path, modes: Mapping[Path, int] | None = None) -> None:
    """Make the folder if it is missing; see that only we, or root, can put things there in our place.

    ``modes`` are those that the folder and its parents had before they were removed.
    """
    modes = modes or {}
    try:
        for missing in reversed([each for each in (folder, *folder.parents) if not each.exists()]):
            missing.mkdir(mode=0o700, exist_ok=True)
            if missing in modes:  # clients of other users must reach the socket as before
                missing.chmod(modes[missing])
    except OSError as error:
        raise _no_folder(folder, error) from error
    check_folder(folder)


def check_folder(folder: Path) -> None:
    """See that a folder that exists can hold the socket: only we, or root, can put things there in our place.

    Raises
    ------
    CannotStart
        If it cannot.
    """
    try:
        status = folder.stat()
    except OSError as error:
        raise _no_folder(folder, error) from error
    if not stat.S_ISDIR(status.st_mode):
        raise CannotStart(f"{folder} is not a directory (it should hold the socket)", advice="move it away")
    if status.st_uid not in (os.geteuid(), 0):
        raise CannotStart(
            f"the folder of the socket belongs to user {status.st_uid}, who could replace the socket: {folder}",
            advice="choose a folder of your own with the setting socket or BPSD_SOCKET",
        )
    if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
        raise CannotStart(
            f"everybody may write to the folder of the socket, and could replace it: {folder}",
            advice=f"chmod o-w {folder}",
        )


def _folder_modes(path: str) -> dict[Path, int]:
    """Return the mode of each folder that leads to a path."""
    modes = {}
    for folder in Path(path).parents:
        try:
            modes[folder] = stat.S_IMODE(folder.stat().st_mode)
        except OSError:  # it cannot be read: one that is made again gets our own mode
            continue
    return modes


def _lost_to_systemd(path: str) -> str:
    return (
        f"clients cannot reach {path}: it was removed or replaced, and systemd opened it; "
        "restart the socket unit (systemctl restart bpsd.socket, with --user in user mode)"
    )


def _put_aside(path: str) -> str | None:
    """Give what is at the path of our socket, and is no socket, another name; return that name."""
    try:
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            return None
        for number in range(1, NAMES_ASIDE + 1):
            aside = f"{path}.aside-{number}"
            if not os.path.lexists(aside):
                Path(path).rename(aside)
                return aside
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CannotStart(
            f"a file that is not a socket is in the place of {path} and cannot be renamed: {error.strerror}",
            advice="remove it: the daemon then binds its socket again",
        ) from error
    raise CannotStart(f"{NAMES_ASIDE} files are named {path}.aside-*", advice="remove them: the daemon then goes on")


def _no_folder(folder: Path, error: OSError) -> CannotStart:
    return CannotStart(
        f"the folder of the socket cannot be made or read: {folder}: {error.strerror}",
        advice="choose another place with the setting socket or BPSD_SOCKET",
    )


def _lock(path: str) -> int:
    """Lock ``PATH.lock``; return the file descriptor that holds the lock."""
    name = f"{path}.lock"
    try:
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise CannotStart(
            f"the socket's lock file cannot be opened: {name}: {error.strerror}",
            advice="see who owns it and its folder, or choose another place with the setting socket or BPSD_SOCKET",
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        if error.errno != errno.EWOULDBLOCK:
            raise CannotStart(f"the socket's lock file cannot be locked: {name}: {error.strerror}") from error
        raise _taken(path, _listener_pid(path)) from None
    return fd


def _taken(path: str, pid: int | None) -> CannotStart:
    who = f"process {pid}" if pid else "another process"
    return CannotStart(
        f"another daemon has the socket {path} ({who})",
        advice="use it, stop it first, or name another socket with the setting socket or BPSD_SOCKET",
        pid=pid,
    )


def _remove_stale(path: str) -> bool:
    """Make way at ``path`` if what is there is a socket that nobody listens on."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISSOCK(mode):
        raise CannotStart(f"what is at the socket's path is no socket: {path}", advice="move it away")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # connecting to a Unix socket succeeds or fails at once
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink()
            return True
        except BlockingIOError:  # somebody listens, and the queue is full
            raise _taken(path, None) from None
        except OSError as error:
            raise CannotStart(
                f"whether somebody listens on the socket {path} cannot be seen: {error.strerror}",
                advice="see who owns it, or name another socket with the setting socket or BPSD_SOCKET",
            ) from error
        raise _taken(path, peer_of(probe).pid)


def _listener_pid(path: str) -> int | None:
    """The process that listens on ``path``, if it can be asked."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
            return peer_of(probe).pid
        except OSError:
            return None


def _bound(path: str, mode: int) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.setblocking(False)
        # Linux gives the name the socket's own mode, less the umask (unix_bind in net/unix/af_unix.c): never too much,
        # and, other than by setting the umask, without a moment in which other threads' files are concerned.
        os.fchmod(listening.fileno(), mode)
        listening.bind(path)
        Path(path).chmod(mode)  # what the umask took
        listening.listen(BACKLOG)
        actual = stat.S_IMODE(os.lstat(path).st_mode)
    except OSError as error:
        listening.close()
        raise CannotStart(
            f"the socket {path} cannot be opened: {error.strerror}",
            advice="see that its folder can be written, or name another with the setting socket or BPSD_SOCKET",
        ) from error
    if actual != mode:
        listening.close()
        raise CannotStart(
            f"the socket {path} has mode {actual:04o} although it was given {mode:04o}",
            advice="name a socket on another file system with the setting socket or BPSD_SOCKET",
        )
    return listening


def _identity(path: str) -> tuple[int, int] | None:
    """What tells one file from another of the same name."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
