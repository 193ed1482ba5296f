"""Mutants of a correct adapter: each has one fault, and the contract suite must find it.

`MUTANTS` and, for adapters that run jobs, `EXECUTION_MUTANTS` make a faulty subclass of any adapter class.
``caught_by`` names the case that finds the fault. Tests of bpsd run it against each mutant of the scripted and of the
local adapter; authors of adapters can do the same with their own.
"""

from __future__ import annotations

__all__ = ["EXECUTION_MUTANTS", "MUTANTS", "Mutant"]

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.lowlevel
import msgspec

from bpsd import wire
from bpsd.errors import BackendUnavailable, Conflict
from bpsd.interface import WmsService
from bpsd.models import TERMINAL, PollRequest, PollResult, RunObservation, SourceReport, TokenAnswer, WmsStates

Methods = Mapping[str, Any]
Faulty = Callable[[type[WmsService]], Methods]


@dataclass(frozen=True)
class Mutant:
    """A fault, the case that finds it, and the methods that have it."""

    name: str
    caught_by: str
    methods: Faulty

    def of(self, correct: type[WmsService]) -> type[WmsService]:
        """Make the faulty subclass of a correct adapter."""
        return type(f"{correct.__name__}_{self.name}", (correct,), dict(self.methods(correct)))


def _result(change: Callable[[PollResult], PollResult]) -> Faulty:
    """Return a poll whose result is changed."""

    def methods(correct: type[WmsService]) -> Methods:
        async def poll(self: Any, request: PollRequest) -> PollResult:
            return change(await correct.poll(self, request))

        return {"poll": poll}

    return methods


def _seen(change: Callable[[RunObservation], dict[str, Any]]) -> Faulty:
    """Return a poll whose observations are changed."""
    return _result(
        lambda result: msgspec.structs.replace(
            result, observations=[msgspec.structs.replace(seen, **change(seen)) for seen in result.observations]
        )
    )


def _claims(**claims: Any) -> Faulty:
    """Return capabilities that are not so."""

    def methods(correct: type[WmsService]) -> Methods:
        def capabilities(self: Any) -> Any:
            inherited = correct.capabilities.fget  # type: ignore[attr-defined]  # a property, of the class
            return msgspec.structs.replace(inherited(self), **claims)

        return {"capabilities": property(capabilities)}

    return methods


def _answers(method: str, answer: Any) -> Faulty:
    """Return a verb that does nothing and answers this."""

    async def verb(self: Any, *args: Any, **kwargs: Any) -> Any:
        return answer

    return lambda _: {method: verb}


def _blocks(method: str) -> Faulty:
    def methods(correct: type[WmsService]) -> Methods:
        async def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            time.sleep(0.3)  # noqa: ASYNC251  # the fault
            return await getattr(correct, method)(self, *args, **kwargs)

        return {method: call}

    return methods


def _swallows(method: str, answer: Any) -> Faulty:
    def methods(correct: type[WmsService]) -> Methods:
        async def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                await anyio.lowlevel.checkpoint()
                return await getattr(correct, method)(self, *args, **kwargs)
            except anyio.get_cancelled_exc_class():
                return answer

        return {method: call}

    return methods


def _converts(correct: type[WmsService]) -> Methods:
    async def poll(self: Any, request: PollRequest) -> PollResult:
        try:
            await anyio.lowlevel.checkpoint()
            return await correct.poll(self, request)
        except anyio.get_cancelled_exc_class() as exc:
            raise BackendUnavailable("the poll was interrupted") from exc

    return {"poll": poll}


def _restarts_live_runs(correct: type[WmsService]) -> Methods:
    async def restart(self: Any, wms_id: str, *, attempt_token: str | None = None) -> Any:
        try:
            return await correct.restart(self, wms_id, attempt_token=attempt_token)
        except Conflict:
            return wms_id, "", ""

    return {"restart": restart}


def _ignores_attempts_of_tokens(correct: type[WmsService]) -> Methods:
    async def find_by_token(self: Any, token: str, since: float) -> TokenAnswer:
        return await correct.find_by_token(self, token.partition(".")[0], since)

    return {"find_by_token": find_by_token}


def _cancels_always(correct: type[WmsService]) -> Methods:
    async def cancel(self: Any, wms_id: str, pass_thru: str | None = None) -> tuple[bool, str]:
        try:
            await correct.cancel(self, wms_id, pass_thru)
        except Exception:  # noqa: BLE001  # the fault
            return True, ""
        return True, ""

    return {"cancel": cancel}


