"""The command line: one module per verb, each with `parser()` and `run(arguments) -> exit code`."""
