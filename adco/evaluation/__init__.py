"""What a number is: records, provenance, scores, and how two of them are compared."""
