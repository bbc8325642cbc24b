"""Makes the embedded model: data, tokenizer, training, export and evaluation."""
