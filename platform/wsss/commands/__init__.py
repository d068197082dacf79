"""The command line: one module per verb, each with `add_options(parser)` and `run(arguments) -> exit code`."""
