"""Network building blocks that methods share."""
