"""Rows that are scored and rows that are passed through, by an expression over input columns.

`expression` reads what a user wrote, `rows` says for which rows it holds. Knows nothing of scores.
"""
