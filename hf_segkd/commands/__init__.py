"""The commands, a module each, which parses the command's flags and runs it.

`cli` lists the commands and ends them on mistakes, `command_line` reads flags and YAML. `run_folder` reads what
training, evaluation and export leave. `publish` has its flags in `publish_flags`, and gathers the facts of the card in
`publish_facts`. `study` runs commands side by side for the scripts that compare them.
"""
