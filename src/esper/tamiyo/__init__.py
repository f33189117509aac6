"""Decisions: what to grow, where and when. Sees reports, sends commands; never touches a layer."""