def _submits_again(correct: type[WmsService]) -> Methods:
    async def submit(self: Any, workflow: Any, **kwargs: Any) -> None:
        workflow.token = wire.new_token()
        await correct.submit(self, workflow, **kwargs)

    return {"submit": submit}


def _ignores_attempt_token(correct: type[WmsService]) -> Methods:
    async def restart(self: Any, wms_id: str, *, attempt_token: str | None = None) -> Any:
        return await correct.restart(self, wms_id)

    return {"restart": restart}


def _checks_by_submitting(correct: type[WmsService]) -> Methods:
    async def check_workflow(self: Any, config: Any, generic_workflow: Any) -> None:
        await correct.submit(self, await correct.prepare(self, config, generic_workflow))

    return {"check_workflow": check_workflow}


def _forgets_on_restart(correct: type[WmsService]) -> Methods:
    async def poll(self: Any, request: PollRequest) -> PollResult:
        known = {seen.wms_id for seen in (await correct.poll(self, PollRequest())).observations}
        mine = self.__dict__.setdefault("_mine", set())
        if not request.known and not mine:
            mine.update(known)
        result = await correct.poll(self, request)
        return msgspec.structs.replace(result, observations=[s for s in result.observations if s.wms_id not in mine])

    return {"poll": poll}


def _jobs_twice(seen: RunObservation) -> dict[str, Any]:
    return {"jobs": [*seen.jobs, *seen.jobs]}


STATE_BACK = {WmsStates.SUCCEEDED: WmsStates.RUNNING}
LIVE, PART = "a_run_is_seen_under_its_token_and_ends", "upstream_readers_agree_with_the_polls"
STEADY, CANCEL = "a_live_run_shows_a_steady_adapter", "cancel_ends_a_run_and_may_be_repeated"
RESTART, UNKNOWN = "a_restart_is_the_next_attempt", "unknown_runs_are_refused"
ABSENT = "a_live_run_is_never_called_absent"

MUTANTS: tuple[Mutant, ...] = (
    # Those that an earlier version of the suite let pass.
    Mutant("restart_ignores_the_attempt_token", RESTART, _ignores_attempt_token),
    Mutant("restarts_a_live_run", STEADY, _restarts_live_runs),
    Mutant("same_attempt_after_restart", RESTART, _seen(lambda _: {"attempt": 1})),
    Mutant("no_attempts", RESTART, _seen(lambda _: {"attempt": None})),
    Mutant("cancel_always_agrees", UNKNOWN, _cancels_always),
    Mutant("find_by_token_ignores_attempts", STEADY, _ignores_attempts_of_tokens),
    Mutant("claims_no_tokens", STEADY, _claims(finds_by_token=False)),
    Mutant("claims_holds", STEADY, lambda _: {"hold": WmsService.hold, "release": WmsService.release}),
    Mutant("claims_output", STEADY, lambda _: {"read_output": WmsService.read_output}),
    Mutant("no_sources", LIVE, _result(lambda result: msgspec.structs.replace(result, sources=()))),
    Mutant("undeclared_source", LIVE, _seen(lambda _: {"source": "hearsay"})),
    Mutant("undeclared_source_report", LIVE, _claims(sources=("queue",))),
    Mutant("poll_blocks", STEADY, _blocks("poll")),
    Mutant("ping_blocks", STEADY, _blocks("ping")),
    Mutant("poll_hides_a_cancellation", STEADY, _swallows("poll", PollResult())),
    # More of the same kinds.
    Mutant("ping_hides_a_cancellation", STEADY, _swallows("ping", (0, ""))),
    Mutant("find_hides_a_cancellation", STEADY, _swallows("find_by_token", TokenAnswer(verdict="absent"))),
    Mutant("poll_converts_a_cancellation", STEADY, _converts),
    Mutant("hold_does_not_hold", STEADY, _answers("hold", (True, ""))),
    Mutant(
        "state_moves_back",
        LIVE,
        _seen(lambda s: {"state": s.state if s.state is None else STATE_BACK.get(s.state, s.state)}),
    ),
    Mutant("jobs_disagree_with_the_run", LIVE, _seen(lambda _: {"jobs": ()})),
    Mutant("every_job_twice", LIVE, _seen(_jobs_twice)),
    Mutant("no_token", LIVE, _seen(lambda _: {"token": None})),
    Mutant("no_attributes", LIVE, _seen(lambda _: {"campaign": None})),
    Mutant("ids_of_another_scheduler", LIVE, _seen(lambda s: {"wms_id": f"other#{s.wms_id}"})),
    Mutant("repeated_token_makes_a_second_run", "the_same_token_is_the_same_run", _submits_again),
    Mutant("cancel_does_nothing", CANCEL, _answers("cancel", (True, ""))),
    Mutant("cancelled_is_failed", CANCEL, _seen(lambda s: {"state": WmsStates.FAILED} if s.state in TERMINAL else {})),
    Mutant("check_submits", "a_check_leaves_nothing_behind", _checks_by_submitting),
    Mutant("forgets_its_runs_when_reopened", "a_reopened_service_knows_its_runs", _forgets_on_restart),
    Mutant("live_run_is_absent", ABSENT, _result(lambda r: msgspec.structs.replace(r, absent=("1",)))),
    Mutant(
        "unknown_token_is_found",
        "an_unknown_token_is_not_found",
        _answers("find_by_token", TokenAnswer(verdict="found", wms_id="1")),
    ),
    Mutant(
        "error_is_an_empty_answer",
        LIVE,
        lambda _: {"poll": _empty_poll},
    ),
    Mutant("readers_without_jobs", PART, _answers("report", ([], ""))),
    Mutant("ended_run_in_the_list", PART, lambda _: {"list_submitted_jobs": _lists_all}),
    Mutant("ids_without_forms", "every_form_of_an_id_leads_to_it", lambda _: {"resolve_id": lambda *_: ()}),
    Mutant("ping_says_no", "ping", _answers("ping", (1, "the WMS is not there"))),
)


