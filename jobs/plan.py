"""`python -m jobs.plan`: see `rerank_actor.commands.plan`."""

from rerank_actor.commands.command_line import run_command
from rerank_actor.commands.plan import plan

if __name__ == "__main__":
    run_command(plan)
