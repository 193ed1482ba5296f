"""From the names in the configuration to the kernel's numbers: the `bpsd.peers.Policy` that is in force."""

from __future__ import annotations

__all__ = ["NAMES_WAIT_S", "policy_of", "unknown_places"]

import grp
import pwd
from collections.abc import Callable, Collection, Iterable, Iterator

from bpsd.config import Config
from bpsd.documents import Path
from bpsd.peers import Members, Policy, Right
from bpsd.roles import EVERYBODY, Who

NAMES_WAIT_S = 10.0
"""How long start, reload and check-config wait for the users and groups that the configuration names."""


def policy_of(config: Config, owner_uid: int) -> tuple[Policy, list[str]]:
    """Look all names up. It asks the name service, which may take long: call it in a thread.

    Returns
    -------
    policy : `~bpsd.peers.Policy`
        With everybody who was found.
    unknown : `list` [`str`]
        Names that nobody has now (``user x``, ``group y``): a mistake, or a name service that does not answer.
    """
    unknown: list[str] = []

    def members(who: Who) -> Members:
        return Members(
            uids=frozenset(_numbers(_users(who), "user", _uid, unknown)),
            gids=frozenset(_numbers(who.groups, "group", _gid, unknown)),
            everybody=EVERYBODY in who.users,
        )

    rights = config.rights
    by_default: list[Right] = ["read"] if config.mode == "system" else []
    others: set[Right] = {"read"} if rights.others else set()
    others |= {right for right in rights.others or () if right != "status"}
    if rights.others is None:
        others |= set(by_default)
    accounts = {}
    for backend in config.backends.values():
        for account, user in backend.accounts.items():
            for uid in _numbers([user], "user", _uid, unknown):
                accounts[backend.name, account] = uid
    policy = Policy(
        owner_uid=owner_uid,
        others=frozenset(others),
        viewers=members(rights.viewer),
        readers=members(rights.output),
        auditors=members(rights.audit),
        operators=members(rights.operator),
        admins=members(rights.admin),
        submitters={backend.name: members(backend.submitters) for backend in config.backends.values()},
        accounts=accounts,
    )
    return policy, sorted(set(unknown))


def unknown_places(config: Config, unknown: Collection[str]) -> Iterator[tuple[Path, str]]:
    """Find where the configuration names those that `policy_of` calls unknown."""
    people: list[tuple[Path, Who]] = [
        (("rights", name), who)
        for name in config.rights.__struct_fields__
        if isinstance(who := getattr(config.rights, name), Who)
    ]
    for backend in config.backends.values():
        people.append((("backends", backend.name, "submitters"), backend.submitters))
        for account, user in backend.accounts.items():
            if f"user {user}" in unknown:
                yield ("backends", backend.name, "accounts", account), f"user {user}"
    for where, who in people:
        for key, kind, names in (("users", "user", who.users), ("groups", "group", who.groups)):
            for index, name in enumerate(names):
                if f"{kind} {name}" in unknown:
                    yield (*where, key, index), f"{kind} {name}"


def _users(who: Who) -> list[str]:
    return [name for name in who.users if name != EVERYBODY]


def _numbers(names: Iterable[str], kind: str, number: Callable[[str], int], unknown: list[str]) -> list[int]:
    found = []
    for name in names:
        try:
            found.append(int(name) if name.isascii() and name.isdecimal() else number(name))
        except (KeyError, OSError):
            unknown.append(f"{kind} {name}")
    return found


def _uid(name: str) -> int:
    return pwd.getpwnam(name).pw_uid


def _gid(name: str) -> int:
    return grp.getgrnam(name).gr_gid
