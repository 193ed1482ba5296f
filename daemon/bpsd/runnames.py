"""What people call runs: our id, the WMS's ids in all their forms, the global id, the token, the submit directory."""

from __future__ import annotations

__all__ = ["RunNames"]

from collections.abc import Callable
from itertools import islice

from bpsd.runs import RunRecord

MOST_NEARBY = 1000
"""Names of the latest runs among which the nearest to a mistyped one is looked for: comparing costs 10 us each."""


class RunNames:
    """The names of the hot runs. A name that is gone from its record is kept until the run itself goes."""

    def __init__(self) -> None:
        self._by_wms: dict[tuple[str, str], str] = {}
        self._by_token: dict[str, str] = {}
        self._by_path: dict[str, set[str]] = {}
        self._by_global: dict[str, set[str]] = {}
        self._forms: dict[str, Callable[[str], tuple[str, ...]]] = {}

    def use_forms(self, backend: str, forms: Callable[[str], tuple[str, ...]]) -> None:
        """How this backend's WMS ids may be written (`~bpsd.interface.WmsService.resolve_id`)."""
        self._forms[backend] = forms

    def wms_ids(self, text: str) -> dict[str, tuple[str, ...]]:
        """The WMS ids that ``text`` may stand for, by backend."""
        return {name: forms(text) for name, forms in self._forms.items()}

    def of_wms_id(self, backend: str, wms_id: str) -> str | None:
        """Our id of the run that has this id in its WMS, exactly so."""
        return self._by_wms.get((backend, wms_id))

    def of_token(self, token: str) -> str | None:
        """Our id of the run of this token."""
        return self._by_token.get(token)

    def add(self, record: RunRecord) -> None:
        """Take the names of a run; once more when it has got new ones."""
        run_id = record.run_id
        if record.wms_id:
            self._by_wms[(record.backend, record.wms_id)] = run_id
        for attempt in record.attempts:  # an older attempt's id still names the run, unless the WMS gave it away since
            if attempt.wms_id:
                self._by_wms.setdefault((record.backend, attempt.wms_id), run_id)
        if record.token:
            self._by_token[record.token] = run_id
        if record.path:
            self._by_path.setdefault(_folder(record.path), set()).add(run_id)
        if record.global_wms_id:
            self._by_global.setdefault(record.global_wms_id, set()).add(run_id)

    def remove(self, record: RunRecord) -> None:
        """Forget the names of a run."""
        run_id = record.run_id
        for wms_id in {record.wms_id, *(a.wms_id for a in record.attempts if a.wms_id)}:
            if self._by_wms.get((record.backend, wms_id)) == run_id:
                del self._by_wms[(record.backend, wms_id)]
        if record.token:
            self._by_token.pop(record.token, None)
        path = _folder(record.path) if record.path else None
        for index, key in ((self._by_path, path), (self._by_global, record.global_wms_id)):
            if key and run_id in index.get(key, ()):
                index[key].discard(run_id)
                if not index[key]:
                    del index[key]

    def called(self, text: str) -> list[str]:
        """Our ids of all runs that a person may call ``text``."""
        token = self._by_token.get(text)
        if token is not None:
            return [token]
        ids: dict[str, None] = {}
        for name, forms in self.wms_ids(text).items():
            for form in forms:
                run_id = self._by_wms.get((name, form))
                if run_id is not None:
                    ids[run_id] = None
        ids.update(dict.fromkeys(sorted(self._by_global.get(text, ()))))
        ids.update(dict.fromkeys(sorted(self._by_path.get(_folder(text), ()))))
        return list(ids)

    def latest(self) -> list[str]:
        """WMS ids of the latest runs, and our own: what a mistyped name may have meant."""
        names: list[str] = []
        for (_, wms_id), run_id in islice(reversed(self._by_wms.items()), MOST_NEARBY):
            names += (wms_id, run_id)
        return names


def _folder(path: str) -> str:
    return path.rstrip("/") or "/"
