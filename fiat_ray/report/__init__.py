"""What a run found, as tables, figures and one page; everything is read from the run directory, nothing is computed twice."""
