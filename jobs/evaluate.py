"""`python -m jobs.evaluate`: see `rerank_actor.commands.evaluate`."""

from rerank_actor.commands.command_line import run_command
from rerank_actor.commands.evaluate import evaluate

if __name__ == "__main__":
    run_command(evaluate)
