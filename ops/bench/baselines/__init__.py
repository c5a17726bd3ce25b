"""What Turnline is compared with: the same work without its promises."""
