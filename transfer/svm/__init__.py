"""The SVM protocols: solvers, the choice of C, low-shot draws."""
