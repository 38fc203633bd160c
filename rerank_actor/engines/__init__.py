"""Engines: pairs of texts and a model's name in; token ids, float32 log-odds and a checked engine out.

What a model is (`model`, `template`, `instructions`), how a pair becomes a prompt (`prompts`, `tokenization`), what computes
its logit (`vllm`, `transformers`, `fake`, behind `base`) and how an engine is started and checked (`start`). Knows nothing
of shards, units, jobs or Ray. Importing it loads neither torch nor vLLM.
"""
