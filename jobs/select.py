"""`python -m jobs.select`: see `rerank_actor.commands.select`."""

from rerank_actor.commands.command_line import run_command
from rerank_actor.commands.select import select

if __name__ == "__main__":
    run_command(select)
