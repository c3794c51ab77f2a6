"""What people read and look at: tables, plots, pages, the model card."""
