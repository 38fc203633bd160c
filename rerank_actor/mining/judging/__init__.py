"""False negatives for a judge: suspects written for a person or an LLM to read, and their verdicts read back as labels.

What the rules drop as probable false negatives leaves as `suspects`; what was said of it enters as `verdicts`, by the same
keys. Knows nothing of how rules decide, nor of Ray.
"""
