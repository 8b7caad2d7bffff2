"""Turn a user's texts and images into the arrays that the graphs take."""
