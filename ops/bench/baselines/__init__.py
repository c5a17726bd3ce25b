"""What Turnline is compared with: the same work without its promises.

Programs of their own; nothing else imports them.
"""
