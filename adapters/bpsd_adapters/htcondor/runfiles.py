"""The files of one run on the submit host, read as they grow: DAG files once, event logs by offset."""

from __future__ import annotations

__all__ = ["Room", "RunFiles", "sizes_of"]

import math
import posixpath
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import anyio.to_thread
import msgspec

from bpsd.errors import LimitExceeded
from bpsd.models import WmsStates
from bpsd_adapters.htcondor.dagfile import DagShape, parse_dag, parse_node_status, parse_rescue
from bpsd_adapters.htcondor.dagmanout import dagman_errors
from bpsd_adapters.htcondor.eventlog import EventReader
from bpsd_adapters.htcondor.hostclock import HostClock
from bpsd_adapters.htcondor.jobstate import JobstateReader
from bpsd_adapters.htcondor.tracker import RunTracker
from bpsd_adapters.transports.base import Transport

PIECE_BYTES = 4 * 1024 * 1024
MAX_DAG_BYTES = 512 * 1024 * 1024
MAX_SUBDAGS = 10_000

FEW_FILES = 4
"""So many are looked at one by one; for more, one program is asked about all of them."""

FILES_PER_CALL = 400

TAIL_BYTES = 128 * 1024
"""How much of the end of DAGMan's output is searched for its errors."""

LAZY = "wms_lazy"
"""How ctrl_bps_htcondor names a node whose DAG file holds a placeholder until a job of the run has written it."""

_RESCUE = re.compile(r"\.rescue\d{3}")
"""What DAGMan reads again; one that somebody ran over with ``-f`` is ``.rescue001.old``."""


async def sizes_of(transport: Transport, paths: Sequence[str], deadline_s: float) -> dict[str, int]:
    """The sizes of files, of as many as can be told at once; what is missing here may be there all the same."""
    sizes: dict[str, int] = {}
    if len(paths) <= FEW_FILES:
        return sizes
    for start in range(0, len(paths), FILES_PER_CALL):
        argv = ["stat", "-L", "--printf=%s %n\\0", "--", *paths[start : start + FILES_PER_CALL]]
        said = (await transport.run(argv, deadline_s=deadline_s)).stdout.decode(errors="surrogateescape")
        for size, _, path in (line.partition(" ") for line in said.split("\0")):
            if size.isdecimal():
                sizes[path] = int(size)
    return sizes


class Room:
    """How much may still be read: bytes of logs, and until when by `time.monotonic`."""

    def __init__(self, read_bytes: float = math.inf, until: float = math.inf) -> None:
        self.left = read_bytes
        self.until = until

    @property
    def is_used_up(self) -> bool:
        """Whether to stop here, and go on in the next poll."""
        return self.left <= 0 or time.monotonic() >= self.until


class _Log(msgspec.Struct):
    """One log: how its events are read and taken in, and how far it was read."""

    path: str
    feed: Callable[[bytes], list[Any]]
    take: Callable[[list[Any]], None]
    offset: int = 0


class _Group(msgspec.Struct):
    """A DAG inside the run: its file, the folder it runs in, and the submission with which the file was read."""

    path: str
    folder: str
    read_at: int = 0


