"""The experts, one file each, grouped by what they were made for; nothing else lies here."""
