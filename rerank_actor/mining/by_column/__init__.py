"""Mining by column: the queries of each value of a column mined apart, into a folder of their own, by rules of their own.

Takes a column of the scored rows or of their folders' names. Knows nothing of how rules decide, nor of Ray.
"""
