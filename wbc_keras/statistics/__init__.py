"""Figures and their intervals: arrays in, results out; nothing is drawn or written here."""
