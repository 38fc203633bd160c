"""`python -m jobs.status`: see `rerank_actor.commands.status`."""

from rerank_actor.commands.command_line import run_command
from rerank_actor.commands.status import status

if __name__ == "__main__":
    run_command(status)
