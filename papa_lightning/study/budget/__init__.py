"""Loss budgets: the largest number of constant heads within a loss of the score."""
