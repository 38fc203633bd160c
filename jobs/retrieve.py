"""`python -m jobs.retrieve`: see `rerank_actor.commands.retrieve`."""

from rerank_actor.commands.command_line import run_command
from rerank_actor.commands.retrieve import retrieve

if __name__ == "__main__":
    run_command(retrieve)
