"""The rule in any traced program."""
