"""Check a file that sets up a cluster, before anything is paid for: `python -m jobs.cluster FILE`."""

from collections.abc import Sequence

from rerank_actor.commands.command_line import Parser
from rerank_actor.progress import say
from rerank_actor.runtime.cluster_file import check_cluster_file


def cluster(arguments: Sequence[str] | None = None) -> int:
    """Check the files that are named, say what each sets up, and print the commands that do so."""
    parser = Parser(
        "cluster",
        "Check files of cluster/ (KubeRay's, or of Ray's cluster launcher): values that are still to be set, "
        "unknown fields, room for the job's actors. Prints the command that is next, on stdout. Exit codes: 0 ready, 2 not.",
        "cluster/rayjob.yaml",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="a file of cluster/, with your own values")
    for path in parser.parse(arguments).files:
        setup = check_cluster_file(path)
        for group in setup.groups:
            each = f"{group.num_cpus:g} CPUs" + (f" and {group.num_gpus:g} GPUs" if group.num_gpus else "")
            say(f"{path}: {group.name}: {group.least:,} to {group.most:,} nodes with {each} each")
        if setup.job is not None:
            say(f"{path}: {setup.job.model_name}, {setup.job.actors} actors")
        print(setup.command)
    return 0
