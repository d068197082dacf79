"""Runs pipelines on Ray. The only package that imports it."""
