"""How a model becomes a vector of numbers, and an average a model."""
