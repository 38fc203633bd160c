"""Training files, scored: `place` puts scores where a trainer looks for them, `export` writes the rows back in their own form.

Knows nothing of engines or of mining.
"""
