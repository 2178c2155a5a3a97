"""How long a step takes with each method beside the frozen model, and what it needs."""
