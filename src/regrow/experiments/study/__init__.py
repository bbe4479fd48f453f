"""Studies: grids of runs, resumable, summed up in a table and a plot."""
