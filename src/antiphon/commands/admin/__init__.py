"""`antiphon admin`: what an operator does with the stored data."""