async def _empty_poll(self: Any, request: PollRequest) -> PollResult:
    return PollResult(sources=(SourceReport(name="queue", status="ok"),))


async def _lists_all(self: Any, wms_id: str | None = None, user: str | None = None, **kwargs: Any) -> list[str]:
    return [seen.wms_id for seen in (await self.poll(PollRequest())).observations]


def _drops(field: str) -> Faulty:
    """Return a backend that claims to honour a field of a job and does nothing with it."""

    def methods(correct: type[WmsService]) -> Methods:
        async def prepare(self: Any, config: Any, generic_workflow: Any, out_prefix: str | None = None) -> Any:
            document = msgspec.json.decode(await anyio.Path(generic_workflow.path).read_bytes())
            for job in [*document["jobs"], *([document["final"]] if document.get("final") else [])]:
                job.pop(field, None)
            path = anyio.Path(f"{generic_workflow.path}.without-{field}")
            await path.write_bytes(msgspec.json.encode(document))
            changed = msgspec.structs.replace(generic_workflow, path=str(path))
            return await correct.prepare(self, config, changed, out_prefix)

        return {"prepare": prepare}

    return methods


def _jobs(**fields: Any) -> Faulty:
    """Return a poll that says this of every job."""
    return _seen(lambda seen: {"jobs": [msgspec.structs.replace(job, **fields) for job in seen.jobs]})


FAILURE = "failure_prunes_and_restart_goes_on_from_there"

EXECUTION_MUTANTS: tuple[Mutant, ...] = (
    Mutant("no_exit_codes", FAILURE, _jobs(exit_code=None)),
    Mutant("every_exit_code_is_one", FAILURE, _jobs(exit_code=1)),
    Mutant("honours_no_arguments", "environment_and_arguments", _drops("arguments")),
    Mutant("honours_no_environment", "environment_and_arguments", _drops("environment")),
    Mutant("honours_no_retries", "retries", _drops("number_of_retries")),
    Mutant("honours_no_retry_unless_exit", "retries", _drops("retry_unless_exit")),
    Mutant("honours_no_pre_cmdline", "pre_and_post_commands", _drops("pre_cmdline")),
    Mutant("honours_no_post_cmdline", "pre_and_post_commands", _drops("post_cmdline")),
    Mutant("honours_no_abort_on_value", "abort_on_value", _drops("abort_on_value")),
    Mutant("honours_no_parents", "order_and_output", _drops("parents")),
    Mutant("honours_no_groups", "noop_and_groups", _drops("group")),
)
