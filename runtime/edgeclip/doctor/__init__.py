"""`edgeclip doctor`: what is installed here, what runs, and the command that mends each problem."""
