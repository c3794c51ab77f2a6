"""What lies around a model that TensorFlow Serving takes."""
