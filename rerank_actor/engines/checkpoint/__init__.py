"""Checkpoints: the files of a model where they lie, looked at before anything starts, and the folder that engines load.

Takes a model folder, local, on S3 or on the hub; reads listings, settings and the headers of safetensors, never a weight.
Gives the files that are loaded, or refuses in a sentence. Knows nothing of prompts, jobs or engines that run.
"""
