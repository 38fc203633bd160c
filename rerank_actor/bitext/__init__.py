"""Bitext: candidate translation pairs in all formats, scored in both directions, a folder for each language pair.

`run.score_bitext` is the order of things; start reading there. Scoring is the main job's.
"""
