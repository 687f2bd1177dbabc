"""Parameters and statistics from PyTorch to Flax and back."""
