"""New channels on their way between layers of the host."""

from esper.kasmina.channels import rules as rules  # it fills the table of what is done with them
