"""Stages that methods share: a typed config and a build function each. Knows no method and no Ray."""
