"""How a message is brought to where a route leads: a command, a webhook or a mail server.

Each `deliver` may be cancelled at any moment and leaves nothing running but a thread that a mail server keeps waiting,
of which there are few. What goes wrong is told without addresses, headers and passwords: those open doors.
"""

from __future__ import annotations

__all__ = ["DeliveryFailed", "deliver", "read_secret"]

import importlib
import os
import signal
import smtplib
import ssl
import subprocess
from collections.abc import Sequence
from email.message import EmailMessage
from email.utils import formatdate, make_msgid

import anyio
import anyio.lowlevel
import anyio.to_thread
import msgspec
from anyio.abc import Process

from bpsd import __version__
from bpsd.errors import BpsdError
from bpsd.logs.redaction import redact_text
from bpsd.notices import Message
from bpsd.outlets import Mail, Route, Webhook
from bpsd.processes import feed, start_process

STDERR_BYTES = 2048
"""How much of what a failing command says is told."""

LAST_WORDS_S = 1.0
"""How long its last words are waited for: something that it started may hold them open."""

SECRET_BYTES = 65_536
"""The longest file with an address, a token or a password."""

MAIL_THREADS = 4
"""Mail servers that may keep a thread waiting at once, over all routes."""

_mail_threads: anyio.lowlevel.RunVar[anyio.CapacityLimiter] = anyio.lowlevel.RunVar("bpsd_mail_threads")


class DeliveryFailed(BpsdError):
    """A message could not be brought; it is tried again."""


async def deliver(route: Route, message: Message, timeout_s: float) -> None:
    """Bring a message.

    Raises
    ------
    DeliveryFailed
        If it could not be brought, or not in time.
    """
    try:
        with anyio.fail_after(timeout_s):
            if route.command is not None:
                await _run(route.command, msgspec.json.encode(message))
            elif route.webhook is not None:
                await _post(route.webhook, msgspec.json.encode(message), timeout_s)
            elif route.mail is not None:
                await _mail(route.mail, message, timeout_s)
    except TimeoutError:
        raise DeliveryFailed(f"it took longer than {timeout_s:g} s") from None


# -- command ---------------------------------------------------------------------------------------------------------


async def _run(command: Sequence[str], document: bytes) -> None:
    try:
        process = await start_process(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
        )
    except OSError as exc:
        raise DeliveryFailed(f"{command[0]} cannot be run: {exc.strerror or exc}") from exc
    said = bytearray()
    async with process:
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(feed, process, document)
                group.start_soon(_listen, process, said)
                code = await process.wait()
                group.cancel_scope.deadline = anyio.current_time() + LAST_WORDS_S
        finally:
            if process.returncode is None:
                _end_all(process.pid)
    if code:
        words = redact_text(said.decode(errors="replace").strip())
        raise DeliveryFailed(f"{command[0]} ended with {code}" + (f": {words}" if words else ""))


async def _listen(process: Process, said: bytearray) -> None:
    assert process.stderr is not None
    async for piece in process.stderr:
        said += piece[: STDERR_BYTES - len(said)]


def _end_all(session: int) -> None:
    """End a command that took too long, with what it has started."""
    try:
        os.killpg(session, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


# -- webhook ---------------------------------------------------------------------------------------------------------


async def _post(webhook: Webhook, document: bytes, timeout_s: float) -> None:
    # Only who has a webhook pays for it, and nobody waits for it.
    httpx = await anyio.to_thread.run_sync(importlib.import_module, "httpx")
    trusted = await anyio.to_thread.run_sync(ssl.create_default_context)
    address = webhook.url or await _secret("url_file", webhook.url_file)
    headers = {"Content-Type": "application/json", "User-Agent": f"bpsd/{__version__}"}
    if webhook.bearer_file is not None:
        headers["Authorization"] = f"Bearer {await _secret('bearer_file', webhook.bearer_file)}"
    try:
        async with (
            httpx.AsyncClient(timeout=timeout_s, verify=trusted) as client,
            client.stream("POST", address, content=document, headers=headers) as answer,
        ):
            status = answer.status_code  # what else it says is not read: it may be long
    except httpx.InvalidURL:
        raise DeliveryFailed("the address of the webhook is none") from None
    except (httpx.HTTPError, ValueError, OSError) as exc:  # ValueError: a header that is none
        raise DeliveryFailed(f"the webhook could not be reached: {type(exc).__name__}") from None
    if not 200 <= status < 300:
        raise DeliveryFailed(f"the webhook answered {status}")


async def _secret(key: str, path: str | None) -> str:
    assert path is not None
    return await anyio.to_thread.run_sync(read_secret, key, path)


def read_secret(key: str, path: str) -> str:
    """Read a file that holds an address, a token or a password: one line.

    Raises
    ------
    DeliveryFailed
        If it cannot be read, or holds something else.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as file:
            text = (file.read(SECRET_BYTES) or b"").decode().strip()
    except (OSError, ValueError) as exc:
        if isinstance(exc, UnicodeDecodeError):
            raise DeliveryFailed(f"{key} {path} holds no text") from None
        raise DeliveryFailed(f"{key} {path} cannot be read: {getattr(exc, 'strerror', None) or exc}") from exc
    if not text or not text.isprintable():
        raise DeliveryFailed(f"{key} {path} must hold one line")
    return text


# -- mail ------------------------------------------------------------------------------------------------------------


async def _mail(mail: Mail, message: Message, timeout_s: float) -> None:
    try:
        limiter = _mail_threads.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(MAIL_THREADS)
        _mail_threads.set(limiter)
    await anyio.to_thread.run_sync(_send, mail, message, timeout_s, abandon_on_cancel=True, limiter=limiter)


def _send(mail: Mail, message: Message, timeout_s: float) -> None:
    try:
        with _connected(mail, timeout_s) as server:
            if mail.user is not None and mail.password_file is not None:
                server.login(mail.user, read_secret("password_file", mail.password_file))
            refused = server.send_message(_letter(mail, message))
    except smtplib.SMTPAuthenticationError as exc:
        raise DeliveryFailed(f"{mail.host} does not let {mail.user} in (SMTP {exc.smtp_code})") from None
    except (smtplib.SMTPException, OSError) as exc:
        raise DeliveryFailed(
            f"{mail.host} did not take the mail: {redact_text(str(exc)) or type(exc).__name__}"
        ) from exc
    if refused and len(refused) < len(mail.to):
        return  # the others have it; sending it again would tell them twice
    if refused:
        raise DeliveryFailed(f"{mail.host} refuses every recipient")


def _connected(mail: Mail, timeout_s: float) -> smtplib.SMTP:
    if mail.tls == "tls":
        return smtplib.SMTP_SSL(mail.host, mail.port, timeout=timeout_s, context=ssl.create_default_context())
    server = smtplib.SMTP(mail.host, mail.port, timeout=timeout_s)
    if mail.tls == "starttls":
        try:
            server.starttls(context=ssl.create_default_context())
        except BaseException:
            server.close()
            raise
    return server


def _letter(mail: Mail, message: Message) -> EmailMessage:
    letter = EmailMessage()
    letter["From"], letter["To"] = mail.sender, ", ".join(mail.to)
    letter["Subject"] = redact_text(message.subject)[:200]
    letter["Date"], letter["Message-ID"] = formatdate(message.time), make_msgid(domain=mail.sender.rpartition("@")[2])
    letter["Auto-Submitted"] = "auto-generated"  # RFC 3834: no out-of-office replies, please
    letter.set_content(message.text)
    return letter
