"""TensorFlow: the model and its backend."""
