"""Load for minutes: the service's throughput and fairness, and whether memory stays flat."""
