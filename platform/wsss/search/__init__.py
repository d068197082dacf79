"""Searches recipe settings across the stages of a pipeline. With `execution` the only package that imports Ray."""
