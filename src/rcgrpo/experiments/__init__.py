"""The experiments station: an ablation's plan, its matrix of runs, its cells, and what they say statistically."""
