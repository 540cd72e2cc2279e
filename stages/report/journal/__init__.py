"""What a journal asks for: the flow of participants, characteristics, a TRIPOD+AI checklist, tables as files."""
