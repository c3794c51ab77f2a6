"""Classification of white blood cells, for research: train, evaluate, explain, export, predict."""

__version__ = "0.1.0"
