"""What a mixer lets through that it must not: the future, other documents, what a split loses."""
