"""What the scripts do. Each command parses its flags, builds things and calls them.

`cli` lists the commands with their modules, `failures` is how they end on mistakes. Shared are `data_flags`, `networks`
(loading) and `run_folder` (what training, evaluation and export leave). `publishing` has its flags, and what it finds
out for the card, in modules of their own; `study` runs commands side by side for the scripts that compare them.
"""
