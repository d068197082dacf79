"""Published methods, one folder each; every folder exposes `METHOD` (see CONTRIBUTING.md)."""
