"""The report's section on fits of other studies."""
