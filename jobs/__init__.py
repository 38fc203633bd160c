"""What `ray job submit -- python -m jobs.NAME` starts: the commands of `rerank_actor.commands`, one module each."""
