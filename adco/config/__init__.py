"""The configuration of a pretraining run: its dataclasses, its YAML files and the allowed values."""
