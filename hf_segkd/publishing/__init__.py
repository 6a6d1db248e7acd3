"""From a trained student to the Hub; the publishing command and the trainer's pushes use it all.

`card_facts` is what a card tells, `comparisons` which scores may stand on it side by side, `privacy` what it leaves
out, `model_card` its text from `model_card_template.md`; `publication` writes the folder of a student with its card,
`space` that of a Space, `hub` uploads folders. `reporting_trainer` gathers the facts of a run while it trains,
`publishing_trainer` pushes them.
"""
