"""Query, key, value and output projections that compute only what a swapped layer needs."""
