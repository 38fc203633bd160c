"""Inputs: an `InputSpec` in; a plan of units, a unit's rows and pairs of texts out.

What is there (`listing`, `formats`), how it is cut (`plan`), how rows are read (`shards` by units, `batches` from a file's
beginning to its end, both of them by `text`, `columnar` and `rankings`), where their texts are (`pairs`, `text_sources`,
`lookups`), and what is refused before anything starts (`check_columns`). Knows nothing of prompts, engines, the settings of a
job, or Ray.
"""
