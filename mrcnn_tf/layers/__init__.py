"""Custom Keras layers of the model that hold no weights, one stage a file."""
