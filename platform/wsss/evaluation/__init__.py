"""Scores: confusion matrices, threshold curves, bootstrap intervals, and the stages that compute them."""
