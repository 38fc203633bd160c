"""`python -m jobs.cluster`: see `rerank_actor.commands.cluster`."""

from rerank_actor.commands.cluster import cluster
from rerank_actor.commands.command_line import run_command

if __name__ == "__main__":
    run_command(cluster)
