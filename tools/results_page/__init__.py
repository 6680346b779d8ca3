"""The page of results: what `tools/make_results.py` collects from studies, and the blocks and figures made from it."""
