"""`python -m jobs.tasks`: see `rerank_actor.commands.tasks`."""

from rerank_actor.commands.command_line import run_command
from rerank_actor.commands.tasks import tasks

if __name__ == "__main__":
    run_command(tasks)
