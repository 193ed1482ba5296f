"""Notifications of a real daemon, to a real command, a real HTTP server and a real mail server."""

from __future__ import annotations

import datetime as dt
import email
import email.policy
import ipaddress
import json
import os
import signal
import socket
import ssl
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from bpsd.testing.wms import add_run, touch
from tests.integration.bpsctl import bpsctl
from tests.integration.daemons import FAST, RunningDaemon, until

SECRET = "T0PSECRETHOOK"
BEARER = "B3ARERTOKEN"
ALL = ["finished", "failed", "held", "backend_down", "stale"]
QUICK = {"digest_s": 0.3, "retry_initial_s": 0.2, "retry_max_s": 0.4, "deadline_s": 5.0}


class Receiver(ThreadingHTTPServer):
    """Takes what is posted; answers with ``status``, after ``gate`` is open."""

    daemon_threads = True

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.asked: list[tuple[str, str | None]] = []
        self.status = 200
        self.gate = threading.Event()
        self.gate.set()
        super().__init__(("127.0.0.1", 0), _Post)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/hook/{SECRET}"

    def groups(self, kind: str | None = None) -> list[dict[str, Any]]:
        """All groups of all messages."""
        return [g for m in list(self.messages) for g in m["groups"] if kind in (None, g["kind"])]


