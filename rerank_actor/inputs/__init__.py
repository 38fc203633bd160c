"""Inputs: an `InputSpec` in; a plan of units, a unit's rows and pairs of texts out.

What is there (`listing`, `hf_datasets`), how it is cut (`plan`, `unit`), how rows are read (`shards` and a module for each
kind of format), where their texts are (`pairs`, `text_sources`, `lookups`), and what is refused before anything starts
(`check_columns`). Knows nothing of prompts, engines, the settings of a job, or Ray.
"""
