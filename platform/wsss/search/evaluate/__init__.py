"""Evaluates the trials of a batch: stage by stage, in memory where that serves, dropping what is clearly worse."""
