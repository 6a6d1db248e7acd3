"""The commands, a module each: it parses the command's flags, builds things and calls them.

`cli` lists the commands, `command_line` reads flags and YAML, `failures` is how commands end on mistakes. Shared are
`data_flags` and `run_folder` (what training, evaluation and export leave). `publish` has its flags, and what it finds
out for the card, in modules of their own; `study` runs commands side by side for the scripts that compare them.
"""
