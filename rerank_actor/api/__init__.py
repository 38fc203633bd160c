"""The job and its engines for Python programs: `score_job` runs a job, `RerankStage` is a stage of a Ray Data pipeline.

Settings enter by the names of the flags, results leave as values; nothing is printed to standard output. `Reranker`, for pairs
in this process, stands at the root.
"""
