"""What may be varied: the file of a search space, and the stage and level of each of its keys."""
