"""Checkpoints of any origin: file formats, layouts, the model zoo, and `load_backbone`, which reads them all."""