class RunFiles:
    """What the files of a run tell.

    Parameters
    ----------
    transport : `~bpsd_adapters.transports.base.Transport`
        To the submit host.
    dag : `str`
        Path of the DAG file there.
    clock : `~bpsd_adapters.htcondor.hostclock.HostClock`
        Of that host.
    cluster : `int`
        That of the run's DAGMan.
    """

    def __init__(self, transport: Transport, dag: str, clock: HostClock, cluster: int) -> None:
        self._transport = transport
        self._dag = dag
        self._clock = clock
        self._cluster = cluster
        self._logs: list[_Log] = []
        self.tracker = RunTracker()
        self._status_file: str | None = None
        self._finished = False
        self._groups: dict[str, _Group] = {}
        self._bases: dict[str, str] = {}
        self._words: str | None = None
        self._words_size = -1

    def __repr__(self) -> str:
        return f"<RunFiles {self._dag}, {self.tracker!r}>"

    @property
    def dag(self) -> str:
        """The path of the DAG file."""
        return self._dag

    @property
    def is_loaded(self) -> bool:
        """Whether the run's DAG was read."""
        return bool(self._logs)

    @property
    def is_finished(self) -> bool:
        """Whether the run is over, and what DAGMan said at the end was taken in."""
        return self._finished

    @property
    def logs(self) -> list[str]:
        """The event logs that are followed."""
        return [log.path for log in self._logs]

    async def update(self, room: Room, sizes: Mapping[str, int] | None = None) -> bool:
        """Read what is new, as far as there is room; whether there is more.

        Of a file that is not in ``sizes`` the size is asked for.

        Raises
        ------
        OSError
            If files are not there, or not for us to read.
        BackendUnavailable
            If the host cannot be asked.
        """
        if not self._logs:
            if room.is_used_up:
                return True
            await self._load()
        more = False
        for log in self._logs:
            more |= await self._follow(log, room, (sizes or {}).get(log.path))
        for name, group in list(self._groups.items()):
            if (submitted := self.tracker.submissions_of(name)) > group.read_at:
                group.read_at = submitted
                await self._reload(group)  # a job of the run may have written it only now (lazy groups of bps)
                more = True
        return more

    async def dagman_words(self) -> str:
        """Return DAGMan's own error lines, from the end of its output; it is read again if it grew."""
        path = f"{self._dag}.dagman.out"
        try:
            found = await self._transport.stat(path)
            if found is None or found.size == self._words_size:
                return self._words or ""
            begin = max(0, found.size - TAIL_BYTES)
            data = await self._transport.read(path, begin, TAIL_BYTES)
            self._words, self._words_size = dagman_errors(data.decode(errors="replace")), found.size
        except OSError:
            return self._words or ""
        return self._words

    def base_of(self, dag: str) -> str:
        """Return the folder to which the paths in a DAG file are relative."""
        return self._bases.get(dag, posixpath.dirname(self._dag))

    async def finish(self, ended: WmsStates) -> None:
        """The run is over: take in what DAGMan says of nodes that no log knows, once."""
        if not self._finished and self._status_file is not None:
            try:
                self.tracker.repair(parse_node_status(await self._whole(self._status_file)))
            except OSError:
                pass  # DAGMan was killed before it wrote one: the logs have said what there is to say
        self._finished = True
        self.tracker.finish(ended)

    async def _follow(self, log: _Log, room: Room, size: int | None) -> bool:
        if size is None:
            found = await self._transport.stat(log.path)
            if found is None and log.offset:
                raise FileNotFoundError(f"{log.path} is not there any more")
            size = 0 if found is None else found.size
        if size < log.offset:  # cut off, or another file: everything is read again, and told again
            await self._again()
            return True
        while log.offset < size:
            if room.is_used_up:
                return True
            try:
                data = await self._transport.read(log.path, log.offset, min(PIECE_BYTES, size - log.offset))
            except FileNotFoundError:
                return False
            if not data:
                return False
            log.offset += len(data)
            room.left -= len(data)
            log.take(await anyio.to_thread.run_sync(log.feed, data))
        return False

    async def _again(self) -> None:
        self.tracker = RunTracker()
        self._logs = []
        self._groups = {}
        self._finished = False
        await self._load()

    async def _load(self) -> None:
        self._logs = await self._load_dags([(self._dag, posixpath.dirname(self._dag))])

    async def _reload(self, group: _Group) -> None:
        """Read a DAG file that its run has written in the meantime; only then are its logs read from their beginning.

        A log of a DAG that stayed as it was is not read twice: a job's holds and evictions would count twice.
        """
        try:
            shape = await self._shape(group.path)
        except FileNotFoundError:
            return
        if shape == self.tracker.shape(group.path):
            return
        known = {log.path: log for log in self._logs}
        known.update({log.path: log for log in await self._load_dags([(group.path, group.folder)])})
        self._logs = [*known.values()]

    async def _load_dags(self, todo: list[tuple[str, str]]) -> list[_Log]:
        """Read DAG files, each with the folder that it runs in, and those inside them; returns their logs."""
        logs: list[_Log] = []
        take, take_nodes = self.tracker.take, self.tracker.take_nodes
        while todo:
            path, folder = todo.pop(0)
            try:
                shape = await self._shape(path)
            except FileNotFoundError:
                if path == self._dag:
                    raise
                continue  # a job of the run is to write it: it is read when its node is submitted
            if path == self._dag and shape.status_file is not None:
                self._status_file = posixpath.join(folder, shape.status_file)
            self.tracker.add_dag(path, shape, await self._done_before(path))
            self._bases[path] = folder
            for node in shape.nodes.values():
                if node.subdag is not None:
                    runs_in = posixpath.normpath(posixpath.join(folder, node.runs_in or ""))
                    inside = posixpath.normpath(posixpath.join(folder, node.subdag))
                    self._groups.setdefault(node.name, _Group(inside, runs_in))
                    if not node.name.startswith(LAZY):
                        todo.append((inside, runs_in))
            if shape.jobstate_log is not None:  # first: whether a node was submitted after it failed decides what it is
                nodes = posixpath.join(folder, shape.jobstate_log)
                logs.append(_Log(nodes, JobstateReader(self._cluster).feed, take_nodes))
            logs.append(_Log(f"{path}.nodes.log", EventReader(self._clock).feed, take))
            if len(logs) > MAX_SUBDAGS:
                raise LimitExceeded(f"{self._dag} has more than {MAX_SUBDAGS} sub-DAGs")
        return logs

    async def _shape(self, path: str) -> DagShape:
        return await anyio.to_thread.run_sync(parse_dag, await self._whole(path))

    async def _whole(self, path: str) -> str:
        data = bytearray()
        while piece := await self._transport.read(path, len(data), PIECE_BYTES):
            data += piece
            if len(data) > MAX_DAG_BYTES:
                raise LimitExceeded(f"{path} is larger than {MAX_DAG_BYTES} bytes")
        return data.decode(errors="replace")

    async def _done_before(self, path: str) -> set[str]:
        """What the newest rescue file counts as done."""
        folder, name = posixpath.split(path)
        names = await self._transport.listdir(folder)
        rescues = [each for each in names if each.startswith(name) and _RESCUE.fullmatch(each, len(name))]
        if not rescues:
            return set()
        return parse_rescue(await self._whole(posixpath.join(folder, max(rescues))))
