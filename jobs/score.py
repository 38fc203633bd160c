"""`python -m jobs.score`: see `rerank_actor.commands.score`."""

from rerank_actor.commands.command_line import run_command
from rerank_actor.commands.score import score

if __name__ == "__main__":
    run_command(score)
