"""What all measurements share: percentiles, memory, facts and limits of the machine, tables and plots."""
