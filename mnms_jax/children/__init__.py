"""Child-model factories in Flax: each has its module and its search space."""
