"""JAX: the model and its backend."""
