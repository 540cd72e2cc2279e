"""Reference methods that the gate is compared with, all with one face."""
