"""Syntax: how a record of text is written, CSV's quotes, JSON's values and the words of labels. Knows nothing of files."""
