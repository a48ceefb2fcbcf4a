"""A made-up client in the form of OpenAI's: what every version has, and inventions."""
