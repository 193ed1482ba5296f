"""Commands: what a client asks of a WMS, carried out once.

`engine` keeps the order and the journal, `verbs` are one module each and know what to ask of a service, `outcomes` is
what a verb says happened. A verb never retries, never writes the journal and never guesses: if it cannot tell whether
the WMS did what was asked, it says `Doubt`, and the engine asks the verb to look it up until somebody knows.

::

    ACCEPTED -> RUNNING -> DONE | FAILED          ACCEPTED -> EXPIRED | SUPERSEDED
                   |  ^
                   v  | proved absent: tried again
                IN_DOUBT -> DONE | FAILED (looked up, or resolved by a person)
"""

from __future__ import annotations

__all__: list[str] = []