class _Post(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.path, self.headers["Authorization"]))
        self.server.gate.wait(60)
        if self.server.status == 200:
            self.server.messages.append(json.loads(body))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.gate.set()
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """What brings packages to a test machine must not get the messages."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def hook(receiver: Receiver, **fields: Any) -> dict[str, Any]:
    return {"webhook": {"url": receiver.url}, "tell": ALL, **fields}


def daemon_with(folder: Path, routes: dict[str, Any], backends: tuple[str, ...] = ("toy",), **fields: Any) -> Any:
    """A daemon with scripted backends and routes."""
    return RunningDaemon(
        folder, {name: {"type": "scripted"} for name in backends}, notifications={**QUICK, "routes": routes, **fields}
    )


def outcomes(receiver: Receiver, kind: str) -> list[str]:
    """How what is of a kind was told, in order."""
    return [group["outcome"] for group in receiver.groups(kind)]


def _is_told(receiver: Receiver, kind: str, outcome: str, times: int = 1) -> bool:
    return outcomes(receiver, kind).count(outcome) >= times


def seen(daemon: RunningDaemon, state: str, count: int) -> None:
    """Wait until the daemon shows so many runs in that state."""

    def shown() -> bool:
        with daemon.client() as client:
            return len(client.list_runs(state=[state], hist=1, limit=1000)["runs"]) == count

    until(shown, f"{count} runs are {state}")


def told_nothing_more(daemon: RunningDaemon, receiver: Receiver, backend: str = "toy") -> None:
    """Whatever was to be told so far is told: an event after all others has come out."""
    before = len(receiver.messages)
    daemon.wms(backend).add("marker", state="FAILED", note=f"marker {'x' * before}")
    until(
        lambda: [g for g in receiver.groups("failed") if g["cause"] == f"marker {'x' * before}"], "the marker is told"
    )


def test_500_failures_of_one_kind_are_one_message(state_dir: Path, receiver: Receiver) -> None:
    with daemon_with(state_dir, {"ops": hook(receiver)}) as daemon:
        with daemon.wms("toy").edit() as wms:
            for number in range(500):
                add_run(wms, f"u/her/run{number}", state="RUNNING", attributes={"operator": "her"})
        seen(daemon, "RUNNING", 500)
        with daemon.wms("toy").edit() as wms:
            for run in wms.runs.values():
                run.state, run.note = "FAILED", f"node {run.name[-1]} of 17 went away"
                touch(wms, run)
        until(lambda: receiver.groups("failed"), "it is told")
        told_nothing_more(daemon, receiver)

        groups = [g for g in receiver.groups("failed") if not g["cause"].startswith("marker")]
        assert [(g["outcome"], g["count"], g["cause"]) for g in groups] == [
            ("first", 500, "node # of # went away")
        ] or sum(g["count"] for g in groups) == 500  # a slow machine may see them in two polls
        assert len(groups[0]["runs"]) == 10
        assert receiver.messages[0]["subject"].endswith("runs failed on toy")


def test_a_run_from_held_over_failed_to_its_end_and_another_that_is_muted(state_dir: Path, receiver: Receiver) -> None:
    with daemon_with(state_dir, {"ops": hook(receiver)}) as daemon:
        wms = daemon.wms("toy")
        loud, quiet = wms.add("u/a/loud", state="RUNNING"), wms.add("u/b/quiet", state="RUNNING")
        seen(daemon, "RUNNING", 2)
        assert bpsctl(daemon.socket, "mute", quiet.wms_id).code == 0
        for state in ("HELD", "RUNNING", "FAILED"):
            for run in (loud, quiet):
                wms.change(run.wms_id, state=state, note="disk full" if state == "FAILED" else "")
            seen(daemon, state, 2)
            kind = "failed" if state == "FAILED" else "held"
            outcome = "recovered" if state == "RUNNING" else "first"
            until(partial(_is_told, receiver, kind, outcome), f"{kind} is told")
        assert json.loads(bpsctl(daemon.socket, "unmute", quiet.wms_id, "--json").out)["runs"][0]["muted"] is False
        wms.change(quiet.wms_id, state="RUNNING", attempt=2)
        seen(daemon, "RUNNING", 1)
        wms.change(quiet.wms_id, state="SUCCEEDED")
        finished = until(lambda: receiver.groups("finished"), "the end is told")

        assert [run["name"] for run in finished[0]["runs"]] == ["u/b/quiet"]
        names = {run["name"] for g in receiver.groups() if g["kind"] != "finished" for run in g.get("runs", ())}
        assert names == {"u/a/loud"}
        timeline = bpsctl(daemon.socket, "events", quiet.wms_id).out
        assert "  muted by " in timeline
        assert "  unmuted by " in timeline


def test_a_backend_that_is_down_and_back_and_stale_between(state_dir: Path, receiver: Receiver) -> None:
    with daemon_with(state_dir, {"ops": hook(receiver)}, ("toy", "other")) as daemon:
        for outcome in ("first", "again"):
            daemon.wms("toy").fault("poll", "error")
            for kind in ("backend_down", "stale"):
                until(partial(_is_told, receiver, kind, outcome), f"{kind} is told as {outcome}")
            daemon.wms("toy").fault("poll", None)
            count = 1 if outcome == "first" else 2
            for kind in ("backend_down", "stale"):
                until(partial(_is_told, receiver, kind, "recovered", count), f"{kind} is over")

        assert {g["backend"] for g in receiver.groups()} == {"toy"}
        assert receiver.groups("backend_down")[0]["cause"].startswith("down: ")


def test_a_problem_that_outlives_the_daemon_is_told_once_and_so_is_its_end(state_dir: Path, receiver: Receiver) -> None:
    with daemon_with(state_dir, {"ops": hook(receiver)}, ("toy", "other")) as daemon:
        daemon.wms("toy").fault("poll", "error")
        for kind in ("backend_down", "stale"):
            until(partial(_is_told, receiver, kind, "first"), f"{kind} is told")
        wms = daemon.wms("toy")
        assert daemon.stop() == 0
        daemon.start()
        with daemon.client() as client:
            until(lambda: client.backends("toy")["backends"][0]["failures"] > 0, "it is down still")
        told_nothing_more(daemon, receiver, "other")
        wms.fault("poll", None)
        for kind in ("backend_down", "stale"):
            until(partial(_is_told, receiver, kind, "recovered"), f"the end of {kind} is told")
        told_nothing_more(daemon, receiver)

        assert [outcomes(receiver, kind) for kind in ("backend_down", "stale")] == [["first", "recovered"]] * 2


def test_a_webhook_that_fails_is_tried_again_and_holds_nothing_up(state_dir: Path, receiver: Receiver) -> None:
    receiver.status = 503
    with daemon_with(state_dir, {"ops": hook(receiver)}) as daemon:
        wms = daemon.wms("toy")
        wms.add("one", state="FAILED", note="why")
        until(lambda: len(receiver.asked) >= 3, "it is tried again")
        receiver.gate.clear()  # and now it does not answer at all
        asked = len(receiver.asked)
        until(lambda: len(receiver.asked) > asked, "it is asked")
        wms.add("two", state="RUNNING")
        seen(daemon, "RUNNING", 1)
        assert bpsctl(daemon.socket, "health").code == 0
        receiver.status = 200
        receiver.gate.set()

        group = until(lambda: receiver.groups("failed"), "it arrives")[0]

        assert group["runs"][0]["name"] == "one"
        failed = [line for line in daemon.logged() if line["event"] == "notification_failed"]
        assert "the webhook answered 503" in {line["error"] for line in failed}


def test_a_message_that_nobody_takes_is_dropped_in_the_end(state_dir: Path) -> None:
    with daemon_with(state_dir, {"ops": {"command": ["/bin/false"]}}, give_up_s=1.0) as daemon:
        daemon.wms("toy").add("one", state="FAILED")

        line = until(
            lambda: [line for line in daemon.logged() if line["event"] == "notification_dropped"], "it is given up"
        )[0]

        assert (line["route"], line["error"]) == ("ops", "/bin/false ended with 1")


def test_what_happened_while_the_daemon_was_down_or_killed_is_told_once_it_is_back(
    state_dir: Path, receiver: Receiver
) -> None:
    receiver.status = 503
    daemon = daemon_with(state_dir, {"ops": hook(receiver)})
    with daemon:
        wms = daemon.wms("toy")
        wms.add("before", state="FAILED", note="before")
        last = wms.add("meanwhile", state="RUNNING")
        until(lambda: receiver.asked, "it was tried in vain")
        seen(daemon, "RUNNING", 1)
        with daemon.client() as client:
            client.events()  # what was seen is on the disk, then
        daemon.kill()
        receiver.status = 200
        wms.change(last.wms_id, state="FAILED", note="meanwhile")
        daemon.start()
        until(lambda: {g["cause"] for g in receiver.groups("failed")} == {"before", "meanwhile"}, "both are told")
        assert daemon.stop() == 0
        count = len(receiver.messages)
        daemon.start()
        told_nothing_more(daemon, receiver)
        assert [g["cause"][:6] for m in receiver.messages[count:] for g in m["groups"]] == ["marker"]


def test_routes_take_what_they_ask_for(state_dir: Path, receiver: Receiver) -> None:
    script = state_dir / "page"
    script.write_text(f"#!/bin/sh\ncat > {state_dir}/$(date +%s%N).json\n")
    script.chmod(0o755)
    routes = {
        "all": hook(receiver),
        "hers": {"command": [str(script)], "users": ["her"], "pattern": "u/*", "backends": ["toy"], "tell": ["failed"]},
    }
    with daemon_with(state_dir, routes, ("toy", "other")) as daemon:
        for backend, name, operator in (
            ("toy", "u/her/yes", "her"),
            ("toy", "v/her/no", "her"),
            ("toy", "u/him/no", "him"),
            ("other", "u/her/no", "her"),
        ):
            daemon.wms(backend).add(name, state="FAILED", attributes={"operator": operator})
        until(lambda: sum(g["count"] for g in receiver.groups("failed")) == 4, "all are told to the one")
        files = until(lambda: list(state_dir.glob("*.json")), "the command has run")

        documents = [json.loads(until(file.read_text, "it is written")) for file in files]

        assert [run["name"] for d in documents for g in d["groups"] for run in g["runs"]] == ["u/her/yes"]


def test_a_command_that_hangs_is_ended_with_its_children(state_dir: Path) -> None:
    pids = state_dir / "pids"
    script = state_dir / "hang"
    script.write_text(f"#!/bin/sh\nsleep 600 &\necho $! $$ >> {pids}\necho oh dear >&2\nwait\n")
    script.chmod(0o755)
    with daemon_with(state_dir, {"ops": {"command": [str(script)]}}, deadline_s=0.5) as daemon:
        daemon.wms("toy").add("one", state="FAILED")
        until(lambda: [line for line in daemon.logged() if line["event"] == "notification_failed"], "it took too long")

        first = [int(pid) for pid in pids.read_text().split()[:2]]

        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in first), "they are gone")


class Mailbox:
    """What a mail server got."""

    def __init__(self) -> None:
        self.letters: list[Any] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802  # aiosmtpd calls it so
        self.letters.append((envelope, email.message_from_bytes(envelope.content, policy=email.policy.default)))
        return "250 OK"


def test_mail_over_a_real_server(state_dir: Path) -> None:
    mailbox = Mailbox()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = Controller(mailbox, hostname="127.0.0.1", port=port)
    server.start()
    try:
        mail = {"to": ["ops@example.org", "her@example.org"], "from": "bpsd@example.org", "host": "127.0.0.1"}
        with daemon_with(state_dir, {"ops": {"mail": {**mail, "port": port}}}) as daemon:
            daemon.wms("toy").add("u/hér/dr1\r\nBcc: evil@example.org", state="FAILED", note="why\n.\nnot")
            envelope, letter = until(lambda: mailbox.letters, "a letter arrives")[0]
    finally:
        server.stop()

    assert envelope.rcpt_tos == ["ops@example.org", "her@example.org"]
    assert letter["Subject"].endswith("1 run failed on toy")
    assert letter["Bcc"] is None
    assert letter["Auto-Submitted"] == "auto-generated"
    assert "u/hér/dr1\\r\\nBcc" in letter.get_content()


@pytest.fixture
def certificate(state_dir: Path) -> tuple[Path, Path]:
    """Certificate and key of 127.0.0.1, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = state_dir / "cert.pem", state_dir / "key.pem"
    paths[0].write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths


