"""Tests of Turnline."""
