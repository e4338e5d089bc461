"""One protocol act per file, each for both roles: what an exchange says and what is done with the answer."""
