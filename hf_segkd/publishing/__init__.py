"""From a trained student to the Hub, for the publishing command and the trainer.

`card_facts` is what a card tells, `comparisons` which scores may stand on it side by side, `privacy` what it leaves
out, `model_card` its text from `model_card_template.md`; `publication` writes the folder of a student with its card,
`space` that of a Space, `hub` uploads folders, `pushes` does so in the background while a student is trained.
"""
