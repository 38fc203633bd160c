"""Publishing: scored and mined outputs as datasets on the Hugging Face hub.

What enters is a finished output, what leaves is a dataset repository with its files and a card that says what made them.
Knows nothing of how an output was made, nor of Ray.
"""
