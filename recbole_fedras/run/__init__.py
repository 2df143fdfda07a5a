"""One run, as RecBole has it: trainer, evaluation, report."""
