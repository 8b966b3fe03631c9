"""From a checkpoint to a whole table: which stages a suite has, which the data on disk allow, what each will cost."""
