"""Mutated configs are valid, or refused in plain lines; MAS_FUZZ=10000 reads that many."""

import os

import pytest

pytest.importorskip("hypothesis")  # of the extra dev

from hypothesis import HealthCheck, given, settings

from tools.fuzz import base_configs, digits_configs, mutated, outcome

CONFIGS = int(os.environ.get("MAS_FUZZ", "200"))
BOUNDS = {"deadline": None, "database": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=CONFIGS, **BOUNDS)
@given(mutated(base_configs()))
def test_mutated_configs(data):
    assert outcome(data) in ("valid", "refused")


@pytest.mark.slow
@settings(max_examples=max(20, CONFIGS // 20), **BOUNDS)
@given(mutated(digits_configs()))
def test_mutated_configs_whose_parts_are_built(data):
    assert outcome(data, try_data=True) in ("valid", "refused")


@pytest.mark.parametrize("data", base_configs(), ids=lambda data: data["experiment"])
def test_what_is_mutated_is_valid(data):
    assert outcome(data) == "valid"
