"""Result files -> summaries -> tables and pictures."""
