"""What a training is made of: the recipe of its parts, the step, and the memory that it needs."""
