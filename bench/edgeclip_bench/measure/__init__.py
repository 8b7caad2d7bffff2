"""What every measurement needs: percentiles, memory, the machine's facts and ceilings, plots."""
