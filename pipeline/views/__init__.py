"""What commands print: tables of experts, stores, predictions, the doctor's findings, the report's facts."""
