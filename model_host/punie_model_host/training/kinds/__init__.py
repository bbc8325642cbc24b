"""One module per group of questions: phrasings, program, simulated result, answer."""
