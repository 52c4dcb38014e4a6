"""What a training is made of: the recipe of its parts, the step, the schedule, and the memory that it needs."""
