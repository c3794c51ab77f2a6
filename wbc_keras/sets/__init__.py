"""Public sets of blood cells: what they are, and how they are fetched."""
