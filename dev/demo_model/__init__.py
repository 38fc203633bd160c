"""The making of the demo's model: words, texts, tokenizer, training, figures. Not part of the package."""
