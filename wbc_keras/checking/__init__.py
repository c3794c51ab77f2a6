"""What is wrong with a set of cells before a model is built on it."""
