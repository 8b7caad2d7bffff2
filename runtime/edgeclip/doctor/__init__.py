"""`edgeclip doctor`: what is installed on this machine, which devices really run, and the command that mends each
problem.
"""
