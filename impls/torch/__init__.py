"""PyTorch: the model and its backend."""
