"""A sample of ``tools/kill_test.py``: killed processes lose no cell, do none twice, and end as others, bit for bit."""

import os

import pytest

from tools.kill_cells import small_experiments
from tools.kill_test import kill_test

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
KILLS = int(os.environ.get("MAS_KILLS", "2"))  # of each


@pytest.mark.parametrize("name", ["strategy mas", "strategy replay", "continual strengths", "kind expert_selection"])
def test_killed_runs_end_as_others(name):
    findings = kill_test(KILLS, seed=1, experiments={name: small_experiments()[name]})
    assert len(findings.kills) == KILLS
    assert findings.is_clean, findings
    assert findings.cells > 0


@pytest.mark.slow
def test_killed_commands_end_as_others_and_leave_no_process():
    findings = kill_test(3, seed=0, commands=3, experiments={"mas": small_experiments()["strategy mas"]})
    assert len(findings.kills) == 3
    assert findings.is_clean, findings
