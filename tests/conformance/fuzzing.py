"""How many random examples a test tries: few and the same in every run, or as many as one asks for."""

import os

from hypothesis import HealthCheck, settings


def examples(number):
    """Settings of a fuzzed test; PAPA_FUZZ=10 tries ten times as many."""
    return settings(
        max_examples=int(number * float(os.environ.get("PAPA_FUZZ", "1"))),
        deadline=None,  # the machine may be busy
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
