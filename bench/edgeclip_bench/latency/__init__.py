"""`edgeclip bench`: latency and throughput by MLPerf's scenarios, and single measurements."""
