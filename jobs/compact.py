"""`python -m jobs.compact`: see `rerank_actor.commands.compact`."""

from rerank_actor.commands.command_line import run_command
from rerank_actor.commands.compact import compact

if __name__ == "__main__":
    run_command(compact)
