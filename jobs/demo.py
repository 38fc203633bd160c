"""`python -m jobs.demo`: see `rerank_actor.commands.demo`."""

from rerank_actor.commands.command_line import run_command
from rerank_actor.commands.demo import demo

if __name__ == "__main__":
    run_command(demo)
