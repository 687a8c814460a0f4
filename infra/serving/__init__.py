"""The serving runtime: answers requests with the champion's bundle."""
