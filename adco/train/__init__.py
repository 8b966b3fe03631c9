"""The pretraining loop, what it keeps, and what it measures while it runs."""
