"""What people call runs: our id, the WMS's ids in all their forms, the global id, the token, the submit directory."""

from __future__ import annotations

__all__ = ["RunNames"]

from collections.abc import Callable, Set
from itertools import islice

from bpsd.runs import RunRecord

MOST_NEARBY = 1000
"""Names of the latest runs among which the nearest to a mistyped one is looked for: comparing costs 10 us each."""


class RunNames:
    """The names of the hot runs. A name that is gone from its record is kept until the run itself goes."""

    def __init__(self) -> None:
        # With the time of submission: an id that a WMS gives again names the later run.
        self._by_wms: dict[tuple[str, str], tuple[float, str]] = {}
        self._by_token: dict[str, str] = {}
        self._by_path: dict[str, set[str]] = {}
        self._by_global: dict[str, set[str]] = {}
        self._globals_of: dict[str, set[str]] = {}
        self._forms: dict[str, Callable[[str], tuple[str, ...]]] = {}

    def use_forms(self, backend: str, forms: Callable[[str], tuple[str, ...]]) -> None:
        """How this backend's WMS ids may be written (`~bpsd.interface.WmsService.resolve_id`)."""
        self._forms[backend] = forms

    def wms_ids(self, text: str) -> dict[str, tuple[str, ...]]:
        """The WMS ids that ``text`` may stand for, by backend."""
        return {name: forms(text) for name, forms in self._forms.items()}

    def of_wms_id(self, backend: str, wms_id: str) -> str | None:
        """Return our id of the run to which the WMS gave this id last."""
        holder = self._by_wms.get((backend, wms_id))
        return None if holder is None else holder[1]

    def of_global_id(self, global_wms_id: str) -> Set[str]:
        """Return our ids of the runs that have, or had in an earlier attempt, this global id."""
        return self._by_global.get(global_wms_id, frozenset())

    def of_token(self, token: str) -> str | None:
        """Our id of the run of this token."""
        return self._by_token.get(token)

    def add(self, record: RunRecord) -> None:
        """Take the names of a run; once more when it has got new ones."""
        run_id, mine = record.run_id, (record.since, record.run_id)
        if record.wms_id:
            name = (record.backend, record.wms_id)
            holder = self._by_wms.get(name)
            if holder is None or holder[1] == run_id or holder <= mine:
                self._by_wms[name] = mine
        for attempt in record.attempts:  # an older attempt's id still names the run, unless the WMS gave it away since
            if attempt.wms_id:
                self._by_wms.setdefault((record.backend, attempt.wms_id), mine)
        if record.token:
            self._by_token[record.token] = run_id
        if record.path:
            self._by_path.setdefault(_folder(record.path), set()).add(run_id)
        if record.global_wms_id:
            self.add_global_id(run_id, record.global_wms_id)

    def add_global_id(self, run_id: str, global_wms_id: str) -> None:
        """Take a global id of a run, of an earlier attempt for instance."""
        self._by_global.setdefault(global_wms_id, set()).add(run_id)
        self._globals_of.setdefault(run_id, set()).add(global_wms_id)

    def remove(self, record: RunRecord) -> None:
        """Forget the names of a run."""
        run_id = record.run_id
        for wms_id in {record.wms_id, *(a.wms_id for a in record.attempts if a.wms_id)}:
            if self.of_wms_id(record.backend, wms_id) == run_id:
                del self._by_wms[(record.backend, wms_id)]
        if record.token:
            self._by_token.pop(record.token, None)
        if record.path:
            _discard(self._by_path, _folder(record.path), run_id)
        for global_wms_id in self._globals_of.pop(run_id, ()):
            _discard(self._by_global, global_wms_id, run_id)

    def called(self, text: str) -> list[str]:
        """Our ids of all runs that a person may call ``text``."""
        token = self._by_token.get(text)
        if token is not None:
            return [token]
        ids: dict[str, None] = {}
        for name, forms in self.wms_ids(text).items():
            for form in forms:
                run_id = self.of_wms_id(name, form)
                if run_id is not None:
                    ids[run_id] = None
        ids.update(dict.fromkeys(sorted(self._by_global.get(text, ()))))
        ids.update(dict.fromkeys(sorted(self._by_path.get(_folder(text), ()))))
        return list(ids)

    def latest(self) -> list[str]:
        """WMS ids of the latest runs, and our own: what a mistyped name may have meant."""
        names: list[str] = []
        for (_, wms_id), (_, run_id) in islice(reversed(self._by_wms.items()), MOST_NEARBY):
            names += (wms_id, run_id)
        return names


def _discard(index: dict[str, set[str]], key: str, run_id: str) -> None:
    if run_id in index.get(key, ()):
        index[key].discard(run_id)
        if not index[key]:
            del index[key]


def _folder(path: str) -> str:
    return path.rstrip("/") or "/"
