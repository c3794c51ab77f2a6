"""Pictures: read, drawn, and turned into cropped cells."""
