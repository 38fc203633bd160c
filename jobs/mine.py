"""`python -m jobs.mine`: see `rerank_actor.commands.mine`."""

from rerank_actor.commands.command_line import run_command
from rerank_actor.commands.mine import mine

if __name__ == "__main__":
    run_command(mine)
