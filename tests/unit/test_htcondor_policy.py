"""What HTCondor's own words say: refusals of condor_submit, and removals by rules and by people."""

from __future__ import annotations

import pytest

from bpsd_adapters.htcondor.policy import Removal, refusal, removal

PERIODIC = "The job attribute PeriodicRemove expression 'NumJobStarts > JobMaxRetries' evaluated to TRUE"
LIMIT = """
ERROR: MAX_JOBS_SUBMITTED exceeded. Current=1, Limit=1
Number of submitted jobs would exceed MAX_JOBS_SUBMITTED
"""
SIGNAL = "Job raised a signal 9. Handling job as if it has gone over memory limit. (code 3.34)"


@pytest.mark.parametrize(
    ("stderr", "why"),
    [  # as HTCondor 23.9 prints it
        (
            "\nERROR: Failed to commit job submission into the queue.\nERROR: project x has no allocation\n",
            "project x has no allocation",
        ),
        ("\nERROR: Executable file /nonexistent does not exist\n", "Executable file /nonexistent does not exist"),
        (
            "ERROR: Parse error in expression: \n\tRequestMemory = abc def\n\t\n",
            "Parse error in expression:",
        ),
        ("\nERROR: Failed to commit job submission into the queue.\n", ""),  # perhaps the answer alone was lost
        ("\nERROR: Can't find address of local schedd\n", ""),
        ("ERROR: Failed to connect to local queue manager\nCEDAR:6001:Failed to connect to <127.0.0.1:9718>\n", ""),
        (LIMIT, ""),
        ('SECMAN:2010:Received "DENIED" from server for user op@x\nERROR: x\n', ""),
        ("sh: 1: condor_submit: not found\n", ""),
        ("", ""),
    ],
)
def test_a_refusal_is_proven_by_its_reason(stderr: str, why: str) -> None:
    assert refusal(stderr) == why


@pytest.mark.parametrize(
    ("reason", "held_for", "was"),
    [
        (PERIODIC, SIGNAL, Removal(True, 137, SIGNAL)),
        (PERIODIC, "Job exit code (139) > 128. Handling job as if it", Removal(True, 139, "Job exit code (139) > 128."
         " Handling job as if it")),
        (PERIODIC, "via condor_hold", Removal(True, None, "via condor_hold")),
        (PERIODIC, "", Removal(True, None, f"removed by a rule: {PERIODIC}")),
        (
            "The system macro SYSTEM_PERIODIC_REMOVE expression 'x' evaluated to TRUE",
            "",
            Removal(True, None, "removed by a rule: The system macro SYSTEM_PERIODIC_REMOVE expression 'x' evaluated to"
                                " TRUE"),
        ),
        ("via condor_rm", "no room", Removal(False, None, "removed: via condor_rm; it was held: no room")),
        ("", "", Removal(False, None, "removed: no reason given")),
    ],
)  # fmt: skip
def test_what_a_rule_removed_has_failed_for_the_reason_of_its_hold(reason: str, held_for: str, was: Removal) -> None:
    assert removal(reason, held_for) == was
