"""`python -m jobs.publish`: see `rerank_actor.commands.publish`."""

from rerank_actor.commands.command_line import run_command
from rerank_actor.commands.publish import publish

if __name__ == "__main__":
    run_command(publish)
