"""`python -m jobs.model`: see `rerank_actor.commands.model`."""

from rerank_actor.commands.command_line import run_command
from rerank_actor.commands.model import model

if __name__ == "__main__":
    run_command(model)
