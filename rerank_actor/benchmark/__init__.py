"""The benchmark: the job, its engine alone and the tools a user would pick instead, on the same pairs and weights.

Measures; changes nothing. Each contender lives in a process of its own, so that CPU time and memory can be told apart,
and rounds go around all of them, so that a machine that slows down slows all of them.
"""
