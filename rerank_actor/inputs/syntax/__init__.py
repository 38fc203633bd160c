"""Syntax: how a record of text is written, CSV's quotes, JSON's values, words of labels; folding. Knows nothing of files."""
