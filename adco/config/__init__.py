"""What a pretraining run is: the typed configuration, its YAML files, and what it may say."""
