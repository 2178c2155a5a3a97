"""What an adapter learned: measured, drawn and named."""
