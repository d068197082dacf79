"""What a trial is worth, and which one is best: scores, criteria without masks, rules of choice."""
