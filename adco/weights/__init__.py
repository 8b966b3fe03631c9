"""Checkpoints of any origin: formats, layouts, the model zoo, and the bridge to a torchvision ResNet."""
