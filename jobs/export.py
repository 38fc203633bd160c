"""`python -m jobs.export`: see `rerank_actor.commands.export`."""

from rerank_actor.commands.command_line import run_command
from rerank_actor.commands.export import export

if __name__ == "__main__":
    run_command(export)
