"""Settings compared on every fold: plan, work, figures, report."""
