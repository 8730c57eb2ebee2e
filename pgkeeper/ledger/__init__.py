"""The ledger as the hanger has it: its memory, what it tells, and whether it is consistent."""
