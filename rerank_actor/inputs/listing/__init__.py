"""What the input names, listed: the shards of a job, the format of each, and what is left out.

An `InputSpec` enters; what leaves are stored objects in the order of their URIs, their formats by name or first bytes, the
columns that names of folders give, and a count of everything else that lies there. Knows nothing of rows or of plans.
"""

from rerank_actor.inputs.listing.inputs import InputListing, list_input
from rerank_actor.inputs.listing.left_out import LeftOut, count_left_out

__all__ = ["InputListing", "LeftOut", "count_left_out", "list_input"]
