"""Classifiers trained by SGD on a frozen or tuned backbone, and their protocols."""
