"""Syntax: how a record of text is written, CSV's quotes and JSON's values. Knows nothing of files."""
