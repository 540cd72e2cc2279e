"""How the report looks: drawings as inline SVG, tables, plain words, one HTML template.

Lives here: presentation. Not here: any number that is not already in metrics.json or computed by `stages.evaluation`.
"""
