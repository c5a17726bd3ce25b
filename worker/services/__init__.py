"""Services that speak to models."""
