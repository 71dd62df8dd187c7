"""What a text's sentences say compared with those of a corpus."""
