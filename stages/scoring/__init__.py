"""From predictions to verdicts: the long table, metrics, patient bootstrap, metrics.json, plots, the terminal table.

Lives here: everything that follows from predictions alone. Not here: fitting or predicting (`stages.heads`), the HTML
page (`stages.report`). Knows neither torch nor the stores.
"""
