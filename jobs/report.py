"""`python -m jobs.report`: see `rerank_actor.commands.report`."""

from rerank_actor.commands.command_line import run_command
from rerank_actor.commands.report import report

if __name__ == "__main__":
    run_command(report)
