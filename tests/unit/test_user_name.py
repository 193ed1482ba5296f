"""The name of a user, also of one without an entry in the user database."""

from __future__ import annotations

import os
import pwd

import pytest

from bpsd_adapters.local.processes import user_name


def test_it_is_the_kernels_word_and_not_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "somebody")
    monkeypatch.setenv("USER", "somebody")

    assert user_name(os.getuid()) == pwd.getpwuid(os.getuid()).pw_name
    assert user_name(2**31 - 7) == "#2147483641"
