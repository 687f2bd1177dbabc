"""Training steps compiled for TPUs, which need not be there."""
