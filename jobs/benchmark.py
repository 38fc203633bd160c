"""`python -m jobs.benchmark`: see `rerank_actor.commands.benchmark`."""

from rerank_actor.commands.benchmark import benchmark
from rerank_actor.commands.command_line import run_command

if __name__ == "__main__":
    run_command(benchmark)
