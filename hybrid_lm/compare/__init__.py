"""Several finished runs beside one another: paired differences, positions, speed."""
