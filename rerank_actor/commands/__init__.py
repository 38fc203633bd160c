"""The commands: each parses a command line, calls the library, prints what came of it and returns an exit code.

Takes arguments, gives exit codes; errors become exit codes in `command_line`. `rerank NAME` and `python -m jobs.NAME` start
the same function. Nothing that a worker runs is defined here.
"""
