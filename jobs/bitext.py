"""`python -m jobs.bitext`: see `rerank_actor.commands.bitext`."""

from rerank_actor.commands.bitext import bitext
from rerank_actor.commands.command_line import run_command

if __name__ == "__main__":
    run_command(bitext)
