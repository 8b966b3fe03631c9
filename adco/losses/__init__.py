"""The objectives as pure functions on embeddings, with their gradients."""
