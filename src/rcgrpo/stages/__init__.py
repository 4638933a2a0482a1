"""Station 6: the work itself. collect -> finetune -> reinforce -> evaluate, and the run that walks them."""
