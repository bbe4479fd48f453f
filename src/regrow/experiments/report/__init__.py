"""`regrow report`: a page of a run, a folder of runs or a study."""
