"""Number of random examples per test: few and fixed by default, more on request."""

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
