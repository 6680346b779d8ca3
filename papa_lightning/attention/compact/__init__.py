"""Kind "compact": constant heads in a few numbers each."""
