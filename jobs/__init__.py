"""Entry points: each module parses a command line, calls `rerank_actor` and turns errors into exit codes."""
