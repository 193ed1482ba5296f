"""The name of a user, also of one without an entry in the user database."""

from __future__ import annotations

import os
import pwd
import threading

import pytest

from bpsd_adapters import usernames
from bpsd_adapters.usernames import user_name


def test_it_is_the_kernels_word_and_not_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "somebody")
    monkeypatch.setenv("USER", "somebody")

    assert user_name(os.getuid()) == pwd.getpwuid(os.getuid()).pw_name
    assert user_name(2**31 - 7) == "#2147483641"


async def test_a_name_service_that_hangs_is_not_waited_for_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    answered, asked = threading.Event(), []

    def hangs(uid: int) -> str:
        asked.append(uid)
        answered.wait(300)
        return "alice"

    monkeypatch.setattr(usernames, "user_name", hangs)
    monkeypatch.setattr(usernames, "LOOKUP_WAIT_S", 0.05)
    names = usernames.UserNames()
    assert await names.look_up(7) == "#7"
    assert await names.look_up(7) == "#7"
    assert asked == [7]

    answered.set()
    monkeypatch.setattr(usernames, "LOOKUP_WAIT_S", 120.0)
    names._again.clear()  # the pause is over
    assert await names.look_up(7) == "alice" == names.known(7)