def test_tls_is_verified_and_a_password_goes_through_it(
    state_dir: Path, receiver: Receiver, certificate: tuple[Path, Path]
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    receiver.socket = context.wrap_socket(receiver.socket, server_side=True)
    mailbox, logins = Mailbox(), []

    def authenticate(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
        logins.append((data.login, data.password))
        return AuthResult(success=data.password == BEARER.encode())

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = Controller(
        mailbox, hostname="127.0.0.1", port=port, tls_context=context, authenticator=authenticate, auth_required=True
    )
    server.start()
    (state_dir / "password").write_text(BEARER)
    mail = {"to": ["ops@example.org"], "from": "bpsd@example.org", "host": "127.0.0.1", "port": port}
    login = {"tls": "starttls", "user": "bpsd", "password_file": str(state_dir / "password")}
    routes = {"mail": {"mail": {**mail, **login}}, "hook": {"webhook": {"url": receiver.url.replace("http", "https")}}}
    try:
        daemon = daemon_with(state_dir, routes)
        with daemon:
            daemon.wms("toy").add("one", state="FAILED")
            until(
                lambda: (
                    {line["route"] for line in daemon.logged() if line["event"] == "notification_failed"}
                    == {"mail", "hook"}
                ),
                "neither trusts a stranger",
            )
            assert (mailbox.letters, logins, receiver.messages) == ([], [], [])
            assert daemon.stop() == 0
            daemon.environment = {**os.environ, "SSL_CERT_FILE": str(certificate[0])}
            daemon.start()
            until(lambda: mailbox.letters and receiver.messages, "both arrive")
    finally:
        server.stop()
    assert logins == [(b"bpsd", BEARER.encode())]
    assert BEARER not in daemon.log.read_text()


def test_secrets_come_from_files_and_are_told_to_nobody(state_dir: Path, receiver: Receiver) -> None:
    (state_dir / "url").write_text(receiver.url + "\n")
    (state_dir / "bearer").write_text(BEARER)
    webhook = {"url_file": str(state_dir / "url"), "bearer_file": str(state_dir / "bearer")}
    routes = {"ops": {"webhook": webhook}, "bad": hook(receiver, webhook={"url": f"http://127.0.0.1:1/{SECRET}"})}
    daemon = daemon_with(state_dir, routes)
    daemon.configure({**json.loads(daemon.config.read_text()), "logs": {"level": "debug"}})
    receiver.status = 403
    with daemon:
        daemon.wms("toy").add("one", state="FAILED")
        until(
            lambda: (
                {line["route"] for line in daemon.logged() if line["event"] == "notification_failed"} == {"ops", "bad"}
            ),
            "both fail",
        )
        receiver.status = 200
        until(lambda: receiver.messages, "one arrives")

        assert receiver.asked[-1] == (f"/hook/{SECRET}", f"Bearer {BEARER}")
        daemon.configure({**json.loads(daemon.config.read_text()), "notifications": {"routes": {"x": {"webhook": 1}}}})
        assert daemon.process is not None
        os.kill(daemon.process.pid, signal.SIGHUP)
        until(lambda: bpsctl(daemon.socket, "health").code == 1, "the reload is refused")
        shown = bpsctl(daemon.socket, "health", "-v").out + bpsctl(daemon.socket, "events").out
    for text in (daemon.log.read_text(), shown, (state_dir / "state" / "notified.json").read_text()):
        assert SECRET not in text
        assert BEARER not in text
    assert (state_dir / "state" / "notified.json").stat().st_mode & 0o777 == 0o600


def test_a_reload_changes_routes_and_keeps_what_waits(state_dir: Path, receiver: Receiver) -> None:
    with daemon_with(state_dir, {"ops": {"command": ["/bin/false"]}, "gone": {"command": ["/bin/false"]}}) as daemon:
        daemon.wms("toy").add("one", state="FAILED", note="why")
        until(lambda: [line for line in daemon.logged() if line["event"] == "notification_failed"], "it fails")
        daemon.configure(
            {
                **FAST,
                "backends": {"toy": {"type": "scripted"}},
                "notifications": {**QUICK, "routes": {"ops": hook(receiver), "new": hook(receiver)}},
            }
        )
        assert daemon.process is not None
        os.kill(daemon.process.pid, signal.SIGHUP)

        until(lambda: receiver.groups("failed"), "it arrives elsewhere")

        told_nothing_more(daemon, receiver)
        assert sum(g["cause"] == "why" for g in receiver.groups("failed")) == 1  # a new route begins with what is new
