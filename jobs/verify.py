"""`python -m jobs.verify`: see `rerank_actor.commands.verify`."""

from rerank_actor.commands.command_line import run_command
from rerank_actor.commands.verify import verify

if __name__ == "__main__":
    run_command(verify)
