"""From names and options to a run folder with a result: distill, train, evaluate."""
