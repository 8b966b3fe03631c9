"""Networks and what lies beside them: encoder, BatchNorm across ranks, memory bank."""
