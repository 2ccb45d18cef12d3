"""Two chains of blocks -> a pairing, the student's start, adapters, scions, and their folding."""
