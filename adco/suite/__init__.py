"""From checkpoints to a table: the stages of a suite, which of them the data on disk allow, and what each costs."""
